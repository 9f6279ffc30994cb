// Activations in pairs of blocks, to meet the pairs of lib/pair.wgsl. STAGED: in workgroup memory, X_PAIRS of them: `stage` for
// every group of 8, then a barrier. Else read from the bindings. PACKED: int8 in groups of 8 with a scale each, as in
// quantize_q8.wgsl. Pairs in workgroup memory lie so far apart that neighbours in a subgroup read from different banks.
//# if PACKED
struct PairX {
    quants: array<u32, 16>,
    scales: array<f32, 8>,
    totals: vec2<f32>, // of each block: the sum of scale * quant; for weights with an offset
}
//# if STAGED
//# include "lib/eight.wgsl"
const X_WORDS: u32 = 28u + select(0u, 8u, HAS_OFFSET); // quants, then scales, then the groups' sums
var<workgroup> x_words: array<u32, X_PAIRS * X_WORDS>;

fn stage(group: u32, first: vec4<f32>, second: vec4<f32>) {
    let eight = eight_of(first, second);
    let at = group / 8u * X_WORDS;
    x_words[at + group % 8u * 2u] = eight.quants.x;
    x_words[at + group % 8u * 2u + 1u] = eight.quants.y;
    x_words[at + 16u + group % 8u] = bitcast<u32>(eight.scale);
//# if WEIGHT in ("q4_0", "q4_1")
    x_words[at + 24u + group % 8u] = bitcast<u32>(eight.total);
//# endif
}

fn load_x(pair: u32) -> PairX {
    let at = pair * X_WORDS;
    var x: PairX;
    for (var i = 0u; i < 16u; i++) {
        x.quants[i] = x_words[at + i];
    }
    x.totals = vec2<f32>();
    for (var g = 0u; g < 8u; g++) {
        x.scales[g] = bitcast<f32>(x_words[at + 16u + g]);
//# if WEIGHT in ("q4_0", "q4_1")
        x.totals[g / 4u] += bitcast<f32>(x_words[at + 24u + g]);
//# endif
    }
    return x;
}
//# else
fn load_x(pair: u32) -> PairX {
    var x: PairX;
    for (var i = 0u; i < 4u; i++) {
        let four = quants[pair * 4u + i];
        x.quants[4u * i] = four.x;
        x.quants[4u * i + 1u] = four.y;
        x.quants[4u * i + 2u] = four.z;
        x.quants[4u * i + 3u] = four.w;
    }
    for (var g = 0u; g < 8u; g++) {
        x.scales[g] = scales[pair * 2u + g / 4u][g % 4u];
    }
    x.totals = select(vec2<f32>(), totals[pair], HAS_OFFSET);
    return x;
}
//# endif
//# elif STAGED
var<workgroup> x_fours: array<vec4<f32>, X_PAIRS * 17u>;

fn stage(group: u32, first: vec4<f32>, second: vec4<f32>) {
    let at = group / 8u * 17u + group % 8u * 2u;
    x_fours[at] = first;
    x_fours[at + 1u] = second;
}

fn x_four(pair: u32, i: u32) -> vec4<f32> {
    return x_fours[pair * 17u + i];
}
//# else
fn x_four(pair: u32, i: u32) -> vec4<f32> {
    return x[pair * 16u + i];
}
//# endif
