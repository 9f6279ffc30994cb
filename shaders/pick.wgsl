// A token from the K best candidates of largest.wgsl: sorted (ties: the lower id first), cut to the first top_k of them, to
// those that hold top_p of the mass, and to those within log(min_p) of the best; of these one is drawn at temperature T.
// settings = (T, top_k, top_p, log(min_p), number in [0, 1), leaving id, ...). top_k 0: all. One workgroup.
// V where the best is no finite number, V + 1 where it is minus infinity, V + 2 where the K best cannot decide.
// SEEN: counts of the penalties' window: the leaving id goes, the drawn one comes.
// Bindings: ids, values (as bits), sums, settings, id, [seen]. Called by ops/pick.py.
//# include "lib/sort_key.wgsl"
//# include "lib/largest.wgsl"
//# include "lib/candidates.wgsl"
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read> sums: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> settings: array<f32>;
@group(0) @binding(4) var<storage, read_write> id: array<u32>;
//# if SEEN
@group(0) @binding(5) var<storage, read_write> seen: array<u32>;
//# endif

var<workgroup> found_keys: array<u32, K>;
var<workgroup> found_ids: array<u32, K>;
var<workgroup> sorted_ids: array<u32, K>;
var<workgroup> logits: array<f32, K>; // falling
var<workgroup> masses: array<f32, K>; // exp(logit - best)
var<workgroup> weights: array<f32, K>; // at temperature T

// The K best, falling.
fn sort_candidates(tid: u32) {
    load_keys(tid);
    var found = border(tid);
    for (var i = 0u; i < EACH; i++) {
        let tie = keys[i] == found.key;
        if (keys[i] > found.key || (tie && found.tied < found.ties)) {
            found_keys[found.at] = keys[i];
            found_ids[found.at] = ids[min(tid * EACH + i, COUNT - 1u)];
            found.at += 1u;
        }
        found.tied += u32(tie);
    }
    workgroupBarrier();
    let best = largest_of_all();
    for (var i = tid; i < K; i += WG) {
        let key = found_keys[i];
        var rank = 0u;
        for (var j = 0u; j < K; j++) {
            rank += u32(found_keys[j] > key || (found_keys[j] == key && j < i));
        }
        let value = bitcast<f32>(bits_of(key));
        sorted_ids[rank] = found_ids[i];
        logits[rank] = value;
        let possible = key > 0x007FFFFFu; // above minus infinity
        masses[rank] = select(0.0, exp(value - best), possible);
        weights[rank] = select(0.0, exp((value - best) / settings[0]), possible);
    }
    workgroupBarrier();
}

// How many of the best are left by top_k, top_p and min_p; K + 1 where more than K may be.
fn kept() -> u32 {
    let k = u32(settings[1]);
    let cut = k > 0u && k <= K;
    let complete = cut || K == V;
    let most = select(K, k, cut);
    var by_mass = most;
    if (settings[2] < 1.0) {
        var all = 0.0;
        if (cut) {
            for (var i = 0u; i < most; i++) {
                all += masses[i];
            }
        } else {
            all = sum_of_all(logits[0]);
        }
        // A share of the mass of the top_k best, of which some are missing.
        if (k > K && !complete) {
            return K + 1u;
        }
        by_mass = 1u;
        var mass = masses[0];
        while (by_mass < most && mass < settings[2] * all) {
            mass += masses[by_mass];
            by_mass += 1u;
        }
    }
    let least = logits[0] + settings[3];
    var by_floor = 0u;
    while (by_floor < most && logits[by_floor] >= least) {
        by_floor += 1u;
    }
    let left = min(by_mass, by_floor);
    return select(max(left, 1u), K + 1u, left == K && !complete);
}

fn draw(count: u32) -> u32 {
    var all = 0.0;
    for (var i = 0u; i < count; i++) {
        all += weights[i];
    }
    var at = 0u;
    var sum = weights[0];
    // One without weight is never drawn, whatever the sums are rounded to.
    while (at + 1u < count && sum <= settings[4] * all && weights[at + 1u] > 0.0) {
        at += 1u;
        sum += weights[at];
    }
    return sorted_ids[at];
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) tid: u32) {
    sort_candidates(tid);
    if (tid > 0u) {
        return;
    }
    let bits = bitcast<u32>(logits[0]);
    var chosen = V;
    if (bits == 0xFF800000u) {
        chosen = V + 1u;
    } else if ((bits & 0x7FFFFFFFu) < 0x7F800000u) {
        let count = kept();
        chosen = V + 2u;
        if (count <= K) {
            chosen = draw(count);
        }
    }
    id[0] = chosen;
//# if SEEN
    let leaving = u32(settings[5]);
    if (leaving < V) {
        seen[leaving] -= 1u;
    }
    if (chosen < V) {
        seen[chosen] += 1u;
    }
//# endif
}
