// What attention needs of one matmul's queries, keys and values: q turned, k turned into row n_past + t of the key
// cache, v copied into the value cache; for a cache of 8-bit blocks all three also go through lib/mix.wgsl.
// With NORM an RMS norm over every query and key head comes first (QK-norm).
// x is [N, (H + 2 KV) * HD]; one workgroup a head of a token, all of them in one dispatch. Turning: lib/turn.wgsl.
// Bindings: x, positions, freqs, [norms: HD weights for q, HD for k], state, q, keys, values. Called by ops/rope.py.
//# include "lib/turn.wgsl"
//# include "lib/cell.wgsl"
//# include "lib/fresh.wgsl"
//# if CACHED == "kv_q8"
//# include "lib/mix.wgsl"
//# endif

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> positions: array<f32>;
@group(0) @binding(2) var<storage, read> freqs: array<f32>;
//# if NORM
@group(0) @binding(3) var<storage, read> norms: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> q: array<f32>;
@group(0) @binding(6) var<storage, read_write> keys: array<CELL>;
@group(0) @binding(7) var<storage, read_write> values: array<CELL>;
//# else
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> q: array<f32>;
@group(0) @binding(5) var<storage, read_write> keys: array<CELL>;
@group(0) @binding(6) var<storage, read_write> values: array<CELL>;
//# endif

fn fresh(i: u32) -> f32 {
    return head_out[i];
}

//# if CACHED == "kv_q8"
fn mix_head(tid: u32) {
    for (var block = tid; block < HD / 32u; block += WG) {
        var part = array<f32, 32>();
        for (var i = 0u; i < 32u; i++) {
            part[i] = head_out[block * 32u + i];
        }
        part = mix(part);
        for (var i = 0u; i < 32u; i++) {
            head_out[block * 32u + i] = part[i];
        }
    }
    workgroupBarrier();
}
//# endif

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let head = group.x;
    let token = group.y;
    if (token >= state[1]) {
        return;
    }
    let start = (token * (H + 2u * KV) + head) * HD;
    let row = state[0] + token;
    for (var d = tid; d < HD; d += WG) {
        head_in[d] = x[start + d];
        head_out[d] = x[start + d];
    }
    workgroupBarrier();
    if (head >= H + KV) {
//# if CACHED == "kv_q8"
        mix_head(tid);
//# endif
        for (var i = tid; i < CELLS; i += WG) {
            values[cell_at(row, head - H - KV, i)] = cell(0u, i);
        }
        return;
    }
//# if NORM
    let scale = head_scale(tid);
    let which = select(0u, HD, head >= H);
    for (var d = tid; d < HD; d += WG) {
        head_in[d] = norms[which + d] * (head_in[d] * scale);
    }
    workgroupBarrier();
//# endif
    turn_head(token, tid);
//# if CACHED == "kv_q8"
    mix_head(tid);
//# endif
    if (head < H) {
        for (var d = tid; d < HD; d += WG) {
            q[(token * H + head) * HD + d] = head_out[d];
        }
        return;
    }
    for (var i = tid; i < KEY_CELLS; i += WG) {
        keys[key_cell_at(row, head - H, i)] = key_cell(0u, i);
    }
}
