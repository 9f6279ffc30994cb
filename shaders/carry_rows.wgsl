// x[i] = kept[i], then kept[i] = x[used + i], for the rows i of kept: the end of one step becomes what lies before the
// next. x has as many rows of the step behind them, of which used = state[1] * RATE count.
// One workgroup eight fours of channels, all rows: no other touches them, so that a barrier is enough between the two.
// Bindings: state, x, kept. Called by ops/streams.py.

struct Shape {
    fours: u32, // channels / 4
    count: u32, // rows of kept
}

@group(0) @binding(0) var<storage, read> state: array<u32>;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> kept: array<vec4<f32>>;
var<immediate> shape: Shape;

const SIDE: u32 = 8u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let c = group.x * SIDE + tid % SIDE;
    let inside = c < shape.fours;
    let used = state[1] * RATE;
    for (var i = tid / SIDE; i < shape.count; i += SIDE) {
        if (inside) {
            x[i * shape.fours + c] = kept[i * shape.fours + c];
        }
    }
    storageBarrier();
    for (var i = tid / SIDE; i < shape.count; i += SIDE) {
        if (inside) {
            kept[i * shape.fours + c] = x[(used + i) * shape.fours + c];
        }
    }
}
