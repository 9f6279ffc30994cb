// y[t, f] = sum_k weight[f, k] * x[t, k]   for many tokens: a workgroup of SIDE_F x SIDE_T threads computes ROWS * SIDE_F
// rows of TOKENS * SIDE_T tokens, ROWS x TOKENS of them a thread, from tiles of DEPTH blocks that it stages in workgroup
// memory, four words side by side for every row and token.
// Float: the weights are dequantised into the tile. PACKED: int8 quants of rows and tokens are staged as they are, the
// dot products are 4x8-bit, and every group of 8 is scaled in float.
// GLU: weight is [gate; up], 2 F rows, and y = silu(gate x) * (up x) has F: half of a tile's rows are gates.
// EXPERTS: weight is [E, F, D] (GLU: [2 E, F, D], all gates first); tile t has the token slots of one expert that
// moe_sort gave it, slot s reads row s / SLOTS_PER_X of x and writes row s of y. GATED: y = silu(gate) * y instead.
// BIAS: bias[f] is added; ACT: then a function is applied. Rows of floats may end inside a block (D a multiple of 4).
// Bindings: weight, x (or quants, scales, totals), state, [slots, experts], [bias or gate], y. Called by ops/tiled.py.
//# if PAIRS
//# include "lib/pair.wgsl"
//# include "lib/pair_" ~ WEIGHT ~ ".wgsl"
//# else
//# include "lib/weight.wgsl"
//# endif
//# if ACT != "none"
//# include "lib/gelu.wgsl"
//# endif

struct Slice {
    first: u32, // first row (or expert) that the bound part of the weight holds
    count: u32, // how many
    n: u32, // rows of y
}

@group(0) @binding(0) var<storage, read> weight: array<u32>;
//# if PACKED
@group(0) @binding(1) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> totals: array<f32>;
//# else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
//# endif
@group(0) @binding(STATE_AT) var<storage, read> state: array<u32>;
//# if EXPERTS
@group(0) @binding(STATE_AT + 1u) var<storage, read> slots: array<u32>;
@group(0) @binding(STATE_AT + 2u) var<storage, read> experts: array<u32>;
//# endif
//# if BIAS
@group(0) @binding(AFTER_AT) var<storage, read> bias: array<f32>;
//# elif GATED
@group(0) @binding(AFTER_AT) var<storage, read> gate: array<f32>;
//# endif
@group(0) @binding(AFTER_AT + u32(BIAS || GATED)) var<storage, read_write> y: array<f32>;
var<immediate> slice: Slice;

const STATE_AT: u32 = 2u + 2u * u32(PACKED);
const AFTER_AT: u32 = STATE_AT + 1u + 2u * u32(EXPERTS);
const WG: u32 = SIDE_F * SIDE_T;
const TILE_F: u32 = SIDE_F * ROWS;
const TILE_T: u32 = SIDE_T * TOKENS;
const BLOCKS: u32 = (D + 31u) / 32u;
const NONE: u32 = 0xFFFFFFFFu;
const_assert D % 4u == 0u;
//# if PAIRS
const_assert DEPTH % 2u == 0u;
//# endif
//# if GLU
const_assert ROWS % 2u == 0u;
const HALF: u32 = TILE_F / 2u; // rows of y in a tile
//# else
const HALF: u32 = TILE_F;
//# endif

//# if PACKED
var<workgroup> weight_tile: array<vec4<u32>, 2u * DEPTH * TILE_F>;
var<workgroup> weight_scales: array<f32, DEPTH * TILE_F>;
var<workgroup> x_tile: array<vec4<u32>, 2u * DEPTH * TILE_T>;
var<workgroup> x_scales: array<vec4<f32>, DEPTH * TILE_T>;
//# if WEIGHT != "q8_0"
var<workgroup> weight_offsets: array<f32, DEPTH * TILE_F>;
var<workgroup> x_totals: array<f32, DEPTH * TILE_T>;
//# endif
//# else
var<workgroup> weight_tile: array<vec4<f32>, 8u * DEPTH * TILE_F>;
var<workgroup> x_tile: array<vec4<f32>, 8u * DEPTH * TILE_T>;
//# endif
//# if EXPERTS
var<workgroup> x_rows: array<u32, TILE_T>;
//# endif

//# if PAIRS
// Blocks d and d + 1 of row `at` of the tile.
fn store_pair(d: u32, at: u32, pair: Pair) {
    let scales_of = pair_scales(pair);
    let offsets_of = pair_offsets(pair);
//# if PACKED
    for (var i = 0u; i < 4u; i++) {
        weight_tile[(2u * d + i) * TILE_F + at] = vec4<u32>(
            pair_quants(pair, 4u * i),
            pair_quants(pair, 4u * i + 1u),
            pair_quants(pair, 4u * i + 2u),
            pair_quants(pair, 4u * i + 3u),
        );
    }
    weight_scales[d * TILE_F + at] = scales_of.x;
    weight_scales[(d + 1u) * TILE_F + at] = scales_of.y;
//# if WEIGHT != "q8_0"
    weight_offsets[d * TILE_F + at] = offsets_of.x;
    weight_offsets[(d + 1u) * TILE_F + at] = offsets_of.y;
//# endif
//# else
    for (var i = 0u; i < 16u; i++) {
        weight_tile[(8u * d + i) * TILE_F + at] = scales_of[i / 8u] * pair_four(pair, i) + offsets_of[i / 8u];
    }
//# endif
}
//# else
// Block d of row `at` of the tile.
fn store_block(d: u32, at: u32, block: Block) {
//# if PACKED
    let q = block.quants;
    weight_tile[2u * d * TILE_F + at] = vec4<u32>(q[0], q[1], q[2], q[3]);
    weight_tile[(2u * d + 1u) * TILE_F + at] = vec4<u32>(q[4], q[5], q[6], q[7]);
    weight_scales[d * TILE_F + at] = block.scale;
//# if WEIGHT != "q8_0"
    weight_offsets[d * TILE_F + at] = block.offset;
//# endif
//# else
    var fours = block.quants;
    for (var i = 0u; i < 8u; i++) {
        weight_tile[(8u * d + i) * TILE_F + at] = block.scale * four(fours[i]) + block.offset;
    }
//# endif
}
//# endif

// Blocks past the end of a row count as zero.
fn store_nothing(d: u32, at: u32) {
//# if PACKED
    weight_scales[d * TILE_F + at] = 0.0;
//# if WEIGHT != "q8_0"
    weight_offsets[d * TILE_F + at] = 0.0;
//# endif
//# else
    for (var i = 0u; i < 8u; i++) {
        weight_tile[(8u * d + i) * TILE_F + at] = vec4<f32>();
    }
//# endif
}

// The row of the weight that line `at` of the tile shows; rows beyond the end repeat the last one.
fn weight_row(base: u32, row0: u32, rows: u32, at: u32) -> u32 {
//# if GLU
    return base + min(row0 + at % HALF, rows - 1u) + select(0u, UPS, at >= HALF);
//# else
    return base + min(row0 + at, rows - 1u);
//# endif
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let row0 = group.x * HALF;
    let token0 = group.y * TILE_T;
//# if EXPERTS
    let expert = experts[group.y];
    if (expert < slice.first || expert >= slice.first + slice.count) {
        return;
    }
    let base = (expert - slice.first) * F;
    let rows = F;
    let out = 0u;
    for (var i = tid; i < TILE_T; i += WG) {
        let slot = slots[token0 + i];
        x_rows[i] = select(slot, slots[token0], slot == NONE) / SLOTS_PER_X;
    }
//# else
    if (token0 >= state[1]) {
        return;
    }
    let last = min(slice.n, state[1]) - 1u;
    let base = 0u;
    let out = slice.first;
//# if GLU
    let rows = F;
//# else
    let rows = slice.count;
//# endif
//# endif
    let tx = tid % SIDE_F;
    let ty = tid / SIDE_F;
    var sums = array<f32, ROWS * TOKENS>();
    for (var b0 = 0u; b0 < BLOCKS; b0 += DEPTH) {
        workgroupBarrier();
//# if PAIRS
        for (var i = tid; i < TILE_F * DEPTH / 2u; i += WG) {
            let at = i / (DEPTH / 2u);
            let d = 2u * (i % (DEPTH / 2u));
            if (b0 + d < BLOCKS) {
                store_pair(d, at, load_pair(weight_row(base, row0, rows, at) * (BLOCKS / 2u) + (b0 + d) / 2u));
            } else {
                store_nothing(d, at);
                store_nothing(d + 1u, at);
            }
        }
//# else
        for (var i = tid; i < TILE_F * DEPTH; i += WG) {
            let at = i / DEPTH;
            let b = b0 + i % DEPTH;
            if (b < BLOCKS) {
//# if D % 32
                let row = weight_row(base, row0, rows, at);
                store_block(i % DEPTH, at, load_fours(row * ROW_BYTES + b * BLOCK_BYTES, D / 4u - b * 8u));
//# else
                store_block(i % DEPTH, at, load_block((weight_row(base, row0, rows, at) * BLOCKS + b) * BLOCK_BYTES));
//# endif
            } else {
                store_nothing(i % DEPTH, at);
            }
        }
//# endif
        stage_x(token0, b0, tid);
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
//# if PACKED
            var low: array<vec4<u32>, ROWS>;
            var high: array<vec4<u32>, ROWS>;
            var factors: array<f32, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                low[r] = weight_tile[2u * d * TILE_F + r * SIDE_F + tx];
                high[r] = weight_tile[(2u * d + 1u) * TILE_F + r * SIDE_F + tx];
                factors[r] = weight_scales[d * TILE_F + r * SIDE_F + tx];
            }
            for (var t = 0u; t < TOKENS; t++) {
                let token = t * SIDE_T + ty;
                let a = x_tile[2u * d * TILE_T + token];
                let b = x_tile[(2u * d + 1u) * TILE_T + token];
                let scale = x_scales[d * TILE_T + token];
                for (var r = 0u; r < ROWS; r++) {
                    let first = dot4I8Packed(low[r].x, a.x) + dot4I8Packed(low[r].y, a.y);
                    let second = dot4I8Packed(low[r].z, a.z) + dot4I8Packed(low[r].w, a.w);
                    let third = dot4I8Packed(high[r].x, b.x) + dot4I8Packed(high[r].y, b.y);
                    let fourth = dot4I8Packed(high[r].z, b.z) + dot4I8Packed(high[r].w, b.w);
                    var part = scale.x * f32(first) + scale.y * f32(second);
                    part += scale.z * f32(third) + scale.w * f32(fourth);
//# if WEIGHT != "q8_0"
                    let total = x_totals[d * TILE_T + token];
                    sums[r * TOKENS + t] += weight_offsets[d * TILE_F + r * SIDE_F + tx] * total;
//# endif
                    sums[r * TOKENS + t] += factors[r] * part;
                }
            }
//# else
            for (var i = 0u; i < 8u; i++) {
                var fours: array<vec4<f32>, ROWS>;
                for (var r = 0u; r < ROWS; r++) {
                    fours[r] = weight_tile[(8u * d + i) * TILE_F + r * SIDE_F + tx];
                }
                for (var t = 0u; t < TOKENS; t++) {
                    let x4 = x_tile[(8u * d + i) * TILE_T + t * SIDE_T + ty];
                    for (var r = 0u; r < ROWS; r++) {
                        sums[r * TOKENS + t] += dot(fours[r], x4);
                    }
                }
            }
//# endif
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        let token = token0 + t * SIDE_T + ty;
//# if EXPERTS
        let to = slots[token];
        let wanted = to != NONE;
//# else
        let to = token;
        let wanted = token <= last;
//# endif
        for (var r = 0u; r < ROWS * HALF / TILE_F; r++) {
            let row = row0 + r * SIDE_F + tx;
            if (wanted && row < rows) {
                let at = to * F + out + row;
                var sum = sums[r * TOKENS + t];
//# if GLU
                sum = sum / (1.0 + exp(-sum)) * sums[(r + ROWS / 2u) * TOKENS + t];
//# endif
//# if GATED
                sum *= gate[at] / (1.0 + exp(-gate[at]));
//# endif
//# if BIAS
                sum += bias[out + row];
//# endif
//# if ACT != "none"
                sum = activate(sum);
//# endif
                y[at] = sum;
            }
        }
    }
}

// Number of the row of x that line `at` of the tile shows; rows beyond the end repeat the last one.
fn x_row(token0: u32, at: u32) -> u32 {
//# if EXPERTS
    return x_rows[at];
//# else
    return min(token0 + at, min(slice.n, state[1]) - 1u);
//# endif
}

fn stage_x(token0: u32, b0: u32, tid: u32) {
//# if PACKED
    for (var i = tid; i < TILE_T * DEPTH * 2u; i += WG) {
        let at = i / (2u * DEPTH);
        let j = i % (2u * DEPTH);
        if (b0 + j / 2u < BLOCKS) {
            x_tile[j * TILE_T + at] = quants[(x_row(token0, at) * BLOCKS + b0) * 2u + j];
        }
    }
    for (var i = tid; i < TILE_T * DEPTH; i += WG) {
        let at = i / DEPTH;
        let d = i % DEPTH;
        if (b0 + d < BLOCKS) {
            let block = x_row(token0, at) * BLOCKS + b0 + d;
            x_scales[d * TILE_T + at] = scales[block];
//# if WEIGHT != "q8_0"
            x_totals[d * TILE_T + at] = totals[block];
//# endif
        } else { // the weights are 0 there, but what memory holds at first may be no number
            x_scales[d * TILE_T + at] = vec4<f32>();
//# if WEIGHT != "q8_0"
            x_totals[d * TILE_T + at] = 0.0;
//# endif
        }
    }
//# else
    for (var i = tid; i < TILE_T * DEPTH * 8u; i += WG) {
        let at = i / (8u * DEPTH);
        let j = i % (8u * DEPTH);
        if (b0 + j / 8u < BLOCKS) {
            let column = min(b0 * 8u + j, D / 4u - 1u); // beyond the end: times 0
            x_tile[j * TILE_T + at] = x[x_row(token0, at) * (D / 4u) + column];
        } else { // the weights are 0 there, but what memory holds at first may be no number
            x_tile[j * TILE_T + at] = vec4<f32>();
        }
    }
//# endif
}
