// An integer that sorts like the float: exact on every driver, also where it takes very small floats for zero.
fn sort_key(value: f32) -> u32 {
    let found = bitcast<u32>(value);
    let bits = select(found, 0u, found == 0x80000000u); // -0 equals 0
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

// The bits of the float that a key was made of.
fn bits_of(key: u32) -> u32 {
    return select(~key, key & 0x7FFFFFFFu, key >= 0x80000000u);
}
