// y[t, f] = sum_k weight[f, k] * x[t, k] for a few tokens, with what stands around it in a decoder layer: for GPUs.
// A row is PAIRS pairs of 32 weights (lib/pair.wgsl), LANES threads share it; a thread takes every LANES-th pair of ROWS rows,
// which lie so that the threads of a workgroup read whole rows side by side. The first pairs are asked for before x is staged.
// STAGED: a workgroup brings x into its own memory first (lib/pair_x.wgsl). NORM: as x / sqrt(mean(x^2) + EPS) * norm; the
// weights go into x, its size is a factor of the sums. KEEP: the first workgroup writes that x to h.
// BIAS, ACT, RESIDUAL: y = ACT(sum + bias[f]) + residual[t, f].
// GLU: weight is [gate; up] and y = silu(gate x) * (up x): half of a thread's rows are gates.
// EXPERTS: row s of y is expert ids[s] of weight [E, F, D] for row s / SLOTS_PER_X of x; with GLU weight is [2 E, F, D].
// RANK: the ids are made of the router's logits first (lib/rank.wgsl), by every workgroup; the first of each row writes its id
// and its weight for others.
// GATHER: a row is SLOTS pieces: y[t, f] = sum_k shares[t, k] * weight[ids[t, k], f] . x[t * SLOTS + k], so that D is SLOTS times
// the width of x.
// Bindings: weight, x or quants, state, [norm or scales or logits or ids, shares or totals], [residual or bias or ids], y, [h],
// [ids, shares]. Called by ops/pair_matvec.py, which counts what comes before y: Y_AT.
//# if WEIGHT in ("f32", "f16", "bf16")
//# include "lib/pair_float.wgsl"
//# else
//# include "lib/pair_" ~ WEIGHT ~ ".wgsl"
//# include "lib/pair.wgsl"
//# endif
//# include "lib/pair_x.wgsl"
//# if RANK
//# include "lib/rank.wgsl"
//# endif
//# if ACT != "none"
//# include "lib/gelu.wgsl"
//# endif

struct Slice {
    first: u32, // first row, or expert, that the bound part of the weight holds; GLU: first column of y
    count: u32, // how many
    n: u32, // rows of y; nothing where there are EXPERTS or GATHER
}

//# if WEIGHT in ("f32", "f16", "bf16")
@group(0) @binding(0) var<storage, read> weight: array<vec4<u32>>;
//# else
@group(0) @binding(0) var<storage, read> weight: array<u32>;
//# endif
//# if PACKED and not STAGED
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read> scales: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> totals: array<vec2<f32>>;
//# else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
//# if NORM
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
//# elif RANK
@group(0) @binding(3) var<storage, read> logits: array<f32>;
//# elif GATHER
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read> shares: array<f32>;
//# endif
//# endif
//# if EXPERTS and not RANK
@group(0) @binding(Y_AT - 1u) var<storage, read> ids: array<u32>;
//# elif RESIDUAL
@group(0) @binding(Y_AT - 1u) var<storage, read> residual: array<f32>;
//# elif BIAS
@group(0) @binding(Y_AT - 1u) var<storage, read> bias: array<f32>;
//# endif
@group(0) @binding(Y_AT) var<storage, read_write> y: array<f32>;
//# if KEEP
@group(0) @binding(Y_AT + 1u) var<storage, read_write> h: array<vec4<f32>>;
//# elif RANK
@group(0) @binding(Y_AT + 1u) var<storage, read_write> ids: array<u32>;
@group(0) @binding(Y_AT + 2u) var<storage, read_write> shares: array<f32>;
//# endif
//# if PARTS
var<immediate> slice: Slice;
//# else
const slice = Slice(FIRST, COUNT, N);
//# endif

const PAIRS: u32 = D / 64u;
const X_PAIRS: u32 = PAIRS * TOKENS;
const ROUNDS: u32 = (PAIRS + LANES - 1u) / LANES;
//# if STAGED
const STEPS: u32 = (D / 8u + WG - 1u) / WG; // to stage a row of x
//# endif
const GROUPS: u32 = WG / LANES; // groups of threads, each with its own ROWS rows
const OUTPUTS: u32 = select(ROWS, ROWS / 2u, GLU); // of a thread
const STRIDE: u32 = LANES + 1u; // so that lanes and groups both lie in different banks
const_assert D % 64u == 0u;
const_assert WG % LANES == 0u && (!NORM || WG >= 16u * TOKENS);
const_assert ROWS % 2u == 0u || !GLU;
var<workgroup> partial: array<f32, ROWS * TOKENS * GROUPS * STRIDE>;
//# if NORM
var<workgroup> squares: array<f32, WG * TOKENS>;
var<workgroup> square_sums: array<f32, 16u * TOKENS>;
//# endif

//# if NORM
fn norm_scale(t: u32) -> f32 {
    var size = 0.0;
    for (var j = 0u; j < 16u; j++) {
        size += square_sums[t * 16u + j];
    }
    return 1.0 / sqrt(size / f32(D) + EPS);
}
//# endif

fn total_of(sum: u32, group: u32) -> f32 {
    var total = 0.0;
    for (var lane = 0u; lane < LANES; lane++) {
        total += partial[(sum * GROUPS + group) * STRIDE + lane];
    }
    return total;
}

// Number of the pair in the weight: number b of a row of one output.
fn pair_at(base: u32, row: u32, b: u32, token: u32) -> u32 {
//# if GATHER
    let piece = PAIRS / SLOTS;
    let expert = min(ids[token * SLOTS + b / piece], E - 1u); // of one that is not there x is 0
    return (expert * F + row) * piece + b % piece;
//# else
    return (base + row) * PAIRS + b;
//# endif
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    let token = group.y * TOKENS;
//# if EXPERTS
//# if RANK
    if (token >= state[1] * SLOTS) {
        return;
    }
//# else
    let expert = ids[token];
    let first_expert = select(slice.first, 0u, GLU);
    if (token >= state[1] * SLOTS || expert < first_expert || expert >= first_expert + select(slice.count, E, GLU)) {
        return;
    }
    let base = (expert - first_expert) * F;
//# endif
    let rows = F;
    let ups = E * F;
    let column = 0u;
    let last = token;
    let last_x = token / SLOTS_PER_X;
//# else
    if (token >= state[1]) {
        return;
    }
    let rows = slice.count;
    let base = 0u;
    let ups = rows;
    let column = slice.first;
    let last = min(slice.n, state[1]) - 1u;
    let last_x = last;
//# endif
    let lane = tid % LANES;
    let start = (group.x + group.z * groups.x) * GROUPS * OUTPUTS;
    var at = array<u32, ROWS>();
    for (var r = 0u; r < ROWS; r++) {
        // Rows beyond the end repeat the last one; they are not written.
        at[r] = min(start + tid / LANES + r % OUTPUTS * GROUPS, rows - 1u) + select(0u, ups, r >= OUTPUTS);
    }
    var pairs = array<Pair, ROWS>();
//# if STAGED
    var held = array<vec4<f32>, 2u * STEPS * TOKENS>();
//# endif
    // It is never 0 here. Out of a branch that may not be taken a driver moves no loads to where their results are needed.
    if (state[1] != 0u) {
//# if STAGED
        for (var s = 0u; s < STEPS * TOKENS; s++) {
            let i = min(s % STEPS * WG + tid, D / 8u - 1u);
            let from_x = min(token + s / STEPS, last_x) * (D / 4u) + 2u * i;
            held[2u * s] = x[from_x];
            held[2u * s + 1u] = x[from_x + 1u];
        }
//# endif
//# if RANK
    }
    let expert = ranked(token / SLOTS, token % SLOTS, tid);
    let base = expert * F;
    if (state[1] != 0u) {
//# endif
        for (var r = 0u; r < ROWS; r++) {
            pairs[r] = load_pair(pair_at(base, at[r], min(lane, PAIRS - 1u), token));
        }
    }
//# if STAGED
    for (var t = 0u; t < TOKENS; t++) {
        var size = 0.0;
        for (var s = 0u; s < STEPS; s++) { // counts that the compiler knows are written out by it
            let i = s * WG + tid;
            if (D / 8u % WG != 0u && i >= D / 8u) {
                break;
            }
            var a = held[2u * (t * STEPS + s)];
            var b = held[2u * (t * STEPS + s) + 1u];
//# if NORM
            size += dot(a, a) + dot(b, b);
            a *= norm[2u * i];
            b *= norm[2u * i + 1u];
//# elif GATHER
            let slot = token * SLOTS + i / (D / SLOTS / 8u);
            let share = select(0.0, shares[slot], ids[slot] < E);
            a *= share;
            b *= share;
//# endif
            stage(t * (D / 8u) + i, a, b);
        }
//# if NORM
        squares[t * WG + tid] = size;
//# endif
    }
    workgroupBarrier();
//# if NORM
    if (tid < 16u * TOKENS) {
        var size = 0.0;
        for (var j = 0u; j < WG / 16u; j++) {
            size += squares[tid / 16u * WG + j * 16u + tid % 16u];
        }
        for (var j = WG / 16u * 16u + tid % 16u; j < WG; j += 16u) {
            size += squares[tid / 16u * WG + j];
        }
        square_sums[tid] = size;
    }
//# endif
//# endif
    var sums = array<f32, ROWS * TOKENS>();
    for (var round = 0u; round < ROUNDS; round++) {
        let b = round * LANES + lane;
        if (round > 0u) {
            for (var r = 0u; r < ROWS; r++) {
                pairs[r] = load_pair(pair_at(base, at[r], min(b, PAIRS - 1u), token));
            }
        }
        if (PAIRS % LANES == 0u || b < PAIRS) {
//# if PACKED
            for (var t = 0u; t < TOKENS; t++) {
//# if STAGED
                let xs = load_x(t * PAIRS + b);
//# else
                let xs = load_x(min(token + t, last_x) * PAIRS + b);
//# endif
                var parts = array<vec2<f32>, ROWS>();
                var g = 0u; // a constant for the compiler, as this is written out
//# for _ in range(8)
                for (var r = 0u; r < ROWS; r++) {
                    let dots = dot4I8Packed(pair_quants(pairs[r], 2u * g), xs.quants[2u * g])
                        + dot4I8Packed(pair_quants(pairs[r], 2u * g + 1u), xs.quants[2u * g + 1u]);
                    parts[r][g / 4u] += xs.scales[g] * f32(dots);
                }
                g++;
//# endfor
                for (var r = 0u; r < ROWS; r++) {
                    sums[r * TOKENS + t] += dot(pair_scales(pairs[r]), parts[r]);
                    if (HAS_OFFSET) {
                        sums[r * TOKENS + t] += dot(pair_offsets(pairs[r]), xs.totals);
                    }
                }
            }
//# else
            var parts = array<vec2<f32>, ROWS * TOKENS>();
            var x_sums = array<vec2<f32>, TOKENS>();
            var i = 0u; // a constant for the compiler, as this is written out
//# for _ in range(16)
            {
                var fours = array<vec4<f32>, ROWS>();
                for (var r = 0u; r < ROWS; r++) {
                    fours[r] = pair_four(pairs[r], i);
                }
                for (var t = 0u; t < TOKENS; t++) {
//# if STAGED
                    let x4 = x_four(t * PAIRS + b, i);
//# else
                    let x4 = x_four(min(token + t, last_x) * PAIRS + b, i);
//# endif
                    if (HAS_OFFSET) {
                        x_sums[t][i / 8u] += dot(x4, vec4<f32>(1.0));
                    }
                    for (var r = 0u; r < ROWS; r++) {
                        parts[r * TOKENS + t][i / 8u] += dot(fours[r], x4);
                    }
                }
                i++;
            }
//# endfor
            for (var r = 0u; r < ROWS; r++) {
                for (var t = 0u; t < TOKENS; t++) {
                    sums[r * TOKENS + t] += dot(pair_scales(pairs[r]), parts[r * TOKENS + t]);
                    if (HAS_OFFSET) {
                        sums[r * TOKENS + t] += dot(pair_offsets(pairs[r]), x_sums[t]);
                    }
                }
            }
//# endif
        }
    }
    for (var i = 0u; i < ROWS * TOKENS; i++) {
        partial[(i * GROUPS + tid / LANES) * STRIDE + lane] = sums[i];
    }
    workgroupBarrier();
    for (var step = 0u; step < GROUPS * OUTPUTS * TOKENS; step += WG) {
        let i = step + tid;
        let t = i / (GROUPS * OUTPUTS);
        let row = start + i % (GROUPS * OUTPUTS);
        let r = i / GROUPS % OUTPUTS;
        if (row < rows && t < TOKENS && token + t <= last) {
            var scale = 1.0;
//# if NORM
            scale = norm_scale(t);
//# endif
            var sum = scale * total_of(r * TOKENS + t, i % GROUPS);
            let to = (token + t) * WIDTH + column + row;
//# if GLU
            sum = sum / (1.0 + exp(-sum)) * scale * total_of((r + OUTPUTS) * TOKENS + t, i % GROUPS);
//# endif
//# if BIAS
            sum += bias[column + row];
//# endif
//# if ACT != "none"
            sum = activate(sum);
//# endif
//# if RESIDUAL
            sum += residual[to];
//# endif
            y[to] = sum;
        }
    }
//# if KEEP
    if (group.x + group.z == 0u) {
        for (var t = 0u; t < TOKENS && token + t <= last; t++) {
            for (var i = tid; i < D / 4u; i += WG) {
                h[(token + t) * (D / 4u) + i] = norm[i] * (x[(token + t) * (D / 4u) + i] * norm_scale(t));
            }
        }
    }
//# endif
//# if RANK
    if (group.x + group.z + tid == 0u) {
        ids[token] = expert;
        shares[token] = share(token / SLOTS, token % SLOTS);
    }
//# endif
}
