// Attention of one or two tokens over a long cache, second half: the parts that flash_decode.wgsl left in scratch, and
// the step's own keys and values (those of tokens before this one, and its own), as one softmax. Values of 8-bit blocks
// come mixed (lib/mix.wgsl), and so do their sums.
// One workgroup a (head, token): FOURS threads a part, WG / FOURS parts side by side, AT_ONCE loads under way.
// Bindings: scratch, keys, values, state, o. Called by ops/flash_decode.py.
//# include "lib/cell.wgsl"
//# include "lib/cached.wgsl"
//# include "lib/splits.wgsl"
//# if CACHED == "kv_q8"
//# include "lib/mix.wgsl"
//# endif

@group(0) @binding(0) var<storage, read> scratch: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> keys: array<CELL>;
@group(0) @binding(2) var<storage, read> values: array<CELL>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>;

const G: u32 = H / KV;
const ROWS: u32 = WG / FOURS;
const_assert ROWS > 0u;

var<workgroup> highest_of: array<f32, SPLITS>;
var<workgroup> total_of: array<f32, SPLITS>;
var<workgroup> gathered: array<vec4<f32>, ROWS * FOURS>;
var<workgroup> dots: array<f32, N * HD / 8u>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let head = group.x;
    let token = group.y;
    if (token >= state[1]) {
        return;
    }
    let past = state[0];
    let each = keys_a_split(past);
    let used = (past + each - 1u) / each;
    for (var i = tid; i < used; i += WG) {
        let stats = scratch[part_at(i, token, head) + FOURS];
        highest_of[i] = stats.x;
        total_of[i] = stats.y;
    }
    for (var i = tid; i < (token + 1u) * (HD / 8u); i += WG) {
        let of_key = key_eight(past + i / (HD / 8u), head / G, i % (HD / 8u));
        let at = query_at(token, head) + 2u * (i % (HD / 8u));
        dots[i] = dot(of_key[0], scratch[at]) + dot(of_key[1], scratch[at + 1u]);
    }
    workgroupBarrier();
    var scores = array<f32, N>();
    var largest = LOWEST;
    for (var t = 0u; t < N; t++) {
        scores[t] = select(LOWEST, 0.0, t <= token);
        if (t <= token) {
            for (var i = 0u; i < HD / 8u; i++) {
                scores[t] += dots[t * (HD / 8u) + i];
            }
        }
        largest = max(largest, scores[t]);
    }
    for (var i = 0u; i < used; i++) {
        largest = max(largest, highest_of[i]);
    }
    let four = tid % FOURS;
    let row = tid / FOURS;
    var sum = vec4<f32>(0.0);
    if (row < ROWS) {
        for (var first = row; first < used; first += ROWS * AT_ONCE) {
            var parts = array<vec4<f32>, AT_ONCE>();
            for (var j = 0u; j < AT_ONCE; j++) {
                parts[j] = scratch[part_at(min(first + j * ROWS, used - 1u), token, head) + four];
            }
            for (var j = 0u; j < AT_ONCE; j++) {
                let i = first + j * ROWS;
                if (i < used) {
                    sum += exp2(highest_of[i] - largest) * parts[j];
                }
            }
        }
        gathered[row * FOURS + four] = sum;
    }
    workgroupBarrier();
//# if CACHED == "kv_q8"
    if (row == 0u) {
        gathered[four] = whole_of(token, head, four, used, largest, scores);
    }
    workgroupBarrier();
    if (tid < HD / 32u) {
        unmix(tid, (token * H + head) * FOURS);
    }
//# else
    if (row == 0u) {
        o[(token * H + head) * FOURS + four] = whole_of(token, head, four, used, largest, scores);
    }
//# endif
}

// Four dimensions of the result: the parts' sums and the step's own values over the sum of all shares.
fn whole_of(token: u32, head: u32, four: u32, used: u32, largest: f32, scores: array<f32, N>) -> vec4<f32> {
    var sum = gathered[four];
    for (var r = 1u; r < ROWS; r++) {
        sum += gathered[r * FOURS + four];
    }
    var total = 0.0;
    for (var i = 0u; i < used; i++) {
        total += exp2(highest_of[i] - largest) * total_of[i];
    }
    for (var t = 0u; t < N; t++) {
        if (t <= token) {
            let share = exp2(scores[t] - largest);
            let of_value = value_eight(state[0] + t, head / G, four / 2u);
            sum += share * select(of_value[0], of_value[1], four % 2u == 1u);
            total += share;
        }
    }
    return sum / (total * CACHED_SCALE);
}
//# if CACHED == "kv_q8"

// Block i of the 32s of `gathered`, into o.
fn unmix(i: u32, at: u32) {
    var part = array<f32, 32>();
    for (var d = 0u; d < 32u; d++) {
        part[d] = gathered[i * 8u + d / 4u][d % 4u];
    }
    part = mix(part);
    for (var d = 0u; d < 8u; d++) {
        o[at + i * 8u + d] = vec4<f32>(part[4u * d], part[4u * d + 1u], part[4u * d + 2u], part[4u * d + 3u]);
    }
}
//# endif
