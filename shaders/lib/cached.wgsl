// Eight neighbouring values of a cached head as floats, the i-th eight of it, times CACHED_SCALE. The shader binds keys
// and values as arrays of CELL (lib/cell.wgsl, WIDE).
//# if CACHED == "kv_q8"
const CACHED_SCALE: f32 = 1.0;
// Four bytes of an integer + 128 each, times their scale.
fn four_bytes(word: u32, scale: f32) -> vec4<f32> {
    let bytes = vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u) & vec4<u32>(255u);
    return fma(vec4<f32>(bytes), vec4<f32>(scale), vec4<f32>(-128.0 * scale));
}
fn key_eight(row: u32, head: u32, i: u32) -> array<vec4<f32>, 2> {
    let at = row * ROW_CELLS + head * (HD / 4u) + 2u * i;
    let scales = unpack2x16float(keys[row * ROW_CELLS + KV * HD / 4u + head * (HD / 64u) + i / 8u]);
    let scale = select(scales.x, scales.y, i % 8u >= 4u);
    return array<vec4<f32>, 2>(four_bytes(keys[at], scale), four_bytes(keys[at + 1u], scale));
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
