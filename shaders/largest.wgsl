// Of every chunk of WG * EACH logits the K largest, in the order of their ids, with the largest and the sum of
// exp(logit - largest) of the whole chunk. One workgroup a chunk. Where a chunk has fewer than K, id V stands for nothing.
// A logit that is no number counts as the largest there is, so that damage shows.
// SEEN: seen[id] counts how often an id is in the window of the penalties, which include one that leaves it now;
// settings = (.., 5: leaving id, 6: repeat, 7: presence, 8: frequency penalty). The repeat penalty divides positive logits and
// multiplies others; then presence + frequency * count is taken off.
// Bindings: logits, [seen, settings], ids, values (as bits), sums. Called by ops/pick.py.
//# include "lib/reduce.wgsl"
//# include "lib/sort_key.wgsl"
//# include "lib/largest.wgsl"
@group(0) @binding(0) var<storage, read> logits: array<f32>;
//# if SEEN
@group(0) @binding(1) var<storage, read> seen: array<u32>;
@group(0) @binding(2) var<storage, read> settings: array<f32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> values: array<u32>;
@group(0) @binding(5) var<storage, read_write> sums: array<vec2<f32>>;
//# else
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<u32>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec2<f32>>;
//# endif

const_assert K <= WG * EACH;
var<workgroup> best: atomic<u32>;

fn key_of(i: u32) -> u32 {
    var value = logits[i];
    // Drivers may assume that floats are no NaN, bits not.
    if ((bitcast<u32>(value) & 0x7FFFFFFFu) > 0x7F800000u) {
        return 0xFFFFFFFFu;
    }
//# if SEEN
    let count = seen[i] - u32(i == u32(settings[5]));
    if (count > 0u) {
        value = select(value * settings[6], value / settings[6], value > 0.0) - (f32(count) * settings[8] + settings[7]);
    }
//# endif
    return sort_key(value);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let first = (group.x * WG + tid) * EACH;
    var top = 0u;
    for (var i = 0u; i < EACH; i++) {
        keys[i] = 0u;
        if (first + i < V) {
            keys[i] = key_of(first + i);
        }
        top = max(top, keys[i]);
    }
    if (tid == 0u) {
        atomicStore(&best, 0u);
    }
    workgroupBarrier();
    atomicMax(&best, top);
    workgroupBarrier();
    let largest = bitcast<f32>(bits_of(atomicLoad(&best)));
    var sum = 0.0;
    for (var i = 0u; i < EACH; i++) {
        if (keys[i] > 0x007FFFFFu) { // above minus infinity
            sum += exp(bitcast<f32>(bits_of(keys[i])) - largest);
        }
    }
    sum = workgroup_sum(sum, tid);
    if (tid == 0u) {
        sums[group.x] = vec2<f32>(largest, sum);
    }
    var found = border(tid);
    for (var i = 0u; i < EACH; i++) {
        let tie = keys[i] == found.key;
        if (keys[i] > found.key || (tie && found.tied < found.ties)) {
            ids[group.x * K + found.at] = select(first + i, V, keys[i] == 0u);
            values[group.x * K + found.at] = select(bits_of(keys[i]), 0xFF800000u, keys[i] == 0u);
            found.at += 1u;
        }
        found.tied += u32(tie);
    }
}
