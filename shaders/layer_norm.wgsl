// y = weight * (x - mean(x)) / sqrt(var(x) + EPS) + bias, one workgroup a row of D values, PER_TOKEN rows a token.
// The variance is the mean of squared differences from the mean, in a second pass over registers.
// RESIDUAL: x is first added to the residual stream, and the sum is written, too.
// Bindings: x, [residual], weight, bias, state, [sum], y. Called by ops/norm.py.
//# include "lib/reduce.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
//# if RESIDUAL
@group(0) @binding(1) var<storage, read> residual: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> sum: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
//# endif

const EACH: u32 = (D + WG - 1u) / WG; // values a thread keeps in registers

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) tid: u32,
) {
    let row = group.x + group.y * groups.x;
    if (row >= ROWS || row >= state[1] * PER_TOKEN) {
        return;
    }
    var values = array<f32, EACH>();
    var total = 0.0;
    for (var i = 0u; i < EACH; i++) {
        let d = i * WG + tid;
        if (d < D) {
            var value = x[row * D + d];
//# if RESIDUAL
            value += residual[row * D + d];
            sum[row * D + d] = value;
//# endif
            values[i] = value;
            total += value;
        }
    }
    let mean = workgroup_sum(total, tid) / f32(D);
    var squares = 0.0;
    for (var i = 0u; i < EACH; i++) {
        if (i * WG + tid < D) {
            values[i] -= mean;
            squares += values[i] * values[i];
        }
    }
    let scale = 1.0 / sqrt(workgroup_sum(squares, tid) / f32(D) + EPS);
    for (var i = 0u; i < EACH; i++) {
        let d = i * WG + tid;
        if (d < D) {
            y[row * D + d] = weight[d] * (values[i] * scale) + bias[d];
        }
    }
}
