// Q8_0 (ggml): 34 bytes a block of 32: f16 scale d, then 32 int8 q; weight = d * q.
// A block starts on a word or in the middle of one (two blocks are 17 words): the quants then straddle words.
const BLOCK_BYTES: u32 = 34u;
const HAS_OFFSET: bool = false;

fn load_block(base: u32) -> Block {
    let first = base >> 2u;
    let odd = (base & 2u) != 0u;
    var block: Block;
    var word = weight[first];
    block.scale = unpack2x16float(select(word, word >> 16u, odd)).x;
    block.offset = 0.0;
    for (var i = 0u; i < 8u; i++) {
        let next = weight[first + i + 1u];
        block.quants[i] = select((word >> 16u) | (next << 16u), next, odd);
        word = next;
    }
    return block;
}
