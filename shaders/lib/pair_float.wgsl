// Sixty-four weights of a row in a floating point format, with the interface of lib/pair.wgsl; four are read when they are
// needed, as all of them would take too many registers. The driver asks for them early enough by itself. Rows of these are
// multiples of 16 bytes: it reads the binding `weight: array<vec4<u32>>`.
struct Pair {
    at: u32, // number of the first four words
}
const HAS_OFFSET: bool = false;

fn load_pair(number: u32) -> Pair {
//# if WEIGHT == "f32"
    return Pair(number * 16u);
//# else
    return Pair(number * 8u);
//# endif
}

fn pair_scales(pair: Pair) -> vec2<f32> {
    return vec2<f32>(1.0);
}

fn pair_offsets(pair: Pair) -> vec2<f32> {
    return vec2<f32>();
}

fn pair_four(pair: Pair, i: u32) -> vec4<f32> {
//# if WEIGHT == "f32"
    return bitcast<vec4<f32>>(weight[pair.at + i]);
//# else
    let words = weight[pair.at + i / 2u];
    let two = select(words.zw, words.xy, i % 2u == 0u);
//# if WEIGHT == "f16"
    return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));
//# else
    return bitcast<vec4<f32>>(vec4<u32>(two.x << 16u, two.x & 0xFFFF0000u, two.y << 16u, two.y & 0xFFFF0000u));
//# endif
//# endif
}
