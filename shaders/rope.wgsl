// Rotary position embedding of heads, optionally after an RMS norm over each head (QK-norm).
// How a head turns: lib/turn.wgsl.
// One workgroup a head of a token. CACHE: the result goes to row n_past + t of a KV cache.
// Bindings: x, positions, freqs, [norm weight], state, y. Called by ops/rope.py.
//# include "lib/turn.wgsl"
//# include "lib/store.wgsl"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> positions: array<f32>;
@group(0) @binding(2) var<storage, read> freqs: array<f32>;
//# if NORM
@group(0) @binding(3) var<storage, read> norm: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<STORED>;
//# else
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<STORED>;
//# endif

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let head = group.x;
    let token = group.y;
    if (token >= state[1]) {
        return;
    }
    let start = (token * H + head) * HD;
    for (var d = tid; d < HD; d += WG) {
        head_in[d] = x[start + d];
    }
    workgroupBarrier();
//# if NORM
    let scale = head_scale(tid);
    for (var d = tid; d < HD; d += WG) {
        head_in[d] = norm[d] * (head_in[d] * scale);
    }
    workgroupBarrier();
//# endif
    turn_head(token, tid);
    let row = select(token, state[0] + token, CACHE);
    let to = (row * H + head) * (HD / STORED_EACH);
    for (var i = tid; i < HD / STORED_EACH; i += WG) {
        y[to + i] = stored(head_out[i * STORED_EACH], head_out[i * STORED_EACH + STORED_EACH - 1u]);
    }
}
