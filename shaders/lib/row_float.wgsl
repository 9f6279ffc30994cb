// Weights in a floating point format, 32 to a block; every lib/row_<type>.wgsl of these has load_four(number of a word).
fn product(block: u32) -> f32 {
    var sum = vec4<f32>();
    var i = 0u;
//# for _ in range(8)
    sum += load_four((block * 8u + i) * BLOCK_BYTES / 32u) * fours[block * 8u + i];
    i += 1u;
//# endfor
    return sum.x + sum.y + sum.z + sum.w;
}
