// How the keys are dealt out over SPLITS workgroups, and what each leaves behind in `scratch`: for every (split, token, head)
// HD / 4 fours of a sum of values, then (maximum, what to divide by, 0, 0). LAST: before them a counter a
// (token, key/value head, chunk of its query heads) of the workgroups that are done, 0 between dispatches.
const FOURS: u32 = HD / 4u;
const G: u32 = H / KV;
const CHUNKS: u32 = G / HEADS;
const SHARE: u32 = WG / HEADS; // threads a head
const LOG2_E: f32 = 1.44269504;
const LOWEST: f32 = -3.0e38;
const_assert G % HEADS == 0u;
const_assert WG >= HEADS;

struct Scratch {
//# if LAST
    arrived: array<atomic<u32>, N * KV * CHUNKS>,
//# endif
    parts: array<vec4<f32>>,
}

// Keys a split: whole tiles, 64 at least, so that short contexts do not fall apart.
fn keys_a_split(seen: u32) -> u32 {
    let each = (seen + SPLITS - 1u) / SPLITS;
    return max(64u, (each + KEYS - 1u) / KEYS * KEYS);
}

fn part_at(split: u32, token: u32, head: u32) -> u32 {
    return ((split * N + token) * H + head) * (FOURS + 1u);
}
