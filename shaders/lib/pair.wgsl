// Sixty-four weights of a row, two blocks of 32: weight = scale * quant + offset, by block. Rows are whole pairs, so that
// every pair starts on a word, whatever the type, and its words are read together, four at a time where the driver can.
// Every lib/pair_<type>.wgsl has WORDS, HAS_OFFSET, pair_scales, pair_offsets and, for i = 0 .. 15, pair_four: weights 4i to
// 4i + 3 as floats before the scale; PACKED: pair_quants, the same as signed bytes. It reads the binding `weight: array<u32>`.
struct Pair {
    words: array<u32, WORDS>,
}

fn load_pair(number: u32) -> Pair {
    // As a plain product: a driver sees that the last words' addresses cannot wrap when the first one's do not, and joins loads.
    let at = number * WORDS;
    var pair: Pair;
    for (var i = 0u; i < WORDS; i++) {
        pair.words[i] = weight[at + i];
    }
    return pair;
}
