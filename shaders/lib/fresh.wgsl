// A new head on its way into a KV cache: cell i of KEY_CELLS or CELLS (of a value), made of the HD values fresh(at),
// fresh(at + 1) ... that the shader has in workgroup memory; and where it goes (lib/cell.wgsl). kept: what can be read
// there afterwards, of KEPT values that share a scale.
//# if CACHED == "kv_q8"
const CELLS: u32 = HD / 4u + HD / 64u;
fn cell_at(row: u32, head: u32, i: u32) -> u32 {
    let scales = KV * HD / 4u + head * (HD / 64u) + i - HD / 4u;
    return row * ROW_CELLS + select(head * (HD / 4u) + i, scales, i >= HD / 4u);
}
const KEY_CELLS: u32 = HD / 4u + HD / 16u + HD / 64u;
fn key_cell_at(row: u32, head: u32, i: u32) -> u32 {
    let lowers = KV * HD / 4u + head * (HD / 16u) + i - HD / 4u;
    let scales = KV * HD / 16u * 5u + head * (HD / 64u) + i - HD / 16u * 5u;
    let other = select(lowers, scales, i >= HD / 16u * 5u);
    return row * KEY_ROW_CELLS + select(head * (HD / 4u) + i, other, i >= HD / 4u);
}
// The scale of 32 values as a half keeps it, for integers up to `largest`; never as small as a half's denormal numbers.
fn scale_of(first: u32, largest: f32) -> f32 {
    var most = 0.0;
    for (var d = 0u; d < 32u; d++) {
        most = max(most, abs(fresh(first + d)));
    }
    return unpack2x16float(pack2x16float(vec2<f32>(max(most / largest, 6.1035156e-5), 0.0))).x;
}
fn two_scales(first: u32, largest: f32) -> u32 {
    return pack2x16float(vec2<f32>(scale_of(first, largest), scale_of(first + 32u, largest)));
}
// Four integers from 1 to 2 * largest + 1.
fn four_integers(d: u32, scale: f32, largest: f32) -> vec4<u32> {
    let values = vec4<f32>(fresh(d), fresh(d + 1u), fresh(d + 2u), fresh(d + 3u)) / scale;
    return vec4<u32>(clamp(round(values), vec4<f32>(-largest), vec4<f32>(largest)) + vec4<f32>(largest + 1.0));
}
const KEPT: u32 = 32u;
fn kept_scale(first: u32, largest: f32) -> f32 {
    return scale_of(first, largest);
}
fn kept(value: f32, scale: f32, largest: f32) -> f32 {
    return clamp(round(value / scale), -largest, largest) * scale;
}
fn packed_bytes(v: vec4<u32>) -> u32 {
    return v.x | (v.y << 8u) | (v.z << 16u) | (v.w << 24u);
}
fn cell(at: u32, i: u32) -> CELL {
    if (i >= HD / 4u) {
        return two_scales(at + (i - HD / 4u) * 64u, 127.0);
    }
    return packed_bytes(four_integers(at + 4u * i, scale_of(at + i / 8u * 32u, 127.0), 127.0));
}
fn key_cell(at: u32, i: u32) -> CELL {
    if (i >= HD / 16u * 5u) {
        return two_scales(at + (i - HD / 16u * 5u) * 64u, 511.0);
    }
    if (i < HD / 4u) {
        return packed_bytes(four_integers(at + 4u * i, scale_of(at + i / 8u * 32u, 511.0), 511.0) >> vec4<u32>(2u));
    }
    let first = at + (i - HD / 4u) * 16u;
    let scale = scale_of(at + (i - HD / 4u) / 2u * 32u, 511.0);
    var lower = vec4<u32>(0u);
    for (var f = 0u; f < 4u; f++) {
        lower |= (four_integers(first + 4u * f, scale, 511.0) & vec4<u32>(3u)) << vec4<u32>(2u * f);
    }
    return packed_bytes(lower);
}
//# else
const EACH_CELL: u32 = HD / CELLS;
const KEPT: u32 = 1u;
fn kept_scale(first: u32, largest: f32) -> f32 {
    return 1.0;
}
fn kept(value: f32, scale: f32, largest: f32) -> f32 {
//# if CACHED == "f16"
    return unpack2x16float(pack2x16float(vec2<f32>(value, 0.0))).x;
//# else
    return value;
//# endif
}
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
fn key_cell_at(row: u32, head: u32, i: u32) -> u32 {
    return cell_at(row, head, i);
}
fn key_cell(at: u32, i: u32) -> CELL {
    return cell(at, i);
}
const KEY_CELLS: u32 = CELLS;
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
