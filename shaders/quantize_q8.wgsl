// Activations to int8 in groups of 8 (lib/eight.wgsl).
// sums holds, for every block of 32, the sum of scale * quant: it serves weight formats with an offset.
// One thread a block of 32. Bindings: x, state, quants, scales, sums. Called by ops/matmul.py.
//# include "lib/eight.wgsl"
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> quants: array<u32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;

const_assert D % 32u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let block = id.x + id.y * groups.x * WG;
    if (block >= min(N, state[1] * PER_TOKEN) * (D / 32u)) {
        return;
    }
    var total = 0.0;
    for (var g = 0u; g < 4u; g++) {
        let eight = eight_of(x[block * 8u + 2u * g], x[block * 8u + 2u * g + 1u]);
        quants[block * 8u + 2u * g] = eight.quants.x;
        quants[block * 8u + 2u * g + 1u] = eight.quants.y;
        scales[block * 4u + g] = eight.scale;
        total += eight.total;
    }
    sums[block] = total;
}
