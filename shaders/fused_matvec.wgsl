// y[t, f] = sum_k weight[f, k] * x[t, k] for one or two tokens, with what stands around it in a decoder layer.
// NORM: of x / sqrt(mean(x^2) + EPS) * norm: the weights go into x when it is staged, its size is a factor of the sums.
// RESIDUAL: residual[t, f] is added. GLU: weight is [gate; up], 2 F rows, and y = silu(gate x) * (up x).
// EXPERTS (with GLU): weight is [2 E, F, D], all gates before all ups; slot s is expert ids[s] for token s / SLOTS.
// STAGED: a workgroup brings x into its own memory first (lib/activations.wgsl). A thread works on ROWS rows, one after the
// other: for software adapters, where reductions gain nothing. On GPUs it is pair_matvec.wgsl.
// Bindings: weight, x, state, [ids], [norm], [residual], y. Called by ops/fused.py.
//# include "lib/weight.wgsl"
//# include "lib/activations.wgsl"
//# if NORM
//# include "lib/reduce.wgsl"
//# endif

struct Slice {
    first: u32, // first output that the bound part of the weight gives
    count: u32, // how many
    n: u32, // rows of y
}

//# if WEIGHT == "q8_0_wide"
@group(0) @binding(0) var<storage, read> weight: array<u64>;
//# else
@group(0) @binding(0) var<storage, read> weight: array<u32>;
//# endif
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
//# if EXPERTS
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
//# elif NORM
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
//# if RESIDUAL
@group(0) @binding(4) var<storage, read> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
//# endif
//# elif RESIDUAL
@group(0) @binding(3) var<storage, read> residual: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
//# endif
var<immediate> slice: Slice;

const BLOCKS: u32 = D / 32u;
const X_BLOCKS: u32 = BLOCKS * TOKENS;
const_assert D % 32u == 0u;
//# if GLU
const OUTPUTS: u32 = ROWS / 2u; // of a thread
const_assert ROWS % 2u == 0u;
//# else
const OUTPUTS: u32 = ROWS;
//# endif

//# if GLU
fn put(row: u32, token: u32, gate: f32, up: f32) {
    if (row < slice.count && token < min(slice.n, state[1] * SLOTS)) {
        y[token * F + slice.first + row] = gate / (1.0 + exp(-gate)) * up;
    }
}
//# else
fn put(row: u32, token: u32, sum: f32) {
    if (row < slice.count && token < min(slice.n, state[1])) {
        let at = token * F + slice.first + row;
//# if RESIDUAL
        y[at] = residual[at] + sum;
//# else
        y[at] = sum;
//# endif
    }
}
//# endif

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    let first = group.y * TOKENS;
//# if EXPERTS
    if (first >= state[1] * SLOTS || ids[first] >= E) {
        return;
    }
    let base = ids[first] * F;
    let ups = E * F;
    let last_x = first / SLOTS;
//# else
    if (first >= state[1]) {
        return;
    }
    let base = 0u;
    let ups = slice.count;
    let last_x = min(slice.n, state[1]) - 1u;
//# endif
//# if STAGED
    var scales = array<f32, TOKENS>();
    for (var t = 0u; t < TOKENS; t++) {
        let from_row = min(first + t, last_x) * (D / 4u);
        var squares = 0.0;
        for (var i = tid; i < D / 8u; i += WG) {
            var a = x[from_row + 2u * i];
            var b = x[from_row + 2u * i + 1u];
//# if NORM
            squares += dot(a, a) + dot(b, b);
            a *= norm[2u * i];
            b *= norm[2u * i + 1u];
//# endif
            stage(t * (D / 8u) + i, a, b);
        }
//# if NORM
        scales[t] = 1.0 / sqrt(workgroup_sum(squares, tid) / f32(D) + EPS);
//# else
        scales[t] = 1.0;
//# endif
    }
    workgroupBarrier();
//# else
    var scales = array<f32, TOKENS>();
    for (var t = 0u; t < TOKENS; t++) {
        scales[t] = 1.0;
    }
//# endif
    let row = ((group.x + group.z * groups.x) * WG + tid) * OUTPUTS;
    var sums = array<f32, ROWS * TOKENS>();
    for (var b = 0u; b < BLOCKS; b++) {
        var parts = array<Activations, TOKENS>();
        for (var t = 0u; t < TOKENS; t++) {
//# if STAGED
            parts[t] = activations(t * BLOCKS + b);
//# else
            parts[t] = activations_of(min(first + t, last_x) * BLOCKS + b);
//# endif
        }
        for (var r = 0u; r < ROWS; r++) {
            // Rows beyond the end repeat the last one; they are not written.
            let at = base + min(row + r % OUTPUTS, slice.count - 1u) + select(0u, ups, r >= OUTPUTS);
            let block = load_block((at * BLOCKS + b) * BLOCK_BYTES);
            for (var t = 0u; t < TOKENS; t++) {
                sums[r * TOKENS + t] += product(block, parts[t]);
            }
        }
    }
    for (var r = 0u; r < OUTPUTS; r++) {
        for (var t = 0u; t < TOKENS; t++) {
//# if GLU
            put(row + r, first + t, scales[t] * sums[r * TOKENS + t], scales[t] * sums[(r + OUTPUTS) * TOKENS + t]);
//# else
            put(row + r, first + t, scales[t] * sums[r * TOKENS + t]);
//# endif
        }
    }
}
