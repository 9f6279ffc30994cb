// y = weight * x / sqrt(mean(x^2) + EPS), one workgroup a row of D values, and y in 8 bits as quantize_q8.wgsl has it: int8
// in groups of 8 with a scale each, and for every block of 32 the sum of scale * quant. One thread a group of 8.
// RESIDUAL: x is first added to the residual stream, and the sum is written, too.
// Bindings: x, [residual], weight, state, [sum], y, quants, scales, sums. Called by ops/norm.py.
//# include "lib/reduce.wgsl"
//# include "lib/eight.wgsl"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
//# if RESIDUAL
@group(0) @binding(1) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> sum: array<vec4<f32>>;
//# endif
@group(0) @binding(WEIGHT_AT) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(WEIGHT_AT + 1u) var<storage, read> state: array<u32>;
@group(0) @binding(Y_AT) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(Y_AT + 1u) var<storage, read_write> quants: array<vec2<u32>>;
@group(0) @binding(Y_AT + 2u) var<storage, read_write> scales: array<f32>;
@group(0) @binding(Y_AT + 3u) var<storage, read_write> sums: array<f32>;

const WEIGHT_AT: u32 = 1u + u32(RESIDUAL);
const Y_AT: u32 = WEIGHT_AT + 2u + u32(RESIDUAL);
const GROUPS: u32 = D / 8u;
const EACH: u32 = (GROUPS + WG - 1u) / WG; // groups a thread keeps in registers
const_assert D % 32u == 0u;

var<workgroup> group_sums: array<f32, GROUPS>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let row = group.x;
    if (row >= state[1]) {
        return;
    }
    var firsts = array<vec4<f32>, EACH>();
    var seconds = array<vec4<f32>, EACH>();
    var squares = 0.0;
    for (var i = 0u; i < EACH; i++) {
        let g = i * WG + tid;
        if (g < GROUPS) {
            let at = (row * GROUPS + g) * 2u;
            var first = x[at];
            var second = x[at + 1u];
//# if RESIDUAL
            first += residual[at];
            second += residual[at + 1u];
            sum[at] = first;
            sum[at + 1u] = second;
//# endif
            firsts[i] = first;
            seconds[i] = second;
            squares += dot(first, first) + dot(second, second);
        }
    }
    let size = 1.0 / sqrt(workgroup_sum(squares, tid) / f32(D) + EPS);
    for (var i = 0u; i < EACH; i++) {
        let g = i * WG + tid;
        if (g < GROUPS) {
            let at = (row * GROUPS + g) * 2u;
            let first = weight[2u * g] * (firsts[i] * size);
            let second = weight[2u * g + 1u] * (seconds[i] * size);
            y[at] = first;
            y[at + 1u] = second;
            let eight = eight_of(first, second);
            quants[row * GROUPS + g] = eight.quants;
            scales[row * GROUPS + g] = eight.scale;
            group_sums[g] = eight.total;
        }
    }
    workgroupBarrier();
    for (var b = tid; b < D / 32u; b += WG) {
        let g = 4u * b;
        sums[row * (D / 32u) + b] = group_sums[g] + group_sums[g + 1u] + group_sums[g + 2u] + group_sums[g + 3u];
    }
}
