// y[t, d] = residual[t, d] + sum_k weights[t, k] * down[ids[t, k], d] . x[t * K + k]: the chosen experts' last matrices and
// their weighted sum, always added in the same order. down is [E, D, F].
// PACKED: a workgroup brings the K rows of x of its token into its own memory first (lib/activations.wgsl). A thread works
// on ROWS rows of y: for software adapters, where reductions gain nothing. On GPUs it is pair_matvec.wgsl.
// Bindings: weight (down), x, ids, weights, state, [residual], y. Called by ops/moe_experts.py.
//# include "lib/weight.wgsl"
//# include "lib/activations.wgsl"

//# if WEIGHT == "q8_0_wide"
@group(0) @binding(0) var<storage, read> weight: array<u64>;
//# else
@group(0) @binding(0) var<storage, read> weight: array<u32>;
//# endif
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
//# if RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
//# endif

const BLOCKS: u32 = F / 32u;
const X_BLOCKS: u32 = K * BLOCKS;
const_assert F % 32u == 0u;

fn put(row: u32, token: u32, sum: f32) {
    if (row < D) {
//# if RESIDUAL
        y[token * D + row] = residual[token * D + row] + sum;
//# else
        y[token * D + row] = sum;
//# endif
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let token = group.y;
    if (token >= state[1]) {
        return;
    }
//# if STAGED
    for (var i = tid; i < K * F / 8u; i += WG) {
        let at = token * (K * F / 4u) + 2u * i;
        stage(i, x[at], x[at + 1u]);
    }
    workgroupBarrier();
//# endif
    let row = (group.x * WG + tid) * ROWS;
    var sums = array<f32, ROWS>();
    for (var b = 0u; b < X_BLOCKS; b++) {
        let slot = token * K + b / BLOCKS;
        let expert = ids[slot];
        if (expert < E) {
//# if STAGED
            let part = activations(b);
//# else
            let part = activations_of(token * X_BLOCKS + b);
//# endif
            for (var r = 0u; r < ROWS; r++) {
                // Rows beyond the end repeat the last one; they are not written.
                let at = (expert * D + min(row + r, D - 1u)) * BLOCKS + b % BLOCKS;
                sums[r] += weights[slot] * product(load_block(at * BLOCK_BYTES), part);
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        put(row + r, token, sums[r]);
    }
}
