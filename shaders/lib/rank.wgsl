// Which expert slot number `slot` of a token is for: its logits' K largest by falling size, ties to the lower id, then those
// that every token takes. Every thread of the workgroup calls `ranked` and gets it; `share` is its weight, for one thread to
// ask for afterwards: the softmax over the chosen, or the sigmoid of one more logit.
// It reads the binding `logits`, CHOICES to a token and one more if ALWAYS. SLOTS = K + ALWAYS. A thread counts how many of
// PIECE times four experts come before its own; where threads outnumber experts, SPLIT of them share one.
//# include "lib/sort_key.wgsl"
const TAKEN: u32 = SLOTS - ALWAYS;
const LOGITS: u32 = CHOICES + select(0u, 1u, ALWAYS > 0u);
const FOURS: u32 = (CHOICES + 3u) / 4u;
const SPLIT: u32 = clamp(WG / CHOICES, 1u, FOURS);
const PIECE: u32 = (FOURS + SPLIT - 1u) / SPLIT;
const ROUNDS_OF_KEYS: u32 = (SPLIT * PIECE + WG - 1u) / WG;
const ROUNDS_OF_RANKS: u32 = (SPLIT * CHOICES + WG - 1u) / WG;
var<workgroup> keys: array<vec4<u32>, SPLIT * PIECE>;
var<workgroup> before: array<u32, SPLIT * CHOICES>;
var<workgroup> chosen: array<u32, TAKEN>;

// Of expert e; nothing is larger than the largest, and what is not there comes before none.
fn key_of(row: u32, e: u32) -> u32 {
    return select(0u, clamp(sort_key(logits[row + min(e, CHOICES - 1u)]), 1u, 0xFFFFFFFEu), e < CHOICES);
}

fn ranked(token: u32, slot: u32, tid: u32) -> u32 {
    let row = token * LOGITS;
    for (var round = 0u; round < ROUNDS_OF_KEYS; round++) {
        let i = round * WG + tid;
        if (i < SPLIT * PIECE) {
            let e = i * 4u;
            keys[i] = vec4<u32>(key_of(row, e), key_of(row, e + 1u), key_of(row, e + 2u), key_of(row, e + 3u));
        }
    }
    workgroupBarrier();
    for (var round = 0u; round < ROUNDS_OF_RANKS; round++) {
        let i = round * WG + tid;
        if (i < SPLIT * CHOICES) {
            let e = i % CHOICES;
            let first = i / CHOICES * PIECE;
            let key = keys[e / 4u][e % 4u];
            var counts = vec4<u32>();
            for (var j = 0u; j < PIECE; j++) {
                let least = select(key + 1u, key, first + j < e / 4u); // of equal ones those before it count
                counts += select(vec4<u32>(), vec4<u32>(1u), keys[first + j] >= vec4<u32>(least));
            }
            before[i] = counts.x + counts.y + counts.z + counts.w;
        }
    }
    workgroupBarrier();
    for (var round = 0u; round < ROUNDS_OF_RANKS; round++) {
        let e = round * WG + tid;
        if (e < CHOICES) {
            // Besides, those of its own four that are equal.
            let own = keys[e / 4u];
            let equal = select(vec4<u32>(), vec4<u32>(1u), own == vec4<u32>(own[e % 4u]))
                * select(vec4<u32>(), vec4<u32>(1u), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(e % 4u));
            var rank = equal.x + equal.y + equal.z + equal.w;
            for (var piece = 0u; piece < SPLIT; piece++) {
                rank += before[piece * CHOICES + e];
            }
            if (rank < TAKEN) {
                chosen[rank] = e;
            }
        }
    }
    workgroupBarrier();
    return select(CHOICES + slot - TAKEN, chosen[min(slot, TAKEN - 1u)], slot < TAKEN);
}

fn share(token: u32, slot: u32) -> f32 {
    let row = token * LOGITS;
    if (slot >= TAKEN) {
        return 1.0 / (1.0 + exp(-logits[row + CHOICES]));
    }
    let largest = logits[row + chosen[0]];
    var total = 0.0;
    for (var k = 0u; k < TAKEN; k++) {
        total += exp(logits[row + chosen[k]] - largest);
    }
    return exp(logits[row + chosen[slot]] - largest) / total;
}
