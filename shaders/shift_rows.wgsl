// cache[i] = cache[n_past - COUNT + i] for i < COUNT: the last rows of a KV cache move to its start.
// One workgroup eight fours of channels. Eight rows at a time are read, then written: what is written lies before all
// that is still to be read, as n_past >= COUNT.
// Bindings: state, cache. Called by ops/streams.py.

struct Shape {
    fours: u32, // width / 4
    count: u32, // rows to move
}

@group(0) @binding(0) var<storage, read> state: array<u32>;
@group(0) @binding(1) var<storage, read_write> cache: array<vec4<f32>>;
var<immediate> shape: Shape;

const SIDE: u32 = 8u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let c = group.x * SIDE + tid % SIDE;
    let inside = c < shape.fours;
    let start = state[0] - shape.count;
    for (var first = 0u; first < shape.count; first += SIDE) {
        let i = first + tid / SIDE;
        let moves = inside && i < shape.count;
        var four = vec4<f32>(0.0);
        if (moves) {
            four = cache[(start + i) * shape.fours + c];
        }
        storageBarrier();
        if (moves) {
            cache[i * shape.fours + c] = four;
        }
    }
}
