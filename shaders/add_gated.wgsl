// y = x + sigmoid(h . gate) * extra: what the shared expert adds to the chosen ones. One workgroup a token.
// Bindings: x, extra, h, gate, state, y. Called by ops/gated.py.
//# include "lib/reduce.wgsl"
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> extra: array<f32>;
@group(0) @binding(2) var<storage, read> h: array<f32>;
@group(0) @binding(3) var<storage, read> gate: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let row = group.x;
    if (row >= state[1]) {
        return;
    }
    var sum = 0.0;
    for (var d = tid; d < D; d += WG) {
        sum += h[row * D + d] * gate[d];
    }
    let share = 1.0 / (1.0 + exp(-workgroup_sum(sum, tid)));
    for (var d = tid; d < D; d += WG) {
        y[row * D + d] = x[row * D + d] + share * extra[row * D + d];
    }
}
