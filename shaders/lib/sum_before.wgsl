// What the threads of a workgroup before this one hold, counted together.
var<workgroup> counts: array<u32, WG>;

// The sum over the threads before this one; counts[WG - 1] is the sum over all.
fn sum_before(value: u32, tid: u32) -> u32 {
    workgroupBarrier();
    counts[tid] = value;
    for (var step = 1u; step < WG; step *= 2u) {
        workgroupBarrier();
        var before = 0u;
        if (tid >= step) {
            before = counts[tid - step];
        }
        workgroupBarrier();
        counts[tid] += before;
    }
    workgroupBarrier();
    return counts[tid] - value;
}
