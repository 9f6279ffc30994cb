// A new head on its way into a KV cache: cell i of CELLS, made of the HD values fresh(at), fresh(at + 1) ... that the
// shader has in workgroup memory; and where it goes (lib/cell.wgsl).
//# if CACHED == "kv_q8"
const CELLS: u32 = HD / 4u + HD / 64u;
fn cell_at(row: u32, head: u32, i: u32) -> u32 {
    let scales = KV * HD / 4u + head * (HD / 64u) + i - HD / 4u;
    return row * ROW_CELLS + select(head * (HD / 4u) + i, scales, i >= HD / 4u);
}
// The scale of 32 values as a half keeps it; never as small as a half's denormal numbers.
fn scale_of(first: u32) -> f32 {
    var most = 0.0;
    for (var d = 0u; d < 32u; d++) {
        most = max(most, abs(fresh(first + d)));
    }
    return unpack2x16float(pack2x16float(vec2<f32>(max(most / 127.0, 6.1035156e-5), 0.0))).x;
}
fn byte_of(value: f32) -> u32 {
    return u32(clamp(round(value), -127.0, 127.0) + 128.0);
}
fn cell(at: u32, i: u32) -> CELL {
    if (i >= HD / 4u) {
        let first = at + (i - HD / 4u) * 64u;
        return pack2x16float(vec2<f32>(scale_of(first), scale_of(first + 32u)));
    }
    let scale = scale_of(at + i / 8u * 32u);
    let d = at + 4u * i;
    return byte_of(fresh(d) / scale) | (byte_of(fresh(d + 1u) / scale) << 8u)
        | (byte_of(fresh(d + 2u) / scale) << 16u) | (byte_of(fresh(d + 3u) / scale) << 24u);
}
//# else
const EACH_CELL: u32 = HD / CELLS;
fn cell_at(row: u32, head: u32, i: u32) -> u32 {
    return (row * KV + head) * CELLS + i;
}
//# if CACHED == "f16"
fn two_halves(d: u32) -> u32 {
    return pack2x16float(vec2<f32>(fresh(d), fresh(d + 1u)));
}
//# endif
fn cell(at: u32, i: u32) -> CELL {
    let d = at + i * EACH_CELL;
//# if CACHED == "f16" and WIDE
    return vec4<u32>(two_halves(d), two_halves(d + 2u), two_halves(d + 4u), two_halves(d + 6u));
//# elif CACHED == "f16"
    return two_halves(d);
//# elif WIDE
    return vec4<f32>(fresh(d), fresh(d + 1u), fresh(d + 2u), fresh(d + 3u));
//# else
    return fresh(d);
//# endif
}
//# if CACHED == "f16" and WIDE
const CELLS: u32 = HD / 8u;
//# elif CACHED == "f16"
const CELLS: u32 = HD / 2u;
//# elif WIDE
const CELLS: u32 = HD / 4u;
//# else
const CELLS: u32 = HD;
//# endif
//# endif
