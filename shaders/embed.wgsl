// y[t] = table[ids[t]], dequantised. One thread a block of 32 values of one token.
// A table in several parts takes one dispatch a part; each writes the rows that it holds.
// Bindings: weight (the table), ids, state, y. Called by ops/gather.py.
//# include "lib/weight.wgsl"

struct Slice {
    first: u32,
    count: u32,
}

@group(0) @binding(0) var<storage, read> weight: array<u32>;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
var<immediate> slice: Slice;

const BLOCKS: u32 = D / 32u;
const_assert D % 32u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (id.x >= BLOCKS || token >= state[1]) {
        return;
    }
    let row = ids[token];
    if (row < slice.first || row >= slice.first + slice.count) {
        return;
    }
    var block = load_block(((row - slice.first) * BLOCKS + id.x) * BLOCK_BYTES);
    for (var i = 0u; i < 8u; i++) {
        y[(token * BLOCKS + id.x) * 8u + i] = block.scale * four(block.quants[i]) + block.offset;
    }
}
