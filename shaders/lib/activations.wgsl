// Activations in blocks of 32, each to meet a block of 32 weights (lib/block.wgsl); a thread loads one once for all its rows.
// STAGED: in workgroup memory, X_BLOCKS of them: a workgroup calls stage for every group of 8, then a barrier. Float32, or
// PACKED: int8 in groups of 8 with a scale each (as in quantize_q8.wgsl) and, for weights with an offset, their sums.
// Else read from the binding x: on a CPU workgroup memory is no faster, and an address that all threads share is one load.
//# if PACKED
//# include "lib/eight.wgsl"
struct Activations {
    quants: array<u32, 8>,
    scales: array<f32, 4>,
    total: f32, // of scale * quant
}
var<workgroup> x_quants: array<u32, X_BLOCKS * 8u>;
var<workgroup> x_scales: array<f32, X_BLOCKS * 4u>;
//# if WEIGHT in ("q4_0", "q4_1")
var<workgroup> x_totals: array<f32, X_BLOCKS * 4u>;
//# endif

fn stage(group: u32, first: vec4<f32>, second: vec4<f32>) {
    let eight = eight_of(first, second);
    x_quants[group * 2u] = eight.quants.x;
    x_quants[group * 2u + 1u] = eight.quants.y;
    x_scales[group] = eight.scale;
//# if WEIGHT in ("q4_0", "q4_1")
    x_totals[group] = eight.total;
//# endif
}

fn activations(block: u32) -> Activations {
    var x: Activations;
    for (var i = 0u; i < 8u; i++) {
        x.quants[i] = x_quants[block * 8u + i];
    }
    x.total = 0.0;
    for (var g = 0u; g < 4u; g++) {
        x.scales[g] = x_scales[block * 4u + g];
//# if WEIGHT in ("q4_0", "q4_1")
        x.total += x_totals[block * 4u + g];
//# endif
    }
    return x;
}

fn product(w: Block, x: Activations) -> f32 {
    var sum = 0.0;
    for (var g = 0u; g < 4u; g++) {
        let dots = dot4I8Packed(w.quants[2u * g], x.quants[2u * g])
            + dot4I8Packed(w.quants[2u * g + 1u], x.quants[2u * g + 1u]);
        sum += x.scales[g] * f32(dots);
    }
    return w.scale * sum + select(0.0, w.offset * x.total, HAS_OFFSET);
}
//# else
struct Activations {
    fours: array<vec4<f32>, 8>,
    total: f32,
}

//# if STAGED
// A block's eight lie nine apart, so that neighbours in a subgroup read from different banks.
var<workgroup> x_fours: array<vec4<f32>, X_BLOCKS * 9u>;

fn stage(group: u32, first: vec4<f32>, second: vec4<f32>) {
    let at = group / 4u * 9u + group % 4u * 2u;
    x_fours[at] = first;
    x_fours[at + 1u] = second;
}

fn activations(block: u32) -> Activations {
    var x: Activations;
    x.total = 0.0;
    for (var i = 0u; i < 8u; i++) {
        x.fours[i] = x_fours[block * 9u + i];
        if (HAS_OFFSET) {
            x.total += dot(x.fours[i], vec4<f32>(1.0));
        }
    }
    return x;
}
//# else
fn activations_of(block: u32) -> Activations {
    var found: Activations;
    found.total = 0.0;
    for (var i = 0u; i < 8u; i++) {
        found.fours[i] = x[block * 8u + i];
        if (HAS_OFFSET) {
            found.total += dot(found.fours[i], vec4<f32>(1.0));
        }
    }
    return found;
}
//# endif

fn product(w: Block, x: Activations) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) {
        sum += dot(four(w.quants[i]), x.fours[i]);
    }
    return w.scale * sum + select(0.0, w.offset * x.total, HAS_OFFSET);
}
//# endif
