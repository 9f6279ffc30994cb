// y = weight * x / sqrt(mean(x^2) + EPS), one workgroup a row of D values.
// RESIDUAL: x is first added to the residual stream, and the sum is written, too. SCALED: x times a factor a column.
// Bindings: x, [residual, [factors]], weight, state, [sum], y. Called by ops/norm.py.
//# include "lib/reduce.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
//# if RESIDUAL
@group(0) @binding(1) var<storage, read> residual: array<f32>;
//# if SCALED
@group(0) @binding(2) var<storage, read> factors: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> sum: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
//# else
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> sum: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
//# endif
//# else
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
//# endif

const EACH: u32 = (D + WG - 1u) / WG; // values a thread keeps in registers

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let row = group.x;
    if (row >= state[1]) {
        return;
    }
    var values = array<f32, EACH>();
    var squares = 0.0;
    for (var i = 0u; i < EACH; i++) {
        let d = i * WG + tid;
        if (d < D) {
            var value = x[row * D + d];
//# if SCALED
            value *= factors[d];
//# endif
//# if RESIDUAL
            value += residual[row * D + d];
            sum[row * D + d] = value;
//# endif
            values[i] = value;
            squares += value * value;
        }
    }
    let scale = 1.0 / sqrt(workgroup_sum(squares, tid) / f32(D) + EPS);
    for (var i = 0u; i < EACH; i++) {
        let d = i * WG + tid;
        if (d < D) {
            y[row * D + d] = weight[d] * (values[i] * scale);
        }
    }
}
