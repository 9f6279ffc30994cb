// bfloat16 weights, two to a word: the upper half of a float32.
const BLOCK_BYTES: u32 = 64u;

fn load_block(base: u32) -> Block {
    let first = base >> 2u;
    var block: Block;
    block.scale = 1.0;
    block.offset = 0.0;
    for (var i = 0u; i < 8u; i++) {
        let low = weight[first + 2u * i];
        let high = weight[first + 2u * i + 1u];
        block.quants[i] = bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & 0xFFFF0000u, high << 16u, high & 0xFFFF0000u));
    }
    return block;
}
