// Q4_0 (ggml): 18 bytes a block of 32: f16 scale d, then 16 bytes; byte i holds weights i (low nibble) and i + 16
// (high); weight = d * (q - 8). Two blocks are 9 words, as in lib/q8_0.wgsl.
const BLOCK_BYTES: u32 = 18u;
const HAS_OFFSET: bool = true;

fn load_block(base: u32) -> Block {
    let first = base >> 2u;
    let odd = (base & 2u) != 0u;
    var block: Block;
    var word = weight[first];
    block.scale = unpack2x16float(select(word, word >> 16u, odd)).x;
    block.offset = -8.0 * block.scale;
    for (var i = 0u; i < 4u; i++) {
        let next = weight[first + i + 1u];
        let nibbles = select((word >> 16u) | (next << 16u), next, odd);
        block.quants[i] = nibbles & 0x0F0F0F0Fu;
        block.quants[i + 4u] = (nibbles >> 4u) & 0x0F0F0F0Fu;
        word = next;
    }
    return block;
}
