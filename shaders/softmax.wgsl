// y = exp(x - max(x)) / sum over a row of D values; one workgroup a row.
// Bindings: x, state, y. Called by ops/elementwise.py.
//# include "lib/reduce.wgsl"
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let row = group.x;
    if (row >= state[1]) {
        return;
    }
    var largest = -3.0e38;
    for (var d = tid; d < D; d += WG) {
        largest = max(largest, x[row * D + d]);
    }
    largest = workgroup_max(largest, tid);
    var sum = 0.0;
    for (var d = tid; d < D; d += WG) {
        sum += exp(x[row * D + d] - largest);
    }
    sum = workgroup_sum(sum, tid);
    for (var d = tid; d < D; d += WG) {
        y[row * D + d] = exp(x[row * D + d] - largest) / sum;
    }
}
