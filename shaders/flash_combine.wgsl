// Attention of one or two tokens over a long cache, where no workgroup of flash_decode.wgsl adds up the parts of the others.
// One workgroup a (head, token). Bindings: scratch, state, o. Called by ops/flash_decode.py.
//# include "lib/splits.wgsl"
//# include "lib/combine.wgsl"
//# if CACHED == "kv_q8"
//# include "lib/mix.wgsl"
//# endif

@group(0) @binding(0) var<storage, read> scratch: Scratch;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> o: array<vec4<f32>>;

var<workgroup> query: array<vec4<f32>, HEADS * FOURS>;
var<workgroup> shares: array<f32, SPLITS * HEADS>;
var<workgroup> found: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let token = group.y;
    if (token >= state[1]) {
        return;
    }
    let seen = state[0] + token + 1u;
    let each = keys_a_split(seen);
    combine(token, group.x * HEADS, (seen + each - 1u) / each, tid);
}
