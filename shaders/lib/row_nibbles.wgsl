// Thirty-two unsigned nibbles from byte `at` of the chunk on, times the block's x: byte i holds those of x i and x i + 16.
fn nibble(at: u32, shift: u32) -> f32 {
    return f32((words[at / 4u] >> (at % 4u * 8u + shift)) & 15u);
}

fn nibbles(at: u32, block: u32) -> f32 {
    var low = 0.0;
    var high = 0.0;
    var i = 0u;
//# for _ in range(4)
    {
        let first = fours[block * 8u + i];
        let second = fours[block * 8u + i + 4u];
        let byte = at + i * 4u;
        low += nibble(byte, 0u) * first.x;
        high += nibble(byte, 4u) * second.x;
        low += nibble(byte + 1u, 0u) * first.y;
        high += nibble(byte + 1u, 4u) * second.y;
        low += nibble(byte + 2u, 0u) * first.z;
        high += nibble(byte + 2u, 4u) * second.z;
        low += nibble(byte + 3u, 0u) * first.w;
        high += nibble(byte + 3u, 4u) * second.w;
        i += 1u;
    }
//# endfor
    return low + high;
}
