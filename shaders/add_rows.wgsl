// y[t] = x[t] + sum_k weights[t, k] * table[ids[t, k]], one thread four values of one token.
// Bindings: x, table, ids, weights, state, y. Called by ops/gather.py.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;

const_assert D % 4u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (id.x >= D / 4u || token >= state[1]) {
        return;
    }
    let at = token * (D / 4u) + id.x;
    var sum = x[at];
    for (var k = 0u; k < K; k++) {
        sum += weights[token * K + k] * table[ids[token * K + k] * (D / 4u) + id.x];
    }
    y[at] = sum;
}
