// How rows of a KV cache are stored: float32, or two float16 to a word (needs no shader-f16).
//# if TO == "f16"
alias STORED = u32;
const STORED_EACH: u32 = 2u;
fn stored(first: f32, second: f32) -> u32 {
    return pack2x16float(vec2<f32>(first, second));
}
//# else
alias STORED = f32;
const STORED_EACH: u32 = 1u;
fn stored(first: f32, second: f32) -> f32 {
    return first;
}
//# endif
