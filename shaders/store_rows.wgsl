// cache[n_past + t] = x[t]: appends rows of D values to a KV cache, as float32 or float16. One thread a stored word.
// Bindings: x, state, cache. Called by ops/attention.py.
//# include "lib/store.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> cache: array<STORED>;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (id.x >= D / STORED_EACH || token >= state[1]) {
        return;
    }
    let start = token * D + id.x * STORED_EACH;
    cache[(state[0] + token) * (D / STORED_EACH) + id.x] = stored(x[start], x[start + STORED_EACH - 1u]);
}
