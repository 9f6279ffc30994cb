// What largest.wgsl left: COUNT candidates (id V: none) and, of each of PARTS chunks, (largest, sum of exp(logit - largest)).
// Needs ids, values, sums, and keys of lib/largest.wgsl.
const_assert K <= COUNT && COUNT <= WG * EACH;

fn load_keys(tid: u32) {
    for (var i = 0u; i < EACH; i++) {
        let at = tid * EACH + i;
        keys[i] = 0u;
        if (at < COUNT) {
            if (ids[at] < V) {
                keys[i] = sort_key(bitcast<f32>(values[at]));
            }
        }
    }
}

fn largest_of_all() -> f32 {
    var key = 0u;
    for (var i = 0u; i < PARTS; i++) {
        key = max(key, sort_key(sums[i].x));
    }
    return bitcast<f32>(bits_of(key));
}

// The sum of exp(logit - base) over all logits.
fn sum_of_all(base: f32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < PARTS; i++) {
        if (sums[i].y > 0.0) {
            sum += sums[i].y * exp(sums[i].x - base);
        }
    }
    return sum;
}
