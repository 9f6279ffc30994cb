// y[t] = rows[t] where flags[t] is not 0, else x[t]: what a picture or a sound takes the place of in a prompt.
// One thread four of a token's D values. Bindings: x, rows, flags, state, y. Called by ops/elementwise.py.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> flags: array<u32>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

const_assert D % 4u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (id.x >= D / 4u || token >= state[1]) {
        return;
    }
    let at = token * (D / 4u) + id.x;
    if (flags[token] != 0u) {
        y[at] = rows[at];
    } else {
        y[at] = x[at];
    }
}
