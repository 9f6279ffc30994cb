// The router of a mixture of experts, from the hidden state to the choice: logits = h router^T, softmax over E experts, the
// K largest by falling probability (ties to the lower id), renormalised if RENORMALISE. One workgroup a token.
// NORM: h = x / sqrt(mean(x^2) + EPS) * norm comes first and is written for the experts. ALWAYS: that many experts come
// after the chosen ones, E, E + 1, ...; their weight is the sigmoid of a last row of the router.
// An expert's place is the number of those before it: compared as integers, so that the ids are E at most whatever happens.
// Bindings: weight (the router), x, [norm], state, [h], ids, weights. Called by ops/moe_route.py.
//# include "lib/weight.wgsl"
//# include "lib/activations.wgsl"
//# include "lib/reduce.wgsl"
//# include "lib/sort_key.wgsl"

@group(0) @binding(0) var<storage, read> weight: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
//# if NORM
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> h: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> ids: array<u32>;
@group(0) @binding(6) var<storage, read_write> weights: array<f32>;
//# else
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;
//# endif

const BLOCKS: u32 = D / 32u;
const X_BLOCKS: u32 = BLOCKS;
const WIDTH: u32 = E + select(0u, 1u, ALWAYS > 0u);
const GROUPS: u32 = WG / LANES; // threads that share a row
const STRIDE: u32 = LANES + 1u;
const_assert D % 32u == 0u;

var<workgroup> partial: array<f32, WIDTH * STRIDE>;
var<workgroup> logits: array<f32, WIDTH>;
var<workgroup> keys: array<u32, E>;
var<workgroup> chosen: array<u32, K>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let token = group.x;
    if (token >= state[1]) {
        return;
    }
    var scale = 1.0;
//# if NORM
    var squares = 0.0;
    for (var i = tid; i < D / 4u; i += WG) {
        let four = x[token * (D / 4u) + i];
        squares += dot(four, four);
    }
    scale = 1.0 / sqrt(workgroup_sum(squares, tid) / f32(D) + EPS);
//# endif
    for (var i = tid; i < D / 8u; i += WG) {
        let at = token * (D / 4u) + 2u * i;
        var a = x[at];
        var b = x[at + 1u];
//# if NORM
        a = norm[2u * i] * (a * scale);
        b = norm[2u * i + 1u] * (b * scale);
        h[at] = a;
        h[at + 1u] = b;
//# endif
//# if STAGED
        stage(i, a, b);
//# endif
    }
    workgroupBarrier();
    let lane = tid % LANES;
    for (var row = tid / LANES; row < WIDTH; row += GROUPS) {
        var sum = 0.0;
        for (var b = lane; b < BLOCKS; b += LANES) {
            let block = load_block((row * BLOCKS + b) * BLOCK_BYTES);
//# if STAGED
            sum += product(block, activations(b));
//# else
            sum += product(block, activations_of(token * BLOCKS + b));
//# endif
        }
        partial[row * STRIDE + lane] = sum;
    }
    workgroupBarrier();
    for (var e = tid; e < WIDTH; e += WG) {
        var sum = 0.0;
        for (var i = 0u; i < LANES; i++) {
            sum += partial[e * STRIDE + i];
        }
        logits[e] = sum;
        if (e < E) {
            keys[e] = sort_key(sum);
        }
    }
    workgroupBarrier();
    for (var e = tid; e < E; e += WG) {
        var before = 0u;
        for (var other = 0u; other < E; other++) {
            before += u32(keys[other] > keys[e] || (keys[other] == keys[e] && other < e));
        }
        if (before < K) {
            chosen[before] = e;
        }
    }
    workgroupBarrier();
    let best = logits[chosen[0]];
    var total = 0.0;
    if (RENORMALISE) {
        for (var k = 0u; k < K; k++) {
            total += exp(logits[chosen[k]] - best);
        }
    } else {
        for (var e = tid; e < E; e += WG) {
            total += exp(logits[e] - best);
        }
        total = workgroup_sum(total, tid);
    }
    for (var k = tid; k < K + ALWAYS; k += WG) {
        let at = token * (K + ALWAYS) + k;
        if (k < K) {
            ids[at] = chosen[k];
            weights[at] = exp(logits[chosen[k]] - best) / total;
        } else {
            ids[at] = E + k - K;
            weights[at] = 1.0 / (1.0 + exp(-logits[WIDTH - 1u]));
        }
    }
}
