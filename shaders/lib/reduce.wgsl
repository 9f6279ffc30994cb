// Reductions over a workgroup of WG threads (a power of two) through workgroup memory; no subgroup size is assumed.
var<workgroup> reduction: array<f32, WG>;

fn workgroup_sum(value: f32, tid: u32) -> f32 {
    reduction[tid] = value;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (tid < half) {
            reduction[tid] += reduction[tid + half];
        }
    }
    workgroupBarrier();
    let sum = reduction[0];
    workgroupBarrier();
    return sum;
}

fn workgroup_max(value: f32, tid: u32) -> f32 {
    reduction[tid] = value;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (tid < half) {
            reduction[tid] = max(reduction[tid], reduction[tid + half]);
        }
    }
    workgroupBarrier();
    let largest = reduction[0];
    workgroupBarrier();
    return largest;
}
