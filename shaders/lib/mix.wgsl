// 32 neighbouring values of a head times a Hadamard matrix / sqrt(32), which is its own inverse. A few large values of a
// block are spread over all of it, so that integers keep more of the small ones. Queries and keys are both mixed, which
// leaves their dot products what they are; values are mixed, and their sums once more.
fn mix(values: array<f32, 32>) -> array<f32, 32> {
    var v = values;
    var half = 1u;
    // Written out, so that every index is a constant and the array stays in registers.
//# for _ in range(5)
    for (var i = 0u; i < 16u; i++) {
        let a = i / half * 2u * half + i % half;
        let first = v[a];
        let second = v[a + half];
        v[a] = first + second;
        v[a + half] = first - second;
    }
    half *= 2u;
//# endfor
    for (var i = 0u; i < 32u; i++) {
        v[i] *= 0.17677669;
    }
    return v;
}
