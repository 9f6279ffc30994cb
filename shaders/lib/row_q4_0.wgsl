// Q4_0 (ggml): 18 bytes a block of 32: f16 scale d, then 16 bytes; byte i holds weights i (low nibble) and i + 16 (high);
// weight = d * (q - 8).
fn scale_of(at: u32) -> f32 {
    return unpack2x16float(words[at / 4u] >> (at % 4u * 8u)).x;
}

fn product(block: u32) -> f32 {
    let at = block * BLOCK_BYTES;
    return scale_of(at) * (nibbles(at + 2u, block) - 8.0 * totals[block]);
}
//# include "lib/row_nibbles.wgsl"
