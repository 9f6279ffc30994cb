// o = softmax(q k^T * SCALE, causal) v with grouped heads: token t sees keys 0 .. n_past + t of the cache, with WINDOW
// only the last so many of them.
// One workgroup a (token, key/value head): its G query heads share every key and value read. Keys come in tiles of WG,
// one key a thread for the scores, one or more output dimensions a thread for the sums; running maximum and sum
// (Milakov and Gimelshein's online softmax). KV cache float32, or float16 two to a word.
// Bindings: q, keys, values, state, o. Called by ops/attention.py.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
//# if FROM == "f16"
@group(0) @binding(1) var<storage, read> keys: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> values: array<u32>;
//# else
@group(0) @binding(1) var<storage, read> keys: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> values: array<vec2<f32>>;
//# endif
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<vec2<f32>>;

//# if FROM == "f16"
fn key_four(i: u32) -> vec4<f32> {
    let words = keys[i];
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}
fn value_two(i: u32) -> vec2<f32> {
    return unpack2x16float(values[i]);
}
//# else
fn key_four(i: u32) -> vec4<f32> {
    return keys[i];
}
fn value_two(i: u32) -> vec2<f32> {
    return values[i];
}
//# endif

const G: u32 = H / KV;
const TWOS: u32 = HD / 2u;
const EACH: u32 = (TWOS + WG - 1u) / WG;
const LOWEST: f32 = -3.0e38;
const_assert HD % 4u == 0u;
const_assert H % KV == 0u;
const_assert WG >= G;
const SHARE: u32 = WG / G; // threads that search one head's maximum

var<workgroup> query: array<vec4<f32>, G * HD / 4u>;
var<workgroup> scores: array<f32, G * WG>;
var<workgroup> partial: array<f32, WG>;
var<workgroup> highest: array<f32, G>;
var<workgroup> shrink: array<f32, G>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let kv_head = group.x;
    let token = group.y;
    if (token >= state[1]) {
        return;
    }
    let n_keys = state[0] + token + 1u;
    for (var i = tid; i < G * HD / 4u; i += WG) {
        query[i] = q[(token * H + kv_head * G) * (HD / 4u) + i];
    }
    if (tid < G) {
        highest[tid] = LOWEST;
    }
    var sums = array<vec2<f32>, G * EACH>();
    var totals = array<f32, G>();
    workgroupBarrier();
//# if WINDOW
    let oldest = max(n_keys, WINDOW) - WINDOW;
//# else
    let oldest = 0u;
//# endif
    for (var first = oldest; first < n_keys; first += WG) {
        let count = min(WG, n_keys - first);
        var dots = array<f32, G>();
        if (tid < count) {
            let at = ((first + tid) * KV + kv_head) * (HD / 4u);
            for (var i = 0u; i < HD / 4u; i++) {
                let four = key_four(at + i);
                for (var g = 0u; g < G; g++) {
                    dots[g] += dot(four, query[g * (HD / 4u) + i]);
                }
            }
        }
        for (var g = 0u; g < G; g++) {
            dots[g] = select(LOWEST, dots[g] * SCALE, tid < count);
            scores[g * WG + tid] = dots[g];
        }
        workgroupBarrier();
        if (tid < G * SHARE) {
            let g = tid / SHARE;
            var largest = LOWEST;
            for (var j = tid % SHARE; j < WG; j += SHARE) {
                largest = max(largest, scores[g * WG + j]);
            }
            partial[tid] = largest;
        }
        workgroupBarrier();
        if (tid < G) {
            var largest = highest[tid];
            for (var j = 0u; j < SHARE; j++) {
                largest = max(largest, partial[tid * SHARE + j]);
            }
            shrink[tid] = exp(highest[tid] - largest);
            highest[tid] = largest;
        }
        workgroupBarrier();
        for (var g = 0u; g < G; g++) {
            scores[g * WG + tid] = select(0.0, exp(dots[g] - highest[g]), tid < count);
        }
        workgroupBarrier();
        for (var g = 0u; g < G; g++) {
            totals[g] *= shrink[g];
            for (var e = 0u; e < EACH; e++) {
                sums[g * EACH + e] *= shrink[g];
            }
        }
        for (var j = 0u; j < count; j++) {
            let at = ((first + j) * KV + kv_head) * TWOS;
            for (var g = 0u; g < G; g++) {
                totals[g] += scores[g * WG + j];
            }
            for (var e = 0u; e < EACH; e++) {
                let d = e * WG + tid;
                if (d < TWOS) {
                    let two = value_two(at + d);
                    for (var g = 0u; g < G; g++) {
                        sums[g * EACH + e] += scores[g * WG + j] * two;
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var g = 0u; g < G; g++) {
        for (var e = 0u; e < EACH; e++) {
            let d = e * WG + tid;
            if (d < TWOS) {
                o[(token * H + kv_head * G + g) * TWOS + d] = sums[g * EACH + e] / totals[g];
            }
        }
    }
}
