// Thirty-two weights of a row: weight = scale * quant + offset. Quantised formats pack four signed bytes to a word.
// Every lib/<type>.wgsl has load_block(byte address) and BLOCK_BYTES, and reads the binding `weight: array<u32>`.
// four(block.quants[i]) are the quants 4i .. 4i+3 as floats.
alias Four = u32;
struct Block {
    scale: f32,
    offset: f32,
    quants: array<Four, 8>,
}

fn four(quants: Four) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(quants));
}
