// id = one of V logits: of the rest after the repeat penalty and a range that is left out, the largest (temperature 0), or
// one drawn from the softmax of those that top-k and top-p leave. settings = (temperature, top_k, top_p, repeat penalty).
// One workgroup; a thread owns EACH neighbours and keeps them as integers that sort like the logits (0: left out). The
// borders of top-k and top-p are found bit by bit: 32 counts over all threads each. Weights are integers, too, so their
// sums do not depend on an order. Ties of the k-th are kept; of ties at the border of top-p the higher ids are. Where no
// allowed logit is a number: V, which is no id.
// SEEN: seen[id] counts how often an id was drawn; the penalty is for those above 0. CODES: codes[at] is written, too.
// Bindings: logits, random, settings, id, [codes], [seen]. Called by ops/sample.py.
//# include "lib/reduce.wgsl"
//# include "lib/sum_before.wgsl"
//# include "lib/sort_key.wgsl"

struct Job {
    draw: u32, // which random number
    at: u32, // place in codes
    first: u32, // left out: first <= id < stop
    stop: u32,
    spared: u32, // but not this one
}

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> random: array<f32>;
@group(0) @binding(2) var<storage, read> settings: array<f32>;
@group(0) @binding(3) var<storage, read_write> id: array<u32>;
//# if CODES
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;
//# if SEEN
@group(0) @binding(5) var<storage, read_write> seen: array<u32>;
//# endif
//# elif SEEN
@group(0) @binding(4) var<storage, read_write> seen: array<u32>;
//# endif
var<immediate> job: Job;

const EACH: u32 = (V + WG - 1u) / WG;
const LARGEST: f32 = 3.4028234e38;
const UNIT: f32 = 2147483648.0; // weights add up to about this

var<workgroup> totals: array<atomic<u32>, 66>; // of the 32 rounds of two searches, and of two sums
var<workgroup> highest: atomic<u32>;
var<workgroup> chosen: atomic<u32>;

fn key_of(i: u32) -> u32 {
    var value = logits[i];
    // Drivers may assume that floats are no NaN, bits not.
    let bits = bitcast<u32>(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u || bits == 0xFF800000u) {
        return 0u;
    }
    if (i >= job.first && i < job.stop && i != job.spared) {
        return 0u;
    }
//# if SEEN
    if (seen[i] != 0u) {
        value = select(value * settings[3], value / settings[3], value > 0.0);
    }
//# endif
    return sort_key(clamp(value, -LARGEST, LARGEST));
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(bits_of(key));
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) tid: u32) {
    for (var i = tid; i < 66u; i += WG) {
        atomicStore(&totals[i], 0u);
    }
    if (tid == 0u) {
        atomicStore(&highest, 0u);
        atomicStore(&chosen, V);
    }
    workgroupBarrier();
    var keys = array<u32, EACH>();
    var top = 0u;
    for (var i = 0u; i < EACH; i++) {
        if (tid * EACH + i < V) {
            keys[i] = key_of(tid * EACH + i);
        }
        top = max(top, keys[i]);
    }
    atomicMax(&highest, top);
    workgroupBarrier();
    top = atomicLoad(&highest);
    if (settings[0] <= 0.0) {
        for (var i = 0u; i < EACH; i++) {
            if (keys[i] == top && top > 0u) {
                atomicMin(&chosen, tid * EACH + i);
            }
        }
    } else {
        // Top-k: the largest key that at least k reach.
        var least = 0u;
        let k = u32(settings[1]);
        if (k > 0u && k < V) {
            for (var bit = 0u; bit < 32u; bit++) {
                let trial = least | (0x80000000u >> bit);
                var count = 0u;
                for (var i = 0u; i < EACH; i++) {
                    count += u32(keys[i] >= trial);
                }
                atomicAdd(&totals[bit], count);
                workgroupBarrier();
                least = select(least, trial, atomicLoad(&totals[bit]) >= k);
            }
        }
        least = max(least, 1u);
        let best = value_of(top);
        var sum = 0.0;
        for (var i = 0u; i < EACH; i++) {
            if (keys[i] >= least) {
                sum += exp((value_of(keys[i]) - best) / settings[0]);
            }
        }
        sum = workgroup_sum(sum, tid);
        var weights = array<u32, EACH>();
        var whole = 0u;
        for (var i = 0u; i < EACH; i++) {
            if (keys[i] >= least) {
                weights[i] = u32(exp((value_of(keys[i]) - best) / settings[0]) / sum * UNIT + 0.5);
            }
            whole += weights[i];
        }
        atomicAdd(&totals[64], whole);
        workgroupBarrier();
        whole = atomicLoad(&totals[64]);
        // Top-p: the largest key that leaves at least `limit` at and above it; what is above it weighs less.
        if (settings[2] < 1.0) {
            let limit = clamp(u32(settings[2] * f32(whole)), 1u, max(whole, 1u));
            var border = 0u;
            for (var bit = 0u; bit < 32u; bit++) {
                let trial = border | (0x80000000u >> bit);
                var here = 0u;
                for (var i = 0u; i < EACH; i++) {
                    here += select(0u, weights[i], keys[i] >= trial);
                }
                atomicAdd(&totals[32u + bit], here);
                workgroupBarrier();
                border = select(border, trial, atomicLoad(&totals[32u + bit]) >= limit);
            }
            var above = 0u;
            var equal = 0u;
            var each = 1u;
            for (var i = 0u; i < EACH; i++) {
                above += select(0u, weights[i], keys[i] > border);
                if (keys[i] == border) {
                    equal += 1u;
                    each = max(weights[i], 1u);
                }
            }
            atomicAdd(&totals[65], above);
            var before = sum_before(equal, tid);
            let kept = (limit - atomicLoad(&totals[65]) + each - 1u) / each;
            let dropped = counts[WG - 1u] - min(kept, counts[WG - 1u]);
            for (var i = 0u; i < EACH; i++) {
                if (keys[i] < border || (keys[i] == border && before < dropped)) {
                    weights[i] = 0u;
                }
                before += u32(keys[i] == border);
            }
        }
        var mine = 0u;
        for (var i = 0u; i < EACH; i++) {
            mine += weights[i];
        }
        let before = sum_before(mine, tid);
        let all = counts[WG - 1u];
        let drawn = min(u32(random[job.draw] * f32(all)), max(all, 1u) - 1u);
        if (drawn >= before && drawn - before < mine) {
            var left = drawn - before;
            var i = 0u;
            while (left >= weights[i]) {
                left -= weights[i];
                i += 1u;
            }
            atomicStore(&chosen, tid * EACH + i);
        }
    }
    workgroupBarrier();
    if (tid == 0u) {
        let found = atomicLoad(&chosen);
        id[0] = found;
//# if CODES
        codes[job.at] = found;
//# endif
//# if SEEN
        if (found < V) {
            seen[found] += 1u;
        }
//# endif
    }
}
