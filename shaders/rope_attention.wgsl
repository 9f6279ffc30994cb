// rope_qkv and attention of one or two tokens over a cache of at most S keys, in one dispatch: a decoder layer of a model
// that sees few tokens (the code predictor). x is [N, (H + 2 KV) * HD]; one workgroup a key/value head with its G query
// heads: norm and turn them (lib/turn.wgsl), append key and value to row n_past + t, then softmax(q k^T * SCALE) v.
// New keys and values are read as they are stored, from workgroup memory: nothing written here is read back.
// Bindings: x, positions, freqs, [norms: HD weights for q, HD for k], state, y, keys, values.
// Called by ops/rope_attention.py.
//# include "lib/turn.wgsl"
//# include "lib/store.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> positions: array<f32>;
@group(0) @binding(2) var<storage, read> freqs: array<f32>;
//# if NORM
@group(0) @binding(3) var<storage, read> norms: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> keys: array<STORED>;
@group(0) @binding(7) var<storage, read_write> values: array<STORED>;
//# else
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> keys: array<STORED>;
@group(0) @binding(6) var<storage, read_write> values: array<STORED>;
//# endif

const G: u32 = H / KV;
const HEADS: u32 = G + 1u; // of a token: queries, then the key
const WORDS: u32 = HD / STORED_EACH;
const LOWEST: f32 = -3.0e38;

var<workgroup> heads: array<f32, N * HEADS * HD>;
var<workgroup> new_values: array<f32, N * HD>;
var<workgroup> scores: array<f32, N * G * S>;
var<workgroup> shares: array<f32, N * G * S>;
//# if NORM
const PARTS: u32 = 8u; // sums of squares a head
var<workgroup> squares: array<f32, N * HEADS * PARTS>;
//# endif

// What a float becomes in the cache and back.
//# if TO == "f16"
fn kept(word: STORED) -> vec2<f32> {
    return unpack2x16float(word);
}
//# else
fn kept(word: STORED) -> vec2<f32> {
    return vec2<f32>(word);
}
//# endif

// Element d of a head: what of x it is, times its norm.
fn head_value(token: u32, head: u32, kv_head: u32, d: u32) -> f32 {
    let from_head = select(kv_head * G + head, H + kv_head, head == G);
    let value = x[(token * (H + 2u * KV) + from_head) * HD + d];
//# if NORM
    var sum = 0.0;
    for (var i = 0u; i < PARTS; i++) {
        sum += squares[(token * HEADS + head) * PARTS + i];
    }
    return norms[select(0u, HD, head == G) + d] * (value / sqrt(sum / f32(HD) + EPS));
//# else
    return value;
//# endif
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let kv_head = group.x;
    let past = state[0];
    let n = min(state[1], N);
    let n_keys = past + n;
//# if NORM
    for (var i = tid; i < n * HEADS * PARTS; i += WG) {
        let head = i / PARTS % HEADS;
        let start = ((i / PARTS / HEADS) * (H + 2u * KV) + select(kv_head * G + head, H + kv_head, head == G)) * HD;
        var sum = 0.0;
        for (var d = i % PARTS; d < HD; d += PARTS) {
            sum += x[start + d] * x[start + d];
        }
        squares[i] = sum;
    }
    workgroupBarrier();
//# endif
    for (var i = tid; i < n * HEADS * PAIRS; i += WG) {
        let pair = i % PAIRS;
        let token = i / PAIRS / HEADS;
        let head = i / PAIRS % HEADS;
        let turn = turn_of(token, pair);
        let a = select(pair, 2u * pair, INTERLEAVED);
        let b = select(pair + PAIRS, 2u * pair + 1u, INTERLEAVED);
        let first = head_value(token, head, kv_head, a);
        let second = head_value(token, head, kv_head, b);
        let start = (token * HEADS + head) * HD;
        heads[start + a] = first * turn.y - second * turn.x;
        heads[start + b] = second * turn.y + first * turn.x;
    }
    for (var i = tid; i < n * HEADS * (HD - 2u * PAIRS); i += WG) {
        let head = i / (HD - 2u * PAIRS);
        let d = 2u * PAIRS + i % (HD - 2u * PAIRS);
        heads[head * HD + d] = head_value(head / HEADS, head % HEADS, kv_head, d);
    }
    workgroupBarrier();
    for (var i = tid; i < n * WORDS; i += WG) {
        let token = i / WORDS;
        let d = i % WORDS * STORED_EACH;
        let to = ((past + token) * KV + kv_head) * WORDS + i % WORDS;
        let of_key = (token * HEADS + G) * HD + d;
        let of_value = (token * (H + 2u * KV) + H + KV + kv_head) * HD + d;
        let key = stored(heads[of_key], heads[of_key + STORED_EACH - 1u]);
        let value = stored(x[of_value], x[of_value + STORED_EACH - 1u]);
        keys[to] = key;
        values[to] = value;
        for (var j = 0u; j < STORED_EACH; j++) {
            heads[of_key + j] = kept(key)[j];
            new_values[token * HD + d + j] = kept(value)[j];
        }
    }
    workgroupBarrier();
    for (var i = tid; i < n * G * n_keys; i += WG) {
        let row = i / n_keys; // token * G + query head
        let key = i % n_keys;
        let q = (row / G * HEADS + row % G) * HD;
        var sum = 0.0;
        if (key < past) {
            let at = (key * KV + kv_head) * WORDS;
            for (var w = 0u; w < WORDS; w++) {
                let two = kept(keys[at + w]);
                for (var j = 0u; j < STORED_EACH; j++) {
                    sum += two[j] * heads[q + w * STORED_EACH + j];
                }
            }
        } else {
            let at = ((key - past) * HEADS + G) * HD;
            for (var d = 0u; d < HD; d++) {
                sum += heads[at + d] * heads[q + d];
            }
        }
        scores[row * S + key] = select(LOWEST, sum * SCALE, key <= past + row / G);
    }
    workgroupBarrier();
    for (var i = tid; i < n * G * n_keys; i += WG) {
        let row = i / n_keys;
        var largest = LOWEST;
        for (var key = 0u; key < n_keys; key++) {
            largest = max(largest, scores[row * S + key]);
        }
        let at = row * S + i % n_keys;
        shares[at] = exp(scores[at] - largest); // of keys to come: 0
    }
    workgroupBarrier();
    for (var i = tid; i < n * G * HD; i += WG) {
        let row = i / HD;
        let d = i % HD;
        var sum = 0.0;
        var total = 0.0;
        for (var key = 0u; key < past; key++) {
            let share = shares[row * S + key];
            sum += share * kept(values[(key * KV + kv_head) * WORDS + d / STORED_EACH])[d % STORED_EACH];
            total += share;
        }
        for (var key = past; key < n_keys; key++) {
            let share = shares[row * S + key];
            sum += share * new_values[(key - past) * HD + d];
            total += share;
        }
        y[(row / G * H + kv_head * G + row % G) * HD + d] = sum / total;
    }
}
