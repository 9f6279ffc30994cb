// Two blocks of Q8_0 (lib/q8_0.wgsl): 17 words. The scales are the low half of word 0 and the high half of word 8; the first
// block's quants straddle words, the second's are words 9 to 16. Floats are taken from their bytes where they lie.
const WORDS: u32 = 17u;
const HAS_OFFSET: bool = false;

fn pair_scales(pair: Pair) -> vec2<f32> {
    return vec2<f32>(unpack2x16float(pair.words[0]).x, unpack2x16float(pair.words[8]).y);
}

fn pair_offsets(pair: Pair) -> vec2<f32> {
    return vec2<f32>();
}

//# if PACKED
fn pair_quants(pair: Pair, i: u32) -> u32 {
    if (i < 8u) {
        return (pair.words[i] >> 16u) | (pair.words[i + 1u] << 16u);
    }
    return pair.words[i + 1u];
}
//# else
fn pair_four(pair: Pair, i: u32) -> vec4<f32> {
    if (i < 8u) {
        return vec4<f32>(vec4<i32>(unpack4xI8(pair.words[i]).zw, unpack4xI8(pair.words[i + 1u]).xy));
    }
    return vec4<f32>(unpack4xI8(pair.words[i + 1u]));
}
//# endif
