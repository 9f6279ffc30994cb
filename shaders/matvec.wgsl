// y[t, f] = sum_k weight[f, k] * x[t, k]   for a few tokens: weights are read once for TOKENS of them.
// A row is shared by LANES threads, each taking every LANES-th block of 32 weights; a thread works on ROWS rows at once
// so that what it loads of x serves them all. LANES = 1 needs no reduction (software adapters).
// PACKED: x comes as int8 in groups of 8 with a scale each (four to a block) and the block's sum of scale * quant; the
// dot products are 4x8-bit.
// GLU: weight is [gate; up], 2 F rows, and y = silu(gate x) * (up x) has F: half of a thread's rows are gates.
// EXPERTS: weight is [E, F, D]; token slot s uses expert ids[s] and row s / SLOTS_PER_X of x.
// BIAS: bias[f] is added; ACT: then a function is applied. Rows of floats may end inside a block (D a multiple of 4).
// Bindings: weight, x (or quants, scales, totals), state, [ids or bias], y. Called by ops/matmul.py.
//# include "lib/weight.wgsl"
//# if ACT != "none"
//# include "lib/gelu.wgsl"
//# endif

struct Slice {
    first: u32, // first row (or expert) that the bound part of the weight holds
    count: u32, // how many
    n: u32, // rows of y
}

//# if WEIGHT == "q8_0_wide"
@group(0) @binding(0) var<storage, read> weight: array<u64>;
//# else
@group(0) @binding(0) var<storage, read> weight: array<u32>;
//# endif
//# if PACKED
@group(0) @binding(1) var<storage, read> quants: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> totals: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
//# if EXPERTS
@group(0) @binding(5) var<storage, read> ids: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
//# elif BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
//# endif
//# else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
//# if EXPERTS
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
//# elif BIAS
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
//# endif
//# endif
var<immediate> slice: Slice;

const BLOCKS: u32 = (D + 31u) / 32u;
const GROUPS: u32 = WG / LANES; // groups of threads, each with its own ROWS rows
const_assert D % 4u == 0u;
const_assert WG % LANES == 0u;
//# if GLU
const OUTPUTS: u32 = ROWS / 2u; // of a thread
const_assert ROWS % 2u == 0u;
//# else
const OUTPUTS: u32 = ROWS;
//# endif

//# if LANES > 1
var<workgroup> partial: array<f32, WG * ROWS * TOKENS>;
//# endif

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    let lane = tid % LANES;
    // One thread a row is for CPU drivers. They give every core one run of the grid: tokens lie along x there, as a prompt's
    // last ones are often not there, and slots of experts that this part has not end at once.
    let place = select(group.xy, group.yx, LANES == 1u);
    let along = select(groups.x, groups.y, LANES == 1u);
    let token = place.y * TOKENS;
//# if EXPERTS
    let expert = ids[token];
    if (token >= state[1] * SLOTS || expert < slice.first || expert >= slice.first + slice.count) {
        return;
    }
    let rows = F;
    let base = (expert - slice.first) * F;
    let out = 0u;
    let last = token;
    let last_x = token / SLOTS_PER_X;
//# else
    if (token >= state[1]) {
        return;
    }
    let rows = slice.count;
    let base = 0u;
    let out = slice.first;
    let last = min(slice.n, state[1]) - 1u;
    let last_x = last;
//# endif
    let row = ((place.x + group.z * along) * GROUPS + tid / LANES) * OUTPUTS;
    var sums = array<f32, ROWS * TOKENS>();
    for (var b = lane; b < BLOCKS; b += LANES) {
        var blocks: array<Block, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            // Rows beyond the end repeat the last one; they are not written.
//# if GLU
            let at = min(row + r % OUTPUTS, F - 1u) + select(0u, F, r >= OUTPUTS);
//# else
            let at = base + min(row + r, rows - 1u);
//# endif
//# if D % 32
            blocks[r] = load_fours(at * ROW_BYTES + b * BLOCK_BYTES, D / 4u - b * 8u);
//# else
            blocks[r] = load_block((at * BLOCKS + b) * BLOCK_BYTES);
//# endif
        }
//# if PACKED
        for (var t = 0u; t < TOKENS; t++) {
//# if EXPERTS
            let at = last_x * BLOCKS + b;
//# else
            let at = min(token + t, last_x) * BLOCKS + b;
//# endif
            let scale = scales[at];
            var parts = array<f32, ROWS>();
            for (var g = 0u; g < 4u; g++) {
                let first = quants[at * 8u + 2u * g];
                let second = quants[at * 8u + 2u * g + 1u];
                for (var r = 0u; r < ROWS; r++) {
                    let dots = dot4I8Packed(blocks[r].quants[2u * g], first)
                        + dot4I8Packed(blocks[r].quants[2u * g + 1u], second);
                    parts[r] += scale[g] * f32(dots);
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                var part = blocks[r].scale * parts[r];
                if (HAS_OFFSET) {
                    part += blocks[r].offset * totals[at];
                }
                sums[r * TOKENS + t] += part;
            }
        }
//# else
        var parts = array<f32, ROWS * TOKENS>();
        var x_sums = array<f32, TOKENS>();
        for (var i = 0u; i < 8u; i++) {
            var fours: array<vec4<f32>, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                fours[r] = four(blocks[r].quants[i]);
            }
            for (var t = 0u; t < TOKENS; t++) {
//# if EXPERTS
                let x4 = x[last_x * (D / 4u) + b * 8u + i];
//# elif D % 32
                let x4 = x[min(token + t, last_x) * (D / 4u) + min(b * 8u + i, D / 4u - 1u)]; // beyond the end: times 0
//# else
                let x4 = x[min(token + t, last_x) * (D / 4u) + b * 8u + i];
//# endif
                if (HAS_OFFSET) {
                    x_sums[t] += dot(x4, vec4<f32>(1.0));
                }
                for (var r = 0u; r < ROWS; r++) {
                    parts[r * TOKENS + t] += dot(fours[r], x4);
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            for (var t = 0u; t < TOKENS; t++) {
                var part = blocks[r].scale * parts[r * TOKENS + t];
                if (HAS_OFFSET) {
                    part += blocks[r].offset * x_sums[t];
                }
                sums[r * TOKENS + t] += part;
            }
        }
//# endif
    }
//# if LANES > 1
    for (var i = 0u; i < ROWS * TOKENS; i++) {
        partial[i * WG + tid] = sums[i];
    }
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            for (var i = 0u; i < ROWS * TOKENS; i++) {
                partial[i * WG + tid] += partial[i * WG + tid + half];
            }
        }
    }
    workgroupBarrier();
    if (lane != 0u) {
        return;
    }
    for (var i = 0u; i < ROWS * TOKENS; i++) {
        sums[i] = partial[i * WG + tid];
    }
//# endif
//# if GLU
    for (var r = 0u; r < OUTPUTS; r++) {
        for (var t = 0u; t < TOKENS; t++) {
            if (row + r < F && token + t <= last) {
                let gate = sums[r * TOKENS + t];
                y[(token + t) * F + row + r] = gate / (1.0 + exp(-gate)) * sums[(r + OUTPUTS) * TOKENS + t];
            }
        }
    }
//# else
    for (var r = 0u; r < ROWS; r++) {
        for (var t = 0u; t < TOKENS; t++) {
            if (row + r < rows && token + t <= last) {
                var sum = sums[r * TOKENS + t];
//# if BIAS
                sum += bias[out + row + r];
//# endif
//# if ACT != "none"
                sum = activate(sum);
//# endif
                y[(token + t) * F + out + row + r] = sum;
            }
        }
    }
//# endif
}
