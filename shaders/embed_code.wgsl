// The row of one code, dequantised: as the next step's input x, and added to the frame's total. One thread a block of 32.
// BEFORE: x gets that row first and the code's as its second. A code that is no row counts as the last one; whoever
// reads the codes sees it.
// Bindings: weight (the table), id, [before], x, total. Called by ops/codes.py.
//# include "lib/weight.wgsl"
@group(0) @binding(0) var<storage, read> weight: array<u32>;
@group(0) @binding(1) var<storage, read> id: array<u32>;
//# if BEFORE
@group(0) @binding(2) var<storage, read> before: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> total: array<vec4<f32>>;
//# else
@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> total: array<vec4<f32>>;
//# endif

const BLOCKS: u32 = D / 32u;
const_assert D % 32u == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) thread: vec3<u32>) {
    if (thread.x >= BLOCKS) {
        return;
    }
    let row = min(id[0], V - 1u);
    var block = load_block((row * BLOCKS + thread.x) * BLOCK_BYTES);
    for (var i = 0u; i < 8u; i++) {
        let at = thread.x * 8u + i;
        let values = block.scale * four(block.quants[i]) + block.offset;
        total[at] += values;
//# if BEFORE
        x[at] = before[at];
        x[D / 4u + at] = values;
//# else
        x[at] = values;
//# endif
    }
}
