// y[t] = source[n_past + t]: rows of D values out of a larger buffer, in fours. One thread a four.
// Bindings: source, state, y. Called by ops/rows.py.

@group(0) @binding(0) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

const_assert D % 4u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (id.x < D / 4u && token < state[1]) {
        y[token * (D / 4u) + id.x] = source[(state[0] + token) * (D / 4u) + id.x];
    }
}
