// Thirty-two weights of a row in a floating point format, with the interface of lib/block.wgsl (scale 1, offset 0).
// Every lib/<type>.wgsl of these has load_four(number of the first word) -> four weights, and FOUR_WORDS.
alias Four = vec4<f32>;
struct Block {
    scale: f32,
    offset: f32,
    quants: array<Four, 8>,
}

const HAS_OFFSET: bool = false;
const BLOCK_BYTES: u32 = 32u * FOUR_WORDS;
const ROW_BYTES: u32 = D * FOUR_WORDS;

fn four(quants: Four) -> vec4<f32> {
    return quants;
}

fn load_block(base: u32) -> Block {
    let first = base >> 2u;
    var block: Block;
    block.scale = 1.0;
    block.offset = 0.0;
    for (var i = 0u; i < 8u; i++) {
        block.quants[i] = load_four(first + FOUR_WORDS * i);
    }
    return block;
}

// A row's last block where the row is not whole blocks: `count` fours, then zeros.
fn load_fours(base: u32, count: u32) -> Block {
    let first = base >> 2u;
    var block: Block;
    block.scale = 1.0;
    block.offset = 0.0;
    for (var i = 0u; i < 8u; i++) {
        block.quants[i] = vec4<f32>();
        if (i < count) {
            block.quants[i] = load_four(first + FOUR_WORDS * i);
        }
    }
    return block;
}
