// float16 weights, two to a word.
const BLOCK_BYTES: u32 = 64u;

fn load_block(base: u32) -> Block {
    let first = base >> 2u;
    var block: Block;
    block.scale = 1.0;
    block.offset = 0.0;
    for (var i = 0u; i < 8u; i++) {
        block.quants[i] = vec4<f32>(unpack2x16float(weight[first + 2u * i]), unpack2x16float(weight[first + 2u * i + 1u]));
    }
    return block;
}
