// float32 weights.
const FOUR_WORDS: u32 = 4u;

fn load_four(at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(weight[at], weight[at + 1u], weight[at + 2u], weight[at + 3u]));
}
