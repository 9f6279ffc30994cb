// The parts of the keys that flash_decode.wgsl left in scratch as one softmax, for HEADS heads. Values of 8-bit blocks come
// mixed (lib/mix.wgsl), and so do their sums. The shader has workgroup memory for it: shares (SPLITS * HEADS floats at
// least), found (WG floats) and query (HEADS * FOURS fours), and binds o.
const TOGETHER: u32 = min(SPLITS, 8u); // loads under way

// `head` is the first of them, `used` the number of parts with keys. Called by the whole workgroup.
fn combine(token: u32, head: u32, used: u32, tid: u32) {
    let of_head = tid % HEADS;
    let counted = tid < SHARE * HEADS;
    var largest = LOWEST;
    if (counted) {
        for (var part = tid / HEADS; part < used; part += SHARE) {
            largest = max(largest, scratch.parts[part_at(part, token, head + of_head) + FOURS].x);
        }
    }
    found[tid] = largest;
    workgroupBarrier();
    for (var i = 0u; i < SHARE; i++) {
        largest = max(largest, found[i * HEADS + of_head]);
    }
    workgroupBarrier();
    var total = 0.0;
    if (counted) {
        for (var part = tid / HEADS; part < used; part += SHARE) {
            let stats = scratch.parts[part_at(part, token, head + of_head) + FOURS];
            let share = exp2(stats.x - largest);
            shares[part * HEADS + of_head] = share;
            total += share * stats.y;
        }
    }
    found[tid] = total;
    workgroupBarrier();
    for (var i = tid; i < HEADS * FOURS; i += WG) {
        let g = i / FOURS;
        var whole = 0.0;
        for (var k = 0u; k < SHARE; k++) {
            whole += found[k * HEADS + g];
        }
        var sum = vec4<f32>(0.0);
        for (var first = 0u; first < used; first += TOGETHER) {
            var parts = array<vec4<f32>, TOGETHER>();
            for (var j = 0u; j < TOGETHER; j++) {
                parts[j] = scratch.parts[part_at(min(first + j, used - 1u), token, head + g) + i % FOURS];
            }
            for (var j = 0u; j < TOGETHER; j++) {
                if (first + j < used) {
                    sum = fma(vec4<f32>(shares[(first + j) * HEADS + g]), parts[j], sum);
                }
            }
        }
        put_result((token * H + head) * FOURS, i, sum / whole);
    }
//# if CACHED == "kv_q8"
    workgroupBarrier();
    for (var i = tid; i < HEADS * HD / 32u; i += WG) {
        unmix(i, (token * H + head) * FOURS);
    }
//# endif
}

fn put_result(at: u32, i: u32, value: vec4<f32>) {
//# if CACHED == "kv_q8"
    query[i] = value;
//# else
    o[at + i] = value;
//# endif
}
//# if CACHED == "kv_q8"

// Block i of the 32s of `query`, into o.
fn unmix(i: u32, at: u32) {
    var part = array<f32, 32>();
    for (var d = 0u; d < 32u; d++) {
        part[d] = query[i * 8u + d / 4u][d % 4u];
    }
    part = mix(part);
    for (var d = 0u; d < 8u; d++) {
        o[at + i * 8u + d] = vec4<f32>(part[4u * d], part[4u * d + 1u], part[4u * d + 2u], part[4u * d + 3u]);
    }
}
//# endif
