// The K largest of the keys that a workgroup's threads hold: EACH neighbours a thread, 0 where there is nothing. Ties go
// to those that come first. The border is found bit by bit, 32 counts over all threads.
//# include "lib/sum_before.wgsl"
var<private> keys: array<u32, EACH>;
var<workgroup> reached: array<atomic<u32>, 32>;

struct Border {
    key: u32, // the K-th largest
    ties: u32, // how many that equal it belong to the K largest
    at: u32, // how many of the K largest the threads before this one hold
    tied: u32, // how many that equal it they hold
}

fn border(tid: u32) -> Border {
    for (var i = tid; i < 32u; i += WG) {
        atomicStore(&reached[i], 0u);
    }
    workgroupBarrier();
    var found = Border(0u, 0u, 0u, 0u);
    for (var bit = 0u; bit < 32u; bit++) {
        let trial = found.key | (0x80000000u >> bit);
        var count = 0u;
        for (var i = 0u; i < EACH; i++) {
            count += u32(keys[i] >= trial);
        }
        atomicAdd(&reached[bit], count);
        workgroupBarrier();
        found.key = select(found.key, trial, atomicLoad(&reached[bit]) >= K);
    }
    var above = 0u;
    var equal = 0u;
    for (var i = 0u; i < EACH; i++) {
        above += u32(keys[i] > found.key);
        equal += u32(keys[i] == found.key);
    }
    found.at = sum_before(above, tid);
    found.ties = K - counts[WG - 1u];
    found.tied = sum_before(equal, tid);
    found.at += min(found.tied, found.ties);
    return found;
}
