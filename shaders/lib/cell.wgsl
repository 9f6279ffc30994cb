// What a KV cache is bound as. CACHED "f32": four floats; "f16": eight halves; "kv_q8": single words. Not WIDE: one float,
// two halves. A row of 8-bit values is KV * HD bytes, each an integer + 128, then a half for every 32 of them, their scale.
// A row of keys has 10-bit integers + 512: bytes of their upper 8 bits, then words of the lower 2 bits of 16 keys, then
// scales. Byte d % 4 of such a word has key d at bit d / 4 * 2.
//# if CACHED == "kv_q8"
alias CELL = u32;
const ROW_CELLS: u32 = KV * HD / 64u * 17u;
const KEY_ROW_CELLS: u32 = KV * HD / 64u * 21u;
const_assert HD % 64u == 0u;
//# elif CACHED == "f16" and WIDE
alias CELL = vec4<u32>;
//# elif CACHED == "f16"
alias CELL = u32;
//# elif WIDE
alias CELL = vec4<f32>;
//# else
alias CELL = f32;
//# endif
