// Q4_1 (ggml): 20 bytes a block of 32: f16 scale d, f16 minimum m, then 16 bytes of nibbles as in Q4_0; weight = d * q + m.
fn product(block: u32) -> f32 {
    let at = block * BLOCK_BYTES;
    let scales = unpack2x16float(words[at / 4u]);
    return scales.x * nibbles(at + 4u, block) + scales.y * totals[block];
}
//# include "lib/row_nibbles.wgsl"
