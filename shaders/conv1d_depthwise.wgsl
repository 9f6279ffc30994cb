// y[t, c] = bias[c] + sum_j weight[j, c] * x[lead + t - (TAPS - 1 - j), c]: a causal convolution of every channel alone.
// One thread four channels of a row. Rows from state[1] * rate on are left alone.
// Bindings: weight [TAPS, C], bias, x, state, y. Called by ops/conv1d.py.

struct Shape {
    fours: u32, // channels / 4
    n: u32, // rows of y
    lead: u32, // rows of x before row 0: those of earlier steps
    rate: u32, // rows of a token
}

@group(0) @binding(0) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
var<immediate> shape: Shape;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = id.x;
    let t = id.y;
    if (c >= shape.fours || t >= min(shape.n, state[1] * shape.rate)) {
        return;
    }
    var sum = bias[c];
    for (var j = 0u; j < TAPS; j++) {
        sum += weight[j * shape.fours + c] * x[(shape.lead + t + 1u + j - TAPS) * shape.fours + c];
    }
    y[t * shape.fours + c] = sum;
}
