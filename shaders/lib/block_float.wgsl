// Thirty-two weights of a row in a floating point format, with the interface of lib/block.wgsl (scale 1, offset 0).
alias Four = vec4<f32>;
struct Block {
    scale: f32,
    offset: f32,
    quants: array<Four, 8>,
}

const HAS_OFFSET: bool = false;

fn four(quants: Four) -> vec4<f32> {
    return quants;
}
