// The K largest of COUNT candidates, which are the K largest of each of PARTS chunks (largest.wgsl), and the log of the
// sum of exp over all logits, in values[K]. In the order of the ids; the host sorts. One workgroup.
// Bindings: ids, values (as bits), sums, top_ids, top_values (as bits). Called by ops/pick.py.
//# include "lib/sort_key.wgsl"
//# include "lib/largest.wgsl"
//# include "lib/candidates.wgsl"
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read> sums: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> top_ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> top_values: array<u32>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) tid: u32) {
    load_keys(tid);
    var found = border(tid);
    for (var i = 0u; i < EACH; i++) {
        let tie = keys[i] == found.key;
        if (keys[i] > found.key || (tie && found.tied < found.ties)) {
            top_ids[found.at] = ids[tid * EACH + i];
            top_values[found.at] = values[tid * EACH + i];
            found.at += 1u;
        }
        found.tied += u32(tie);
    }
    if (tid == 0u) {
        let largest = largest_of_all();
        top_values[K] = bitcast<u32>(largest + log(sum_of_all(largest)));
    }
}
