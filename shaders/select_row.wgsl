// y = the last valid row of x: row n_tokens - 1, so that the head runs on one row of a padded bucket.
// Bindings: x, state, y. Called by ops/gather.py.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < D) {
        y[id.x] = x[(state[1] - 1u) * D + id.x];
    }
}
