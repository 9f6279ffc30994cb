// y[t, f] = sum_k weight[f, k] * x[t, k]   for many tokens: a workgroup of 16 x 16 threads computes TILE rows x TILE
// tokens, 4 x 4 of them a thread, from tiles that it stages in workgroup memory.
// Float: one block of 32 weights of every row is dequantised into the tile. PACKED: four blocks of int8 quants of every
// row and token are staged as they are, the dot products are 4x8-bit, and every group of 8 is scaled in float.
// GLU: weight is [gate; up], 2 F rows, and y = silu(gate x) * (up x) has F: half of a tile's rows are gates.
// BIAS: bias[f] is added; ACT: then a function is applied. Rows of floats may end inside a block (D a multiple of 4).
// Bindings: weight, x (or quants, scales, totals), state, [bias], y. Called by ops/matmul.py.
//# include "lib/weight.wgsl"
//# if ACT != "none"
//# include "lib/gelu.wgsl"
//# endif

struct Slice {
    first: u32, // first row that the bound part of the weight holds
    count: u32, // how many
    n: u32, // rows of y
}

@group(0) @binding(0) var<storage, read> weight: array<u32>;
//# if PACKED
@group(0) @binding(1) var<storage, read> quants: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> totals: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
//# if BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
//# endif
//# else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
//# if BIAS
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
//# endif
//# endif
var<immediate> slice: Slice;

const TILE: u32 = 64u;
const SIDE: u32 = 16u;
const EACH: u32 = TILE / SIDE;
const BLOCKS: u32 = (D + 31u) / 32u;
const_assert D % 4u == 0u;

//# if PACKED
const DEPTH: u32 = 4u; // blocks a tile
var<workgroup> weight_tile: array<u32, 8u * DEPTH * TILE>;
var<workgroup> weight_scales: array<vec2<f32>, DEPTH * TILE>;
var<workgroup> x_tile: array<u32, 8u * DEPTH * TILE>;
var<workgroup> x_scales: array<vec4<f32>, DEPTH * TILE>;
var<workgroup> x_totals: array<f32, DEPTH * TILE>;
//# else
var<workgroup> weight_tile: array<vec4<f32>, 8u * TILE>;
var<workgroup> x_tile: array<vec4<f32>, 8u * TILE>;
//# endif

// The row of the weight that line `at` of the tile shows; rows beyond the end repeat the last one.
fn weight_row(row0: u32, at: u32) -> u32 {
//# if GLU
    return min(row0 + at % (TILE / 2u), F - 1u) + select(0u, F, at >= TILE / 2u);
//# else
    return min(row0 + at, slice.count - 1u);
//# endif
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
//# if GLU
    let row0 = group.x * (TILE / 2u);
//# else
    let row0 = group.x * TILE;
//# endif
    let token0 = group.y * TILE;
    if (token0 >= state[1]) {
        return;
    }
    let last = min(slice.n, state[1]) - 1u;
    let tx = tid % SIDE;
    let ty = tid / SIDE;
    var sums = array<f32, EACH * EACH>();
//# if PACKED
    for (var b0 = 0u; b0 < BLOCKS; b0 += DEPTH) {
        workgroupBarrier();
        // 256 threads, 64 x 4 blocks: one block each, of the weight and of x. Blocks past the end count as zero.
        let at = tid / DEPTH;
        let b = b0 + tid % DEPTH;
        let slot = (tid % DEPTH) * TILE + at;
        if (b < BLOCKS) {
            var block = load_block((weight_row(row0, at) * BLOCKS + b) * BLOCK_BYTES);
            let start = min(token0 + at, last) * BLOCKS + b;
            weight_scales[slot] = vec2<f32>(block.scale, block.offset);
            x_scales[slot] = scales[start];
            x_totals[slot] = totals[start];
            for (var i = 0u; i < 8u; i++) {
                weight_tile[(i * DEPTH + tid % DEPTH) * TILE + at] = block.quants[i];
                x_tile[(i * DEPTH + tid % DEPTH) * TILE + at] = quants[start * 8u + i];
            }
        } else {
            weight_scales[slot] = vec2<f32>(0.0);
            x_scales[slot] = vec4<f32>(0.0);
            x_totals[slot] = 0.0;
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            var parts = array<f32, EACH * EACH>();
            for (var g = 0u; g < 4u; g++) {
                let first = (2u * g * DEPTH + d) * TILE;
                let second = ((2u * g + 1u) * DEPTH + d) * TILE;
                for (var t = 0u; t < EACH; t++) {
                    let token = t * SIDE + ty;
                    let x1 = x_tile[first + token];
                    let x2 = x_tile[second + token];
                    let scale = x_scales[d * TILE + token][g];
                    for (var r = 0u; r < EACH; r++) {
                        let row = r * SIDE + tx;
                        let dots = dot4I8Packed(weight_tile[first + row], x1) + dot4I8Packed(weight_tile[second + row], x2);
                        parts[r * EACH + t] += scale * f32(dots);
                    }
                }
            }
            for (var r = 0u; r < EACH; r++) {
                let of_weight = weight_scales[d * TILE + r * SIDE + tx];
                for (var t = 0u; t < EACH; t++) {
                    let total = x_totals[d * TILE + t * SIDE + ty];
                    sums[r * EACH + t] += of_weight.x * parts[r * EACH + t] + of_weight.y * total;
                }
            }
        }
    }
//# else
    for (var b = 0u; b < BLOCKS; b++) {
        workgroupBarrier();
        if (tid < TILE) {
//# if D % 32
            var block = load_fours(weight_row(row0, tid) * ROW_BYTES + b * BLOCK_BYTES, D / 4u - b * 8u);
//# else
            var block = load_block((weight_row(row0, tid) * BLOCKS + b) * BLOCK_BYTES);
//# endif
            for (var i = 0u; i < 8u; i++) {
                weight_tile[i * TILE + tid] = block.scale * four(block.quants[i]) + block.offset;
            }
        }
        for (var i = tid; i < 8u * TILE; i += 256u) {
//# if D % 32
            let column = min(b * 8u + i % 8u, D / 4u - 1u); // beyond the end: times 0
//# else
            let column = b * 8u + i % 8u;
//# endif
            x_tile[(i % 8u) * TILE + i / 8u] = x[min(token0 + i / 8u, last) * (D / 4u) + column];
        }
        workgroupBarrier();
        for (var i = 0u; i < 8u; i++) {
            var fours: array<vec4<f32>, EACH>;
            for (var t = 0u; t < EACH; t++) {
                fours[t] = x_tile[i * TILE + t * SIDE + ty];
            }
            for (var r = 0u; r < EACH; r++) {
                let w4 = weight_tile[i * TILE + r * SIDE + tx];
                for (var t = 0u; t < EACH; t++) {
                    sums[r * EACH + t] += dot(w4, fours[t]);
                }
            }
        }
    }
//# endif
//# if GLU
    for (var r = 0u; r < EACH / 2u; r++) {
        for (var t = 0u; t < EACH; t++) {
            let row = row0 + r * SIDE + tx;
            let token = token0 + t * SIDE + ty;
            if (row < F && token <= last) {
                let gate = sums[r * EACH + t];
                y[token * F + row] = gate / (1.0 + exp(-gate)) * sums[(r + EACH / 2u) * EACH + t];
            }
        }
    }
//# else
    for (var r = 0u; r < EACH; r++) {
        for (var t = 0u; t < EACH; t++) {
            let row = row0 + r * SIDE + tx;
            let token = token0 + t * SIDE + ty;
            if (row < slice.count && token <= last) {
                var sum = sums[r * EACH + t];
//# if BIAS
                sum += bias[slice.first + row];
//# endif
//# if ACT != "none"
                sum = activate(sum);
//# endif
                y[token * F + slice.first + row] = sum;
            }
        }
    }
//# endif
}
