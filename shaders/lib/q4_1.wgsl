// Q4_1 (ggml): 20 bytes a block of 32: f16 scale d, f16 minimum m, then 16 bytes of nibbles as in Q4_0;
// weight = d * q + m. Always on a word.
const BLOCK_BYTES: u32 = 20u;
const HAS_OFFSET: bool = true;

fn load_block(base: u32) -> Block {
    let first = base >> 2u;
    var block: Block;
    let scales = unpack2x16float(weight[first]);
    block.scale = scales.x;
    block.offset = scales.y;
    for (var i = 0u; i < 4u; i++) {
        let nibbles = weight[first + i + 1u];
        block.quants[i] = nibbles & 0x0F0F0F0Fu;
        block.quants[i + 4u] = (nibbles >> 4u) & 0x0F0F0F0Fu;
    }
    return block;
}
