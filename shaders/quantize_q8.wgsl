// Activations to int8 in groups of 8: scale = max|x| / 127, quant = round(x / scale), half away from zero as ggml does.
// sums holds, for every block of 32, the sum of scale * quant: it serves weight formats with an offset.
// One thread a block of 32. Bindings: x, state, quants, scales, sums. Called by ops/matmul.py.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> quants: array<u32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;

const_assert D % 32u == 0u;

fn quantise(values: vec4<f32>, inverse: f32) -> vec4<i32> {
    let scaled = values * inverse;
    return vec4<i32>(sign(scaled) * floor(abs(scaled) + 0.5));
}

fn largest_of(values: vec4<f32>) -> f32 {
    let size = abs(values);
    return max(max(size.x, size.y), max(size.z, size.w));
}

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let block = id.x + id.y * groups.x * WG;
    if (block >= min(N, state[1] * PER_TOKEN) * (D / 32u)) {
        return;
    }
    var total = 0.0;
    for (var g = 0u; g < 4u; g++) {
        let first = x[block * 8u + 2u * g];
        let second = x[block * 8u + 2u * g + 1u];
        let largest = max(largest_of(first), largest_of(second));
        let scale = largest / 127.0;
        let inverse = select(0.0, 127.0 / largest, largest > 0.0);
        let a = quantise(first, inverse);
        let b = quantise(second, inverse);
        quants[block * 8u + 2u * g] = pack4xI8(a);
        quants[block * 8u + 2u * g + 1u] = pack4xI8(b);
        scales[block * 4u + g] = scale;
        let sum = a + b;
        total += scale * f32(sum.x + sum.y + sum.z + sum.w);
    }
    sums[block] = total;
}
