// Two blocks of Q4_0 (lib/q4_0.wgsl): 9 words. The scales are the low half of word 0 and the high half of word 4; the first
// block's nibbles straddle words, the second's are words 5 to 8. A word holds weights i to i + 3 and, in its high nibbles,
// 16 to 19 after them.
const WORDS: u32 = 9u;
const HAS_OFFSET: bool = true;

fn pair_scales(pair: Pair) -> vec2<f32> {
    return vec2<f32>(unpack2x16float(pair.words[0]).x, unpack2x16float(pair.words[4]).y);
}

fn pair_offsets(pair: Pair) -> vec2<f32> {
    return -8.0 * pair_scales(pair);
}

fn pair_quants(pair: Pair, i: u32) -> u32 {
    let at = i % 4u;
    let straddles = (pair.words[at] >> 16u) | (pair.words[at + 1u] << 16u);
    return (select(pair.words[at + 5u], straddles, i < 8u) >> (i / 4u % 2u * 4u)) & 0x0F0F0F0Fu;
}
//# if not PACKED

fn pair_four(pair: Pair, i: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(pair_quants(pair, i)));
}
//# endif
