// y[t] = sum_k table[ids[t, k]] / K, dequantised. One thread a block of 32 values of one token.
// Bindings: weight (the table), ids, state, y. Called by ops/gather.py.
//# include "lib/weight.wgsl"

@group(0) @binding(0) var<storage, read> weight: array<u32>;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

const BLOCKS: u32 = D / 32u;
const_assert D % 32u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    if (id.x >= BLOCKS || token >= state[1]) {
        return;
    }
    var sums = array<vec4<f32>, 8>();
    for (var k = 0u; k < K; k++) {
        var block = load_block((ids[token * K + k] * BLOCKS + id.x) * BLOCK_BYTES);
        for (var i = 0u; i < 8u; i++) {
            sums[i] += block.scale * four(block.quants[i]) + block.offset;
        }
    }
    for (var i = 0u; i < 8u; i++) {
        y[(token * BLOCKS + id.x) * 8u + i] = sums[i] * (1.0 / f32(K));
    }
}
