// Q8_0 (ggml): 34 bytes a block of 32: f16 scale d, then 32 int8 q; weight = d * q.
fn quant(at: u32) -> f32 {
    return f32(bitcast<i32>(words[at / 4u] << (24u - at % 4u * 8u)) >> 24u);
}

// Block number `block` of the chunk times its x. Two chains of additions, so that one need not wait for the other.
fn product(block: u32) -> f32 {
    let at = block * BLOCK_BYTES;
    var even = 0.0;
    var odd = 0.0;
    var i = 0u;
//# for _ in range(8)
    {
        let four = fours[block * 8u + i];
        let first = at + 2u + i * 4u;
        even += quant(first) * four.x;
        odd += quant(first + 1u) * four.y;
        even += quant(first + 2u) * four.z;
        odd += quant(first + 3u) * four.w;
        i += 1u;
    }
//# endfor
    return unpack2x16float(words[at / 4u] >> (at % 4u * 8u)).x * (even + odd);
}
