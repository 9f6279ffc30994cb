// How the past keys are dealt out over SPLITS workgroups, and what each leaves behind in `scratch`: for every (split,
// token, head) HD / 4 fours of a sum of values, not yet divided, then (maximum, sum of the shares, 0, 0); behind all of
// them the queries, ready for keys times CACHED_SCALE and powers of two.
const FOURS: u32 = HD / 4u;
const LOG2_E: f32 = 1.44269504;
const LOWEST: f32 = -3.0e38;

// Keys a split: whole tiles, 64 at least, so that short contexts do not fall apart.
fn keys_a_split(past: u32) -> u32 {
    let each = (past + SPLITS - 1u) / SPLITS;
    return max(64u, (each + KEYS - 1u) / KEYS * KEYS);
}

fn part_at(split: u32, token: u32, head: u32) -> u32 {
    return ((split * N + token) * H + head) * (FOURS + 1u);
}

fn query_at(token: u32, head: u32) -> u32 {
    return SPLITS * N * H * (FOURS + 1u) + (token * H + head) * FOURS;
}
