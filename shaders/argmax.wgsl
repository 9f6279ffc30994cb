// id = the index of the largest of V logits, ties to the lower index; V, which is no index, if none is a number.
// One workgroup for each of PARTS stretches of a row; LISTED: one a row, which compares what those found (parts).
// Compared as integer keys, so that the answer does not depend on how a driver treats tiny floats.
// Bindings: logits, [parts], ids. Called by ops/sample.py.
//# include "lib/sort_key.wgsl"
@group(0) @binding(0) var<storage, read> logits: array<f32>;
//# if LISTED
@group(0) @binding(1) var<storage, read> parts: array<u32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
const COUNT: u32 = PARTS;
//# else
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
const COUNT: u32 = (V + PARTS - 1u) / PARTS;
//# endif

var<workgroup> best_key: array<u32, WG>;
var<workgroup> best_id: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let row = group.y * V;
    var key = 0u; // below every number's, minus infinity too
    var id = V;
    for (var at = tid; at < COUNT; at += WG) {
//# if LISTED
        let i = parts[group.y * PARTS + at];
//# else
        let i = group.x * COUNT + at;
//# endif
        if (i < V) {
            let logit = logits[row + i];
            // Drivers may assume that floats are no NaN, bits not.
            let number = (bitcast<u32>(logit) & 0x7FFFFFFFu) <= 0x7F800000u;
            let other = select(0u, sort_key(logit), number);
            if (other > key) {
                key = other;
                id = i;
            }
        }
    }
    best_key[tid] = key;
    best_id[tid] = id;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (tid < half) {
            let other = best_key[tid + half];
            let other_id = best_id[tid + half];
            if (other > best_key[tid] || (other == best_key[tid] && other_id < best_id[tid])) {
                best_key[tid] = other;
                best_id[tid] = other_id;
            }
        }
    }
    workgroupBarrier();
    if (tid == 0u) {
//# if LISTED
        ids[group.y] = best_id[0];
//# else
        ids[group.y * PARTS + group.x] = best_id[0];
//# endif
    }
}
