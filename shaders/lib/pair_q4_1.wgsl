// Two blocks of Q4_1 (lib/q4_1.wgsl): 10 words; words 0 and 5 are the scale and the minimum of each, the nibbles lie as in
// lib/pair_q4_0.wgsl.
const WORDS: u32 = 10u;
const HAS_OFFSET: bool = true;

fn pair_scales(pair: Pair) -> vec2<f32> {
    return vec2<f32>(unpack2x16float(pair.words[0]).x, unpack2x16float(pair.words[5]).x);
}

fn pair_offsets(pair: Pair) -> vec2<f32> {
    return vec2<f32>(unpack2x16float(pair.words[0]).y, unpack2x16float(pair.words[5]).y);
}

fn pair_quants(pair: Pair, i: u32) -> u32 {
    return (pair.words[i / 8u * 5u + i % 4u + 1u] >> (i / 4u % 2u * 4u)) & 0x0F0F0F0Fu;
}
//# if not PACKED

fn pair_four(pair: Pair, i: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(pair_quants(pair, i)));
}
//# endif
