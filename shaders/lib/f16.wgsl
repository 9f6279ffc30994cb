// float16 weights, two to a word.
const FOUR_WORDS: u32 = 2u;

fn load_four(at: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(weight[at]), unpack2x16float(weight[at + 1u]));
}
