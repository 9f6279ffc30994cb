// Router: softmax over E experts, the K largest by falling probability (ties to the lower id), renormalised if
// RENORMALISE. One workgroup a token; thread i watches experts i, i + WG, ...
// ALWAYS: that many experts come after the chosen ones, E, E + 1, ...; their weight is the sigmoid of one more logit.
// Bindings: logits, state, ids, weights. Called by ops/moe.py.
//# include "lib/reduce.wgsl"
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;

const WIDTH: u32 = E + select(0u, 1u, ALWAYS > 0u);
const EACH: u32 = (E + WG - 1u) / WG;
const LOWEST: f32 = -3.0e38;
var<workgroup> best_value: array<f32, WG>;
var<workgroup> best_id: array<u32, WG>;
var<workgroup> chosen_id: array<u32, K>;
var<workgroup> chosen: array<f32, K>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let token = group.x;
    if (token >= state[1]) {
        return;
    }
    var mine = array<f32, EACH>();
    var largest = LOWEST;
    for (var i = 0u; i < EACH; i++) {
        let e = i * WG + tid;
        mine[i] = LOWEST;
        if (e < E) {
            mine[i] = logits[token * WIDTH + e];
        }
        largest = max(largest, mine[i]);
    }
    largest = workgroup_max(largest, tid);
    var sum = 0.0;
    for (var i = 0u; i < EACH; i++) {
        sum += select(0.0, exp(mine[i] - largest), i * WG + tid < E);
    }
    sum = workgroup_sum(sum, tid);
    for (var k = 0u; k < K; k++) {
        var value = LOWEST;
        var id = E;
        for (var i = 0u; i < EACH; i++) {
            if (mine[i] > value) {
                value = mine[i];
                id = i * WG + tid;
            }
        }
        best_value[tid] = value;
        best_id[tid] = id;
        for (var half = WG / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if (tid < half) {
                let other = best_value[tid + half];
                let other_id = best_id[tid + half];
                if (other > best_value[tid] || (other == best_value[tid] && other_id < best_id[tid])) {
                    best_value[tid] = other;
                    best_id[tid] = other_id;
                }
            }
        }
        workgroupBarrier();
        let winner = best_id[0];
        if (tid == 0u) {
            chosen_id[k] = winner;
            chosen[k] = exp(best_value[0] - largest) / sum;
        }
        for (var i = 0u; i < EACH; i++) {
            if (i * WG + tid == winner) {
                mine[i] = LOWEST;
            }
        }
        workgroupBarrier();
    }
    if (tid < K) {
        var total = 1.0;
        if (RENORMALISE) {
            total = 0.0;
            for (var k = 0u; k < K; k++) {
                total += chosen[k];
            }
        }
        ids[token * (K + ALWAYS) + tid] = chosen_id[tid];
        weights[token * (K + ALWAYS) + tid] = chosen[tid] / total;
    }
    for (var i = tid; i < ALWAYS; i += WG) {
        ids[token * (K + ALWAYS) + K + i] = E + i;
        weights[token * (K + ALWAYS) + K + i] = 1.0 / (1.0 + exp(-logits[token * WIDTH + E]));
    }
}
