// y = OP(a, b) for each of COUNT values a token: "swiglu" = silu(a) * b, "add" = a + b. One thread four values.
// "swiglu_joined": a token's b follow its a in the same tensor.
// Bindings: a, [b], state, y. Called by ops/elementwise.py.
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
//# if OP == "swiglu_joined"
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
//# else
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
//# endif

const_assert COUNT % 4u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    let token = id.y;
    if (i >= COUNT / 4u || token >= state[1]) {
        return;
    }
    let at = token * (COUNT / 4u) + i;
//# if OP == "swiglu"
    let gate = a[at];
    y[at] = gate / (1.0 + exp(-gate)) * b[at];
//# elif OP == "swiglu_joined"
    let gate = a[2u * token * (COUNT / 4u) + i];
    let up = a[(2u * token + 1u) * (COUNT / 4u) + i];
    y[at] = gate / (1.0 + exp(-gate)) * up;
//# elif OP == "add"
    y[at] = a[at] + b[at];
//# endif
}
