// float16 weights, two to a word.
fn load_four(at: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words[at]), unpack2x16float(words[at + 1u]));
}
//# include "lib/row_float.wgsl"
