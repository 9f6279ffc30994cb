// o = softmax(q k^T * SCALE, causal) v of many tokens: token t sees keys 0 .. n_past + t of the cache.
// One workgroup a (key/value head with HEADS of its query heads, tile of TOKENS tokens): QUERIES rows, each a token with a
// head, so that every key and value that is loaded serves all of them. 32 keys at a time (Dao et al. 2022,
// FlashAttention): TILE_ROWS x 4 scores a thread; one row a thread for the running maximum and sum; then TILE_ROWS x EACH
// eights of the output a thread. STAGED: keys, then values of a tile are unpacked once, into workgroup memory.
// TOKENS_FIRST: tiles of tokens lie along x, for CPU drivers, which give every core one run of the grid.
// Values of 8-bit blocks come mixed (lib/mix.wgsl), and so do their sums.
// Bindings: q, keys, values, state, o. Called by ops/flash_prefill.py.
//# include "lib/cell.wgsl"
//# include "lib/cached.wgsl"
//# if CACHED == "kv_q8"
//# include "lib/mix.wgsl"
//# endif

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> keys: array<CELL>;
@group(0) @binding(2) var<storage, read> values: array<CELL>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>;

const FOURS: u32 = HD / 4u;
const EIGHTS: u32 = HD / 8u;
const G: u32 = H / KV;
const CHUNKS: u32 = G / HEADS;
const SIDE: u32 = 8u;
const TALL: u32 = QUERIES / TILE_ROWS;
const WG: u32 = SIDE * TALL;
const COLUMNS: u32 = 4u; // keys of a thread
const KEYS: u32 = SIDE * COLUMNS;
const TOKENS: u32 = QUERIES / HEADS;
const_assert EACH * SIDE >= EIGHTS;
const LOWEST: f32 = -3.0e38;
const LOG2_E: f32 = 1.44269504;
const_assert HD % 8u == 0u;
const_assert G % HEADS == 0u;
const_assert QUERIES % TILE_ROWS == 0u;
const_assert WG >= QUERIES; // a thread a row of scores

var<workgroup> scores: array<vec4<f32>, QUERIES * SIDE>; // column c of thread x is component c of four x
var<workgroup> shrink: array<f32, QUERIES>;
//# if STAGED
const WIDTH: u32 = FOURS + 1u; // of a staged key: neighbours lie in other banks
var<workgroup> stage: array<vec4<f32>, KEYS * WIDTH>;
//# endif

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let place = select(group.xy, group.yx, TOKENS_FIRST);
    let kv_head = place.x / CHUNKS;
    let head = kv_head * G + place.x % CHUNKS * HEADS;
    let first_token = place.y * TOKENS;
    if (first_token >= state[1]) {
        return;
    }
    let past = state[0];
    let count = min(TOKENS, state[1] - first_token);
    let stop = past + first_token + count; // of the keys that some token of the tile sees
    let x = tid % SIDE;
    let y = tid / SIDE;
    var query = array<u32, TILE_ROWS>();
    for (var r = 0u; r < TILE_ROWS; r++) {
        // Rows past the end repeat the last token; they are not written.
        let row = r * TALL + y;
        query[r] = ((first_token + min(row / HEADS, count - 1u)) * H + head + row % HEADS) * FOURS;
    }
    var sums = array<vec4<f32>, TILE_ROWS * EACH * 2u>();
    var highest = LOWEST;
    var total = 0.0;
    for (var first = 0u; first < stop; first += KEYS) {
//# if STAGED
        for (var i = tid; i < KEYS * EIGHTS; i += WG) {
            let eight = key_eight(min(first + i / EIGHTS, stop - 1u), kv_head, i % EIGHTS);
            stage[i / EIGHTS * WIDTH + 2u * (i % EIGHTS)] = eight[0];
            stage[i / EIGHTS * WIDTH + 2u * (i % EIGHTS) + 1u] = eight[1];
        }
        workgroupBarrier();
//# endif
        var dots = array<vec4<f32>, TILE_ROWS>();
        for (var i = 0u; i < EIGHTS; i++) {
            var eights = array<array<vec4<f32>, 2>, COLUMNS>();
            for (var c = 0u; c < COLUMNS; c++) {
//# if STAGED
                let at = (x * COLUMNS + c) * WIDTH + 2u * i;
                eights[c] = array<vec4<f32>, 2>(stage[at], stage[at + 1u]);
//# else
                eights[c] = key_eight(min(first + x * COLUMNS + c, stop - 1u), kv_head, i);
//# endif
            }
            for (var r = 0u; r < TILE_ROWS; r++) {
                let a = q[query[r] + 2u * i];
                let b = q[query[r] + 2u * i + 1u];
                for (var c = 0u; c < COLUMNS; c++) {
                    let k = eights[c];
                    let half = fma(k[0].w, a.w, fma(k[0].z, a.z, fma(k[0].y, a.y, fma(k[0].x, a.x, dots[r][c]))));
                    dots[r][c] = fma(k[1].w, b.w, fma(k[1].z, b.z, fma(k[1].y, b.y, fma(k[1].x, b.x, half))));
                }
            }
        }
        for (var r = 0u; r < TILE_ROWS; r++) {
            let row = r * TALL + y;
            let places = vec4<u32>(first + x * COLUMNS) + vec4<u32>(0u, 1u, 2u, 3u);
            let seen = past + first_token + min(row / HEADS, count - 1u);
            let four = dots[r] * (SCALE * LOG2_E / CACHED_SCALE);
            scores[row * SIDE + x] = select(vec4<f32>(LOWEST), four, places <= vec4<u32>(seen));
        }
        workgroupBarrier();
//# if STAGED
        for (var i = tid; i < KEYS * EIGHTS; i += WG) {
            let eight = value_eight(min(first + i / EIGHTS, stop - 1u), kv_head, i % EIGHTS);
            stage[i / EIGHTS * WIDTH + 2u * (i % EIGHTS)] = eight[0];
            stage[i / EIGHTS * WIDTH + 2u * (i % EIGHTS) + 1u] = eight[1];
        }
//# endif
        if (tid < QUERIES) {
            var most = scores[tid * SIDE];
            for (var i = 1u; i < SIDE; i++) {
                most = max(most, scores[tid * SIDE + i]);
            }
            let largest = max(highest, max(max(most.x, most.y), max(most.z, most.w)));
            var added = vec4<f32>(0.0);
            for (var i = 0u; i < SIDE; i++) {
                let four = exp2(scores[tid * SIDE + i] - largest);
                scores[tid * SIDE + i] = four;
                added += four;
            }
            let factor = exp2(highest - largest);
            highest = largest;
            total = total * factor + (added.x + added.y) + (added.z + added.w);
            shrink[tid] = factor;
        }
        workgroupBarrier();
        for (var r = 0u; r < TILE_ROWS; r++) {
            let factor = shrink[r * TALL + y];
            for (var e = 0u; e < EACH * 2u; e++) {
                sums[r * EACH * 2u + e] *= factor;
            }
        }
        for (var i = 0u; i < SIDE; i++) {
            var fours = array<vec4<f32>, TILE_ROWS>();
            for (var r = 0u; r < TILE_ROWS; r++) {
                fours[r] = scores[(r * TALL + y) * SIDE + i];
            }
            // Written out for every e and c: drivers leave so large a loop rolled, and then the sums are no registers.
            var e = 0u;
//# for _ in range(EACH)
            {
                let d = min(e * SIDE + x, EIGHTS - 1u);
                var c = 0u;
//# for _ in range(4)
                {
//# if STAGED
                    let at = (i * COLUMNS + c) * WIDTH + 2u * d;
                    let eight = array<vec4<f32>, 2>(stage[at], stage[at + 1u]);
//# else
                    let eight = value_eight(min(first + i * COLUMNS + c, stop - 1u), kv_head, d);
//# endif
                    for (var r = 0u; r < TILE_ROWS; r++) {
                        let at_sum = (r * EACH + e) * 2u;
                        sums[at_sum] = fma(vec4<f32>(fours[r][c]), eight[0], sums[at_sum]);
                        sums[at_sum + 1u] = fma(vec4<f32>(fours[r][c]), eight[1], sums[at_sum + 1u]);
                    }
                    c++;
                }
//# endfor
                e++;
            }
//# endfor
        }
        workgroupBarrier();
    }
    if (tid < QUERIES) {
        shrink[tid] = total * CACHED_SCALE;
    }
    workgroupBarrier();
    for (var r = 0u; r < TILE_ROWS; r++) {
        let row = r * TALL + y;
        for (var e = 0u; e < EACH; e++) {
            if (row < count * HEADS && e * SIDE + x < EIGHTS) {
                let at = ((first_token + row / HEADS) * H + head + row % HEADS) * FOURS + 2u * (e * SIDE + x);
                o[at] = sums[(r * EACH + e) * 2u] / shrink[row];
                o[at + 1u] = sums[(r * EACH + e) * 2u + 1u] / shrink[row];
            }
        }
    }
//# if CACHED == "kv_q8"
    storageBarrier();
    for (var i = tid; i < count * HEADS * (HD / 32u); i += WG) {
        let row = i / (HD / 32u);
        unmix(((first_token + row / HEADS) * H + head + row % HEADS) * FOURS + i % (HD / 32u) * 8u);
    }
//# endif
}
//# if CACHED == "kv_q8"

// 32 values of o, which this workgroup has written.
fn unmix(at: u32) {
    var part = array<f32, 32>();
    for (var d = 0u; d < 32u; d++) {
        part[d] = o[at + d / 4u][d % 4u];
    }
    part = mix(part);
    for (var d = 0u; d < 8u; d++) {
        o[at + d] = vec4<f32>(part[4u * d], part[4u * d + 1u], part[4u * d + 2u], part[4u * d + 3u]);
    }
}
//# endif
