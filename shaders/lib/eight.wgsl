// Eight activations as int8 with one scale: scale = max|x| / 127, quant = round(x / scale), half away from zero as ggml does.
struct Eight {
    quants: vec2<u32>,
    scale: f32,
    total: f32, // of scale * quant: what weights with an offset need
}

fn quantised(values: vec4<f32>, inverse: f32) -> vec4<i32> {
    let scaled = values * inverse;
    return vec4<i32>(sign(scaled) * floor(abs(scaled) + 0.5));
}

fn eight_of(first: vec4<f32>, second: vec4<f32>) -> Eight {
    let size = max(abs(first), abs(second));
    let largest = max(max(size.x, size.y), max(size.z, size.w));
    let inverse = select(0.0, 127.0 / largest, largest > 0.0);
    let a = quantised(first, inverse);
    let b = quantised(second, inverse);
    let sum = a + b;
    let scale = largest / 127.0;
    return Eight(vec2<u32>(pack4xI8(a), pack4xI8(b)), scale, scale * f32(sum.x + sum.y + sum.z + sum.w));
}
