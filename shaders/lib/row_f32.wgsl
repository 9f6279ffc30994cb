// float32 weights.
fn load_four(at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(words[at], words[at + 1u], words[at + 2u], words[at + 3u]));
}
//# include "lib/row_float.wgsl"
