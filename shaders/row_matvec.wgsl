// y[s, f] = sum_k weight[f, k] * x[s, k], with what stands around it in a decoder layer: for drivers that run shaders on a CPU.
// llvmpipe loads lane after lane and pays for each load, hardly for its width: a thread takes CHUNK blocks of 32 weights of a
// row in loads of 32 bytes and unpacks them at places that the compiler knows, for ROWS rows that lie one after another.
// Where a chunk starts inside a load its words are moved by selects (UNIT: what its place is a multiple of).
// WIDE: loads of 64-bit words; a workgroup is one subgroup of 8, each lane loads a piece of x, and all get it by broadcasts.
// NORM: of x / sqrt(mean(x^2) + EPS) * norm. BIAS, ACT, RESIDUAL: y = ACT(sum + bias[f]) + residual[s, f].
// GLU: weight is [gate; up] and y = silu(gate x) * (up x): half of the rows are gates.
// EXPERTS: row s of y is expert ids[s] of weight [E, F, D] for row s / SLOTS_PER_X of x; with GLU weight is [2 E, F, D].
// GATHER: y[t, f] = sum_k shares[t, k] * weight[ids[t, k], f] . x[t * SLOTS + k].
// Bindings: weight, x, state, norm or ids or third, shares or fourth, ids or residual or bias or fifth, y. Third to fifth are the
// state once more, where there is nothing else to bind. Called by ops/row_matvec.py.
//# include "lib/row_" ~ WEIGHT ~ ".wgsl"
//# if ACT != "none"
//# include "lib/gelu.wgsl"
//# endif

struct Slice {
    first: u32, // first row, or expert, that the bound part of the weight holds; GLU: first column of y
    count: u32, // how many
    n: u32, // rows of y
}

//# if WIDE
@group(0) @binding(0) var<storage, read> weight: array<vec4<u64>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<u64>>;
//# else
@group(0) @binding(0) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
//# endif
@group(0) @binding(2) var<storage, read> state: array<u32>;
//# if NORM and WIDE
@group(0) @binding(3) var<storage, read> norm: array<vec4<u64>>;
//# elif NORM
@group(0) @binding(3) var<storage, read> norm: array<vec4<f32>>;
//# elif GATHER
@group(0) @binding(3) var<storage, read> ids: array<u32>;
//# else
@group(0) @binding(3) var<storage, read> third: array<u32>;
//# endif
//# if GATHER
@group(0) @binding(4) var<storage, read> shares: array<f32>;
//# else
@group(0) @binding(4) var<storage, read> fourth: array<u32>;
//# endif
//# if EXPERTS
@group(0) @binding(5) var<storage, read> ids: array<u32>;
//# elif RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<f32>;
//# elif BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
//# else
@group(0) @binding(5) var<storage, read> fifth: array<u32>;
//# endif
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
var<immediate> slice: Slice;

const LANES: u32 = 8u;
const CHUNKS: u32 = D / (32u * CHUNK); // of a row
const PIECES: u32 = select(1u, SLOTS, GATHER);
const OUTPUTS: u32 = select(ROWS, ROWS / 2u, GLU); // of a thread
const_assert D % (32u * CHUNK) == 0u;
const_assert ROWS % 2u == 0u || !GLU;
// A chunk of a row: its bytes, its x and, for formats with an offset, the sum of each block's x.
var<private> words: array<u32, LOADS * 8u + 8u>; // those of the last eight that are read are never used
var<private> fours: array<vec4<f32>, X_LOADS * 16u>;
//# if HAS_OFFSET
var<private> totals: array<f32, CHUNK>;
//# endif

//# if WIDE
fn two(value: u64) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(u32(value & 0xFFFFFFFFlu), u32(value >> 32u)));
}

// Every lane's eight values to all lanes.
fn spread(at: u32, low: vec4<f32>, high: vec4<f32>) {
    fours[at] = subgroupBroadcast(low, 0u);
    fours[at + 1u] = subgroupBroadcast(high, 0u);
    fours[at + 2u] = subgroupBroadcast(low, 1u);
    fours[at + 3u] = subgroupBroadcast(high, 1u);
    fours[at + 4u] = subgroupBroadcast(low, 2u);
    fours[at + 5u] = subgroupBroadcast(high, 2u);
    fours[at + 6u] = subgroupBroadcast(low, 3u);
    fours[at + 7u] = subgroupBroadcast(high, 3u);
    fours[at + 8u] = subgroupBroadcast(low, 4u);
    fours[at + 9u] = subgroupBroadcast(high, 4u);
    fours[at + 10u] = subgroupBroadcast(low, 5u);
    fours[at + 11u] = subgroupBroadcast(high, 5u);
    fours[at + 12u] = subgroupBroadcast(low, 6u);
    fours[at + 13u] = subgroupBroadcast(high, 6u);
    fours[at + 14u] = subgroupBroadcast(low, 7u);
    fours[at + 15u] = subgroupBroadcast(high, 7u);
}

//# endif
// Words 8 i to 8 i + 7 from the load that the chunk starts in on.
fn load_eight(first: u32, i: u32) {
//# if WIDE
    let load = weight[first + i];
    words[i * 8u] = u32(load.x & 0xFFFFFFFFlu);
    words[i * 8u + 1u] = u32(load.x >> 32u);
    words[i * 8u + 2u] = u32(load.y & 0xFFFFFFFFlu);
    words[i * 8u + 3u] = u32(load.y >> 32u);
    words[i * 8u + 4u] = u32(load.z & 0xFFFFFFFFlu);
    words[i * 8u + 5u] = u32(load.z >> 32u);
    words[i * 8u + 6u] = u32(load.w & 0xFFFFFFFFlu);
    words[i * 8u + 7u] = u32(load.w >> 32u);
//# else
    let low = weight[(first + i) * 2u];
    let high = weight[(first + i) * 2u + 1u];
    words[i * 8u] = low.x;
    words[i * 8u + 1u] = low.y;
    words[i * 8u + 2u] = low.z;
    words[i * 8u + 3u] = low.w;
    words[i * 8u + 4u] = high.x;
    words[i * 8u + 5u] = high.y;
    words[i * 8u + 6u] = high.z;
    words[i * 8u + 7u] = high.w;
//# endif
}

// A chunk times its x. A block is worked on as soon as its bytes are there: loads and arithmetic take turns, and few registers.
fn chunk_product(byte: u32) -> f32 {
    let first = byte / 32u;
    var sum = 0.0;
    var block = 0u;
    var loads = 0u;
    // What lies in the first load before the chunk goes, 16, 8, 4 and 2 bytes of it; each needs some words more than the next.
    let by_16 = (byte & 16u) != 0u;
    let by_8 = (byte & 8u) != 0u;
    let by_4 = (byte & 4u) != 0u;
    let by_2 = (byte & 2u) != 0u;
    var done_16 = 0u;
    var done_8 = 0u;
    var done_4 = 0u;
    var done_2 = 0u;
//# for block in range(CHUNK)
//# for had, wanted in [((block * BLOCK_BYTES + 3) // 4, ((block + 1) * BLOCK_BYTES + 3) // 4)]
//# for ahead in [15 if UNIT < 32 else 7]
//# for _ in range((had + ahead) // 8 if block else 0, [(wanted + ahead) // 8, LOADS]|min)
    load_eight(first, loads);
    loads += 1u;
//# endfor
//# endfor
//# if UNIT <= 16
//# for _ in range(had + 4 if block else 0, wanted + 4)
    words[done_16] = select(words[done_16], words[done_16 + 4u], by_16);
    done_16 += 1u;
//# endfor
//# endif
//# if UNIT <= 8
//# for _ in range(had + 2 if block else 0, wanted + 2)
    words[done_8] = select(words[done_8], words[done_8 + 2u], by_8);
    done_8 += 1u;
//# endfor
//# endif
//# if UNIT <= 4
//# for _ in range(had + 1 if block else 0, wanted + 1)
    words[done_4] = select(words[done_4], words[done_4 + 1u], by_4);
    done_4 += 1u;
//# endfor
//# endif
//# if UNIT <= 2
//# for _ in range(had, wanted)
    words[done_2] = select(words[done_2], (words[done_2] >> 16u) | (words[done_2 + 1u] << 16u), by_2);
    done_2 += 1u;
//# endfor
//# endif
//# endfor
    sum += product(block);
    block += 1u;
//# endfor
    return sum;
}

fn put(row: u32, out: u32, value: f32, up: f32) {
    var result = value;
//# if GLU
    result = value / (1.0 + exp(-value)) * up;
//# endif
//# if BIAS
    result += bias[row];
//# endif
//# if ACT != "none"
    result = activate(result);
//# endif
//# if RESIDUAL
    result += residual[out];
//# endif
    y[out] = result;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Tokens along x: a CPU driver gives every core one run of the grid, and slots whose expert is in another part end at once.
    let token = group.x;
//# if EXPERTS
    let first_expert = select(slice.first, 0u, GLU);
    let expert = ids[token];
    if (token >= state[1] * SLOTS || expert < first_expert || expert >= first_expert + select(slice.count, E, GLU)) {
        return;
    }
    let rows = F;
    let base = (expert - first_expert) * F;
    let ups = E * F;
    let column = 0u;
    let x_row = token / SLOTS_PER_X;
//# else
    if (token >= state[1]) {
        return;
    }
    let rows = slice.count;
    let ups = rows;
    let column = slice.first;
//# if not GATHER
    let base = 0u;
    let x_row = token;
//# endif
//# endif
    let start = ((group.y + group.z * groups.y) * LANES + lane) * OUTPUTS;
    var sums = array<f32, ROWS>();
    var size = 0.0;
    for (var step = 0u; step < CHUNKS * PIECES; step++) {
        let chunk = step % CHUNKS;
//# if GATHER
        let x_row = token * SLOTS + step / CHUNKS;
        let base = min(ids[x_row], E - 1u) * F;
        let share = select(0.0, shares[x_row], ids[x_row] < E);
//# endif
        var n = 0u;
//# if WIDE
//# for _ in range(X_LOADS)
        {
            let mine = min(n + lane, CHUNK * 4u - 1u);
            let at = chunk * CHUNK * 4u + mine;
            let eight = x[x_row * (D / 8u) + at];
            var low = vec4<f32>(two(eight.x), two(eight.y));
            var high = vec4<f32>(two(eight.z), two(eight.w));
//# if NORM
            size += select(0.0, dot(low, low) + dot(high, high), n + lane < CHUNK * 4u);
            let factors = norm[at];
            low *= vec4<f32>(two(factors.x), two(factors.y));
            high *= vec4<f32>(two(factors.z), two(factors.w));
//# endif
//# if GATHER
            low *= share;
            high *= share;
//# endif
            spread(n * 2u, low, high);
            n += LANES;
        }
//# endfor
//# else
//# for _ in range(CHUNK * 8)
        {
            let at = chunk * CHUNK * 8u + n;
            fours[n] = x[x_row * (D / 4u) + at];
//# if NORM
            size += dot(fours[n], fours[n]);
            fours[n] *= norm[at];
//# endif
//# if GATHER
            fours[n] *= share;
//# endif
            n += 1u;
        }
//# endfor
//# endif
//# if HAS_OFFSET
        n = 0u;
//# for _ in range(CHUNK)
        {
            var total = vec4<f32>();
            for (var i = 0u; i < 8u; i++) {
                total += fours[n * 8u + i];
            }
            totals[n] = total.x + total.y + total.z + total.w;
            n += 1u;
        }
//# endfor
//# endif
        for (var r = 0u; r < ROWS; r++) {
            // Rows beyond the end repeat the last one; they are not written.
            let row = base + min(start + r % OUTPUTS, rows - 1u) + select(0u, ups, r >= OUTPUTS);
            let sum = chunk_product(row * ROW_BYTES + chunk * CHUNK * BLOCK_BYTES);
            var b = 0u;
//# for _ in range(ROWS)
            sums[b] += select(0.0, sum, r == b);
            b += 1u;
//# endfor
        }
    }
//# if NORM
//# if WIDE
    size = subgroupAdd(size);
//# endif
    let scale = 1.0 / sqrt(size / f32(D) + EPS);
//# else
    let scale = 1.0;
//# endif
    for (var r = 0u; r < OUTPUTS; r++) {
        let row = start + r;
        if (row < rows) {
            put(column + row, token * WIDTH + column + row, scale * sums[r], scale * sums[(r + OUTPUTS) % ROWS]);
        }
    }
}
