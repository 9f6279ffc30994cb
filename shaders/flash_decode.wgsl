// Attention of one or two tokens over a long cache: the keys in SPLITS parts side by side (Dao et al. 2023, Flash-Decoding;
// online softmax of Milakov and Gimelshein 2018). A token sees the keys before it and its own, which is the last of them.
// One workgroup a (key/value head with HEADS of its query heads, token, part of the keys); parts without keys end at once.
// KEYS keys at a time: LANES threads a key for the scores, interleaved by eights; one thread a (key, head) adds those up
// and looks for the maximum; then eight dimensions of HEADS sums a thread, ROWS keys side by side.
// LAST: the workgroup that comes last adds the parts up; they are @coherent, stored before a barrier that releases them
// and read behind one that acquires them, with an atomic counter between the two. Else flash_combine.wgsl adds them up.
// FUSED, one token: x is [1, (H + 2 KV) * HD]; every workgroup turns its queries and the token's key (lib/turn.wgsl). Those
// with the last key use theirs, rounded as the cache keeps it, and one of them puts it there: nothing is read back.
// Else q is [N, H * HD], and the cache has the step's keys already.
// Bindings: x, positions, freqs, norms, q, keys, values, state, scratch, keys, values, o. Called by ops/flash_decode.py.
//# include "lib/cell.wgsl"
//# include "lib/cached.wgsl"
//# include "lib/splits.wgsl"
//# if FUSED
//# include "lib/turn.wgsl"
//# include "lib/fresh.wgsl"
//# endif
//# if LAST
//# include "lib/combine.wgsl"
//# endif
//# if CACHED == "kv_q8" and (FUSED or LAST)
//# include "lib/mix.wgsl"
//# endif

//# if FUSED
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> positions: array<f32>;
@group(0) @binding(2) var<storage, read> freqs: array<f32>;
//# if NORM
@group(0) @binding(3) var<storage, read> norms: array<f32>;
const INPUTS: u32 = 5u;
//# else
const INPUTS: u32 = 4u;
//# endif
@group(0) @binding(INPUTS + 1u) var<storage, read_write> keys: array<CELL>;
@group(0) @binding(INPUTS + 2u) var<storage, read_write> values: array<CELL>;
const OUTPUT: u32 = INPUTS + 3u;
//# else
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> keys: array<CELL>;
@group(0) @binding(2) var<storage, read> values: array<CELL>;
const INPUTS: u32 = 4u;
const OUTPUT: u32 = INPUTS + 1u;
//# endif
@group(0) @binding(INPUTS - 1u) var<storage, read> state: array<u32>;
//# if LAST
@coherent
//# endif
@group(0) @binding(INPUTS) var<storage, read_write> scratch: Scratch;
//# if LAST
@group(0) @binding(OUTPUT) var<storage, read_write> o: array<vec4<f32>>;
//# endif

const EIGHTS: u32 = HD / 8u;
const SLOTS: u32 = WG / LANES; // keys whose scores are computed side by side
const PER: u32 = KEYS / SLOTS;
const PAD: u32 = (LANES + 1u) * HEADS; // floats a key, so that neighbouring keys lie in other banks
const ROWS: u32 = WG / EIGHTS; // keys whose values are summed side by side
const TURNS: u32 = KEYS / ROWS / AT_ONCE;
const_assert HD % 8u == 0u;
const_assert EIGHTS % LANES == 0u;
const_assert WG % LANES == 0u;
const_assert KEYS % SLOTS == 0u;
const_assert TURNS * AT_ONCE * ROWS == KEYS;
const_assert 0u == (SPLITS & (SPLITS - 1u));
//# if FUSED
const_assert N == 1u;
//# endif
//# if LAST
const_assert SPLITS <= KEYS;
//# endif

var<workgroup> query: array<vec4<f32>, HEADS * FOURS>;
var<workgroup> dots_of: array<f32, KEYS * PAD>;
var<workgroup> shares: array<f32, KEYS * HEADS>;
var<workgroup> found: array<f32, WG>;
var<workgroup> shrink: array<f32, HEADS>;
var<workgroup> gathered: array<vec4<f32>, ROWS * FOURS>;
//# if LAST
var<workgroup> arrived: u32;
//# endif

fn dot_eight(sum: f32, values: array<vec4<f32>, 2>, a: vec4<f32>, b: vec4<f32>) -> f32 {
    let first = fma(values[0].w, a.w, fma(values[0].z, a.z, fma(values[0].y, a.y, fma(values[0].x, a.x, sum))));
    return fma(values[1].w, b.w, fma(values[1].z, b.z, fma(values[1].y, b.y, fma(values[1].x, b.x, first))));
}
//# if FUSED

const PARTS: u32 = 8u; // sums of squares a head
var<workgroup> turns: array<vec2<f32>, PAIRS>;
var<workgroup> fresh_pair: array<f32, 2u * HD>; // the token's key, its value
//# if NORM
var<workgroup> squares: array<f32, (HEADS + 1u) * PARTS>;
var<workgroup> scales: array<f32, HEADS + 1u>;
//# endif

fn fresh(i: u32) -> f32 {
    return fresh_pair[i];
}

// Element d of a query head, or of the key (head HEADS): what of x it is, times its norm.
fn head_value(start: u32, head: u32, d: u32) -> f32 {
    let value = x[start + d];
//# if NORM
    return norms[select(0u, HD, head == HEADS) + d] * (value * scales[head]);
//# else
    return value;
//# endif
}

// Key or value of the token, as the cache keeps them.
fn own_four(at: u32) -> vec4<f32> {
    return vec4<f32>(fresh_pair[at], fresh_pair[at + 1u], fresh_pair[at + 2u], fresh_pair[at + 3u]);
}

// A share of a query's product with the token's own key.
fn own_dot(head: u32, share: u32) -> f32 {
    var sum = 0.0;
    for (var four = share; four < FOURS; four += SHARE) {
        sum += dot(query[head * FOURS + four], own_four(4u * four));
    }
    return CACHED_SCALE * sum;
}

// Values KEPT * i to KEPT * i + KEPT - 1 of fresh_pair, rounded as the cache keeps them.
fn keep(i: u32) {
    let first = i * KEPT;
    let largest = select(127.0, 511.0, first < HD);
    let scale = kept_scale(first, largest);
    for (var d = first; d < first + KEPT; d++) {
        fresh_pair[d] = kept(fresh_pair[d], scale, largest);
    }
}

fn put(head: u32, d: u32, value: f32) {
    if (head == HEADS) {
        fresh_pair[d] = value;
    } else {
        query[head * FOURS + d / 4u][d % 4u] = value * (SCALE * LOG2_E / CACHED_SCALE);
    }
}

fn turn_all(kv_head: u32, chunk: u32, tid: u32) {
    let of_queries = (kv_head * G + chunk * HEADS) * HD;
    let of_key = (H + kv_head) * HD;
    for (var i = tid; i < PAIRS; i += WG) {
        turns[i] = turn_of(0u, i);
    }
    for (var d = tid; d < HD; d += WG) {
        fresh_pair[HD + d] = x[of_key + KV * HD + d];
    }
//# if NORM
    for (var i = tid; i < (HEADS + 1u) * PARTS; i += WG) {
        let start = select(of_queries + i / PARTS * HD, of_key, i / PARTS == HEADS);
        var sum = 0.0;
        for (var d = i % PARTS; d < HD; d += PARTS) {
            sum += x[start + d] * x[start + d];
        }
        squares[i] = sum;
    }
    workgroupBarrier();
    for (var head = tid; head < HEADS + 1u; head += WG) {
        var sum = 0.0;
        for (var i = 0u; i < PARTS; i++) {
            sum += squares[head * PARTS + i];
        }
        scales[head] = 1.0 / sqrt(sum / f32(HD) + EPS);
    }
//# endif
    workgroupBarrier();
    for (var i = tid; i < (HEADS + 1u) * PAIRS; i += WG) {
        let head = i / PAIRS;
        let pair = i % PAIRS;
        let start = select(of_queries + head * HD, of_key, head == HEADS);
        let a = select(pair, 2u * pair, INTERLEAVED);
        let b = select(pair + PAIRS, 2u * pair + 1u, INTERLEAVED);
        let turn = turns[pair];
        let first = head_value(start, head, a);
        let second = head_value(start, head, b);
        put(head, a, first * turn.y - second * turn.x);
        put(head, b, second * turn.y + first * turn.x);
    }
    for (var i = tid; i < (HEADS + 1u) * (HD - 2u * PAIRS); i += WG) {
        let head = i / (HD - 2u * PAIRS);
        let d = 2u * PAIRS + i % (HD - 2u * PAIRS);
        put(head, d, head_value(select(of_queries + head * HD, of_key, head == HEADS), head, d));
    }
}
//# if CACHED == "kv_q8"

// Blocks of the queries, of the key, of the value.
fn mix_all(tid: u32) {
    for (var block = tid; block < (HEADS + 2u) * (HD / 32u); block += WG) {
        let of_pair = block >= HEADS * (HD / 32u);
        let at = block * 32u - HEADS * HD;
        var part = array<f32, 32>();
        for (var i = 0u; i < 32u; i++) {
            if (of_pair) {
                part[i] = fresh_pair[at + i];
            } else {
                part[i] = query[block * 8u + i / 4u][i % 4u];
            }
        }
        part = mix(part);
        for (var i = 0u; i < 32u; i++) {
            if (of_pair) {
                fresh_pair[at + i] = part[i];
            } else {
                query[block * 8u + i / 4u][i % 4u] = part[i];
            }
        }
    }
}
//# endif
//# endif

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let kv_head = group.x / CHUNKS;
    let chunk = group.x % CHUNKS;
    let token = group.y;
    // A CPU driver gives every core one run of the grid. In the order of reversed bits the parts without keys lie in all.
    let split = (reverseBits(group.z) >> 1u) >> (31u - firstTrailingBit(SPLITS));
    let seen = state[0] + token + 1u;
    let each = keys_a_split(seen);
    let start = split * each;
//# if FUSED
    let stop = min(seen - 1u, start + each);
    let has_own = start + each >= seen;
//# else
    let stop = min(seen, start + each);
//# endif
    if (token >= state[1] || start >= seen) {
        return;
    }
    let head = kv_head * G + chunk * HEADS;
//# if FUSED
    turn_all(kv_head, chunk, tid);
    workgroupBarrier();
//# if CACHED == "kv_q8"
    mix_all(tid);
    workgroupBarrier();
//# endif
    if (has_own) {
        if (chunk == 0u) {
            for (var i = tid; i < KEY_CELLS; i += WG) {
                keys[key_cell_at(seen - 1u, kv_head, i)] = key_cell(0u, i);
            }
            for (var i = tid; i < CELLS; i += WG) {
                values[cell_at(seen - 1u, kv_head, i)] = cell(HD, i);
            }
        }
        workgroupBarrier();
        for (var i = tid; i < 2u * HD / KEPT; i += WG) {
            keep(i);
        }
        workgroupBarrier();
        if (tid < SHARE * HEADS) {
            found[tid] = own_dot(tid % HEADS, tid / HEADS);
        }
        workgroupBarrier();
    }
//# else
    for (var i = tid; i < HEADS * FOURS; i += WG) {
        query[i] = q[(token * H + head) * FOURS + i] * (SCALE * LOG2_E / CACHED_SCALE);
    }
    workgroupBarrier();
//# endif
    let lane = tid % LANES;
    let slot = tid / LANES;
    let eight = tid % EIGHTS;
    let row = tid / EIGHTS;
    let of_head = tid % HEADS;
    var sums = array<vec4<f32>, 2u * HEADS>();
    var highest = LOWEST;
    var total = 0.0;
//# if FUSED
    if (has_own) {
        highest = 0.0;
        for (var i = 0u; i < SHARE; i++) {
            highest += found[i * HEADS + of_head];
        }
        total = select(0.0, 1.0, tid < HEADS);
        let counted = select(0.0, CACHED_SCALE, row == 0u);
        for (var g = 0u; g < HEADS; g++) {
            sums[2u * g] = counted * own_four(HD + 8u * eight);
            sums[2u * g + 1u] = counted * own_four(HD + 8u * eight + 4u);
        }
        workgroupBarrier();
    }
//# endif
    for (var first = start; first < stop; first += KEYS) {
        var dots = array<f32, PER * HEADS>();
        for (var i = lane; i < EIGHTS; i += LANES) {
            var eights = array<array<vec4<f32>, 2>, PER>();
            for (var j = 0u; j < PER; j++) {
                eights[j] = key_eight(min(first + slot + j * SLOTS, stop - 1u), kv_head, i);
            }
            var g = 0u;
//# for _ in range(HEADS)
            {
                let a = query[g * FOURS + 2u * i];
                let b = query[g * FOURS + 2u * i + 1u];
                for (var j = 0u; j < PER; j++) {
                    dots[j * HEADS + g] = dot_eight(dots[j * HEADS + g], eights[j], a, b);
                }
                g++;
            }
//# endfor
        }
        for (var j = 0u; j < PER; j++) {
            for (var g = 0u; g < HEADS; g++) {
                dots_of[(slot + j * SLOTS) * PAD + lane * HEADS + g] = dots[j * HEADS + g];
            }
        }
        workgroupBarrier();
        var largest = highest;
        if (tid < SHARE * HEADS) {
            for (var key = tid / HEADS; key < KEYS; key += SHARE) {
                var score = 0.0;
                for (var i = 0u; i < LANES; i++) {
                    score += dots_of[key * PAD + i * HEADS + of_head];
                }
                score = select(LOWEST, score, first + key < stop);
                shares[key * HEADS + of_head] = score;
                largest = max(largest, score);
            }
        }
        found[tid] = largest;
        workgroupBarrier();
        for (var i = 0u; i < SHARE; i++) {
            largest = max(largest, found[i * HEADS + of_head]);
        }
        let factor = exp2(highest - largest);
        highest = largest;
        total *= factor;
        if (tid < HEADS) {
            shrink[tid] = factor;
        }
        if (tid < SHARE * HEADS) {
            for (var key = tid / HEADS; key < KEYS; key += SHARE) {
                let share = exp2(shares[key * HEADS + of_head] - largest);
                shares[key * HEADS + of_head] = share;
                total += share;
            }
        }
        workgroupBarrier();
        for (var g = 0u; g < HEADS; g++) {
            sums[2u * g] *= shrink[g];
            sums[2u * g + 1u] *= shrink[g];
        }
        if (row < ROWS) {
            for (var turn = 0u; turn < TURNS; turn++) {
                var eights = array<array<vec4<f32>, 2>, AT_ONCE>();
                for (var j = 0u; j < AT_ONCE; j++) {
                    // Keys past the end count 0 times.
                    eights[j] = value_eight(min(first + (turn * AT_ONCE + j) * ROWS + row, stop - 1u), kv_head, eight);
                }
                var g = 0u;
//# for _ in range(HEADS)
                for (var j = 0u; j < AT_ONCE; j++) {
                    let share = vec4<f32>(shares[((turn * AT_ONCE + j) * ROWS + row) * HEADS + g]);
                    sums[2u * g] = fma(share, eights[j][0], sums[2u * g]);
                    sums[2u * g + 1u] = fma(share, eights[j][1], sums[2u * g + 1u]);
                }
                g++;
//# endfor
            }
        }
    }
    workgroupBarrier();
    found[tid] = total;
    var g = 0u;
//# for _ in range(HEADS)
    if (row < ROWS) {
        gathered[row * FOURS + 2u * eight] = sums[2u * g];
        gathered[row * FOURS + 2u * eight + 1u] = sums[2u * g + 1u];
    }
    workgroupBarrier();
    for (var i = tid; i < FOURS; i += WG) {
        var sum = gathered[i];
        for (var r = 1u; r < ROWS; r++) {
            sum += gathered[r * FOURS + i];
        }
        scratch.parts[part_at(split, token, head + g) + i] = sum;
    }
    workgroupBarrier();
    g++;
//# endfor
    if (tid < HEADS) {
        var sum = 0.0;
        for (var i = 0u; i < SHARE; i++) {
            sum += found[i * HEADS + tid];
        }
        scratch.parts[part_at(split, token, head + tid) + FOURS] = vec4<f32>(highest, sum * CACHED_SCALE, 0.0, 0.0);
    }
//# if LAST
    storageBarrier();
    let used = (seen + each - 1u) / each;
    if (tid == 0u) {
        arrived = atomicAdd(&scratch.arrived[(token * KV + kv_head) * CHUNKS + chunk], 1u) + 1u;
    }
    if (workgroupUniformLoad(&arrived) < used) {
        return;
    }
    storageBarrier();
    if (tid == 0u) {
        // For the next dispatch.
        atomicStore(&scratch.arrived[(token * KV + kv_head) * CHUNKS + chunk], 0u);
    }
    combine(token, head, used, tid);
//# endif
}
