// The K largest of V logits (unordered; the host sorts K values) with the log of the sum of exp over all V.
// One workgroup. Logits become keys that sort like the floats; three passes of histograms over 11, 11 and 10 bits find
// the K-th key exactly; a last pass writes what is above it, and of what equals it the lowest indices.
// Bindings: logits, ids, values (the last one, values[K], is the log-sum-exp). Called by ops/sample.py.
//# include "lib/reduce.wgsl"
//# include "lib/sort_key.wgsl"
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;

const BINS: u32 = 2048u;
const CHUNK: u32 = (V + WG - 1u) / WG; // each thread owns a contiguous range, so that ties go to the lower index
const_assert K <= V;
var<workgroup> bins: array<atomic<u32>, BINS>;
var<workgroup> chosen_bin: u32;
var<workgroup> wanted: u32;
var<workgroup> counts: array<u32, WG>;

// Counts over threads before this one, of what each thread brings.
fn offset_of(count: u32, tid: u32) -> u32 {
    workgroupBarrier();
    counts[tid] = count;
    workgroupBarrier();
    var before = 0u;
    for (var i = 0u; i < tid; i++) {
        before += counts[i];
    }
    return before;
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) tid: u32) {
    var largest = -3.4e38;
    for (var i = tid; i < V; i += WG) {
        largest = max(largest, logits[i]);
    }
    largest = workgroup_max(largest, tid);
    var sum = 0.0;
    for (var i = tid; i < V; i += WG) {
        sum += exp(logits[i] - largest);
    }
    sum = workgroup_sum(sum, tid);
    if (tid == 0u) {
        values[K] = largest + log(sum);
        wanted = K;
    }
    var prefix = 0u;
    for (var step = 0u; step < 3u; step++) {
        let shift = select(select(0u, 10u, step == 1u), 21u, step == 0u);
        let width = select(11u, 10u, step == 2u);
        for (var i = tid; i < BINS; i += WG) {
            atomicStore(&bins[i], 0u);
        }
        workgroupBarrier();
        for (var i = tid; i < V; i += WG) {
            let key = sort_key(logits[i]);
            if (step == 0u || (key >> (shift + width)) == prefix) {
                atomicAdd(&bins[(key >> shift) & ((1u << width) - 1u)], 1u);
            }
        }
        workgroupBarrier();
        if (tid == 0u) {
            var bin = 1u << width;
            var left = wanted;
            loop {
                bin -= 1u;
                let here = atomicLoad(&bins[bin]);
                if (here >= left || bin == 0u) {
                    break;
                }
                left -= here;
            }
            chosen_bin = bin;
            wanted = left;
        }
        workgroupBarrier();
        prefix = (prefix << width) | workgroupUniformLoad(&chosen_bin);
    }
    // prefix is now the K-th largest key; `wanted` of those equal to it belong to the answer.
    let equal_wanted = workgroupUniformLoad(&wanted);
    let start = min(tid * CHUNK, V);
    let to = min(start + CHUNK, V);
    var above = 0u;
    var equal = 0u;
    for (var i = start; i < to; i++) {
        let key = sort_key(logits[i]);
        above += u32(key > prefix);
        equal += u32(key == prefix);
    }
    var at_above = offset_of(above, tid);
    var at_equal = offset_of(equal, tid);
    for (var i = start; i < to; i++) {
        let value = logits[i];
        let key = sort_key(value);
        if (key > prefix) {
            ids[at_above] = i;
            values[at_above] = value;
            at_above += 1u;
        } else if (key == prefix) {
            if (at_equal < equal_wanted) {
                ids[K - equal_wanted + at_equal] = i;
                values[K - equal_wanted + at_equal] = value;
            }
            at_equal += 1u;
        }
    }
}
