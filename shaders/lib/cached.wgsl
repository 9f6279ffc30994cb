// Eight neighbouring values of a cached head as floats, the i-th eight of it, times CACHED_SCALE. The shader binds keys
// and values as arrays of CELL (lib/cell.wgsl, WIDE).
//# if CACHED == "kv_q8"
const CACHED_SCALE: f32 = 1.0;
// Four bytes of an integer + 128 each, times their scale.
fn four_bytes(word: u32, scale: f32) -> vec4<f32> {
    let bytes = vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u) & vec4<u32>(255u);
    return fma(vec4<f32>(bytes), vec4<f32>(scale), vec4<f32>(-128.0 * scale));
}
// Upper 8 and lower 2 bits of an integer + 512 a byte, times their scale.
fn four_keys(upper: u32, lower: u32, scale: f32) -> vec4<f32> {
    let high = vec4<u32>(upper, upper >> 8u, upper >> 16u, upper >> 24u) & vec4<u32>(255u);
    let lows = lower & 0x03030303u;
    let low = vec4<u32>(lows, lows >> 8u, lows >> 16u, lows >> 24u) & vec4<u32>(255u);
    let offset = fma(vec4<f32>(low), vec4<f32>(scale), vec4<f32>(-512.0 * scale));
    return fma(vec4<f32>(high), vec4<f32>(4.0 * scale), offset);
}
fn key_eight(row: u32, head: u32, i: u32) -> array<vec4<f32>, 2> {
    let start = row * KEY_ROW_CELLS;
    let at = start + head * (HD / 4u) + 2u * i;
    let lower = keys[start + KV * HD / 4u + head * (HD / 16u) + i / 2u] >> (i % 2u * 4u);
    let scales = unpack2x16float(keys[start + KV * HD / 16u * 5u + head * (HD / 64u) + i / 8u]);
    let scale = select(scales.x, scales.y, i % 8u >= 4u);
    return array<vec4<f32>, 2>(four_keys(keys[at], lower, scale), four_keys(keys[at + 1u], lower >> 2u, scale));
}
fn value_eight(row: u32, head: u32, i: u32) -> array<vec4<f32>, 2> {
    let at = row * ROW_CELLS + head * (HD / 4u) + 2u * i;
    let scales = unpack2x16float(values[row * ROW_CELLS + KV * HD / 4u + head * (HD / 64u) + i / 8u]);
    let scale = select(scales.x, scales.y, i % 8u >= 4u);
    return array<vec4<f32>, 2>(four_bytes(values[at], scale), four_bytes(values[at + 1u], scale));
}
//# elif CACHED == "f16"
// RDNA takes the 0.5 for nothing while it converts. Without it ACO folds the conversion into each of the heads' FMAs,
// and those v_fma_mix take twice as long as v_fma in waves of 64.
const CACHED_SCALE: f32 = 0.5;
fn eight_halves(words: vec4<u32>) -> array<vec4<f32>, 2> {
    return array<vec4<f32>, 2>(
        CACHED_SCALE * vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)),
        CACHED_SCALE * vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}
fn key_eight(row: u32, head: u32, i: u32) -> array<vec4<f32>, 2> {
    return eight_halves(keys[(row * KV + head) * (HD / 8u) + i]);
}
fn value_eight(row: u32, head: u32, i: u32) -> array<vec4<f32>, 2> {
    return eight_halves(values[(row * KV + head) * (HD / 8u) + i]);
}
//# else
const CACHED_SCALE: f32 = 1.0;
fn key_eight(row: u32, head: u32, i: u32) -> array<vec4<f32>, 2> {
    let at = (row * KV + head) * (HD / 4u) + 2u * i;
    return array<vec4<f32>, 2>(keys[at], keys[at + 1u]);
}
fn value_eight(row: u32, head: u32, i: u32) -> array<vec4<f32>, 2> {
    let at = (row * KV + head) * (HD / 4u) + 2u * i;
    return array<vec4<f32>, 2>(values[at], values[at + 1u]);
}
//# endif
