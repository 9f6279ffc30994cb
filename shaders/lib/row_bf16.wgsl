// bfloat16 weights, two to a word: the upper half of a float32.
fn load_four(at: u32) -> vec4<f32> {
    let low = words[at];
    let high = words[at + 1u];
    return bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & 0xFFFF0000u, high << 16u, high & 0xFFFF0000u));
}
//# include "lib/row_float.wgsl"
