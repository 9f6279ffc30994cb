// float32 weights.
const BLOCK_BYTES: u32 = 128u;

fn load_block(base: u32) -> Block {
    let first = base >> 2u;
    var block: Block;
    block.scale = 1.0;
    block.offset = 0.0;
    for (var i = 0u; i < 8u; i++) {
        let at = first + 4u * i;
        block.quants[i] = bitcast<vec4<f32>>(vec4<u32>(weight[at], weight[at + 1u], weight[at + 2u], weight[at + 3u]));
    }
    return block;
}
