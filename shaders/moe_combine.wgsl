// y[t] = sum_k weights[t, k] * x[t, k]: the chosen experts' outputs, weighted. One thread four values of a token.
// Bindings: x, weights, state, y. Called by ops/moe.py.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

const_assert D % 4u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (id.x >= D / 4u || token >= state[1]) {
        return;
    }
    var sum = vec4<f32>(0.0);
    for (var k = 0u; k < K; k++) {
        sum += weights[token * K + k] * x[(token * K + k) * (D / 4u) + id.x];
    }
    y[token * (D / 4u) + id.x] = sum;
}
