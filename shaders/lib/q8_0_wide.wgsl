// Q8_0 as in lib/q8_0.wgsl, read in 64-bit words: 5 loads a block instead of 9, for drivers that pay for each load
// whatever its width (llvmpipe). A block starts at any even byte of a word. Needs shader-int64 and `weight: array<u64>`.
const BLOCK_BYTES: u32 = 34u;
const HAS_OFFSET: bool = false;

fn load_block(base: u32) -> Block {
    let first = base >> 3u;
    let skip = (base & 7u) * 8u; // bits before the block: 0, 16, 32 or 48
    let whole = skip == 48u; // then the quants start on a word
    let right = select(skip + 16u, 0u, whole);
    let left = 48u - skip;
    var block: Block;
    var word = weight[first];
    block.scale = unpack2x16float(u32((word >> skip) & 0xFFFFlu)).x;
    block.offset = 0.0;
    for (var i = 0u; i < 4u; i++) {
        let next = weight[first + i + 1u];
        let quants = select((word >> right) | (next << left), next, whole);
        block.quants[2u * i] = u32(quants & 0xFFFFFFFFlu);
        block.quants[2u * i + 1u] = u32(quants >> 32u);
        word = next;
    }
    return block;
}
