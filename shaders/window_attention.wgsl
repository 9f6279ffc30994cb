// o = softmax(q k^T * SCALE) v without a causal mask, inside windows: the queries of a tile see all keys of its range.
// One workgroup of 8 x TALL threads a (tile, head), QUERIES queries: 32 keys at a time, ROWS x 4 scores a thread; then
// one row of scores a thread for the running maximum and sum (Milakov and Gimelshein's online softmax, powers of two);
// then ROWS queries x EACH fours of the output a thread. What several threads read lies in the cache closest to them.
// q is [N, H * HD], keys and values [S, H * HD] in float32, or float16 two to a word.
// Bindings: q, keys, values, tiles (first query, count, first key, end of keys), state, o.
// Called by ops/attention_windows.py.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
//# if FROM == "f16"
@group(0) @binding(1) var<storage, read> keys: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec2<u32>>;
//# else
@group(0) @binding(1) var<storage, read> keys: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> values: array<vec4<f32>>;
//# endif
@group(0) @binding(3) var<storage, read> tiles: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;

//# if FROM == "f16"
fn key_four(i: u32) -> vec4<f32> {
    let words = keys[i];
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}
fn value_four(i: u32) -> vec4<f32> {
    let words = values[i];
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}
//# else
fn key_four(i: u32) -> vec4<f32> {
    return keys[i];
}
fn value_four(i: u32) -> vec4<f32> {
    return values[i];
}
//# endif

const FOURS: u32 = HD / 4u;
const SIDE: u32 = 8u;
const TALL: u32 = QUERIES / ROWS;
const WG: u32 = SIDE * TALL;
const COLUMNS: u32 = 4u; // keys of a thread
const KEYS: u32 = SIDE * COLUMNS;
const LOWEST: f32 = -3.0e38;
const LOG2_E: f32 = 1.44269504;
const_assert HD % 4u == 0u;
const_assert QUERIES % ROWS == 0u;
const_assert WG >= QUERIES; // a thread a row of scores
const_assert EACH * SIDE >= FOURS;

var<workgroup> scores: array<vec4<f32>, QUERIES * SIDE>; // column c of thread x is component c of four x
var<workgroup> shrink: array<f32, QUERIES>;
var<workgroup> sums_of: array<f32, QUERIES>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let tile = tiles[group.x];
    let head = group.y;
    let count = min(tile.y, max(state[1], tile.x) - tile.x);
    if (count == 0u) {
        return;
    }
    let x = tid % SIDE;
    let y = tid / SIDE;
    var query: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        // Queries past the end repeat the last one; they are not written.
        query[r] = ((tile.x + min(r * TALL + y, count - 1u)) * H + head) * FOURS;
    }
    var sums = array<vec4<f32>, ROWS * EACH>();
    var highest = LOWEST;
    var total = 0.0;
    for (var first = tile.z; first < tile.w; first += KEYS) {
        var key = array<u32, COLUMNS>();
        for (var c = 0u; c < COLUMNS; c++) {
            key[c] = (min(first + x * COLUMNS + c, tile.w - 1u) * H + head) * FOURS;
        }
        var dots = array<f32, ROWS * COLUMNS>();
        for (var i = 0u; i < FOURS; i++) {
            var fours = array<vec4<f32>, COLUMNS>();
            for (var c = 0u; c < COLUMNS; c++) {
                fours[c] = key_four(key[c] + i);
            }
            for (var r = 0u; r < ROWS; r++) {
                let of_query = q[query[r] + i];
                for (var c = 0u; c < COLUMNS; c++) {
                    dots[r * COLUMNS + c] += dot(of_query, fours[c]);
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let at = r * COLUMNS;
            let four = vec4<f32>(dots[at], dots[at + 1u], dots[at + 2u], dots[at + 3u]) * (SCALE * LOG2_E);
            let places = first + x * COLUMNS + vec4<u32>(0u, 1u, 2u, 3u);
            scores[(r * TALL + y) * SIDE + x] = select(vec4<f32>(LOWEST), four, places < vec4<u32>(tile.w));
        }
        workgroupBarrier();
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
        for (var r = 0u; r < ROWS; r++) {
            let factor_of_row = shrink[r * TALL + y];
            for (var e = 0u; e < EACH; e++) {
                sums[r * EACH + e] *= factor_of_row;
            }
        }
        for (var i = 0u; i < SIDE; i++) {
            var fours = array<vec4<f32>, ROWS>();
            for (var r = 0u; r < ROWS; r++) {
                fours[r] = scores[(r * TALL + y) * SIDE + i];
            }
            let place = first + i * COLUMNS + vec4<u32>(0u, 1u, 2u, 3u);
            let row = (min(place, vec4<u32>(tile.w - 1u)) * H + head) * FOURS;
            // Written out for every e: drivers leave so large a loop rolled, and then the sums are no registers.
            var e = 0u;
//# for _ in range(EACH)
            {
                let d = min(e * SIDE + x, FOURS - 1u);
                let first_value = value_four(row.x + d);
                let second = value_four(row.y + d);
                let third = value_four(row.z + d);
                let fourth = value_four(row.w + d);
                for (var r = 0u; r < ROWS; r++) {
                    let at = r * EACH + e;
                    sums[at] += fours[r].x * first_value + fours[r].y * second + fours[r].z * third + fours[r].w * fourth;
                }
                e++;
            }
//# endfor
        }
        workgroupBarrier();
    }
    if (tid < QUERIES) {
        sums_of[tid] = total;
    }
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
        let mine = r * TALL + y;
        for (var e = 0u; e < EACH; e++) {
            if (mine < count && e * SIDE + x < FOURS) {
                o[((tile.x + mine) * H + head) * FOURS + e * SIDE + x] = sums[r * EACH + e] / sums_of[mine];
            }
        }
    }
}
