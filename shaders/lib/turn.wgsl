// One head in workgroup memory: an RMS norm over it and its rotation. The shader binds positions and freqs and has filled
// head_in; every function is called by the whole workgroup and leaves its result visible to all of it.
// Pair i turns by positions[t, axis(i)] * freqs[i]: (i, i + PAIRS) in NeoX style, (2i, 2i + 1) if INTERLEAVED.
// Interleaved M-RoPE: axis(i) = h for i mod 3 = 1 below 3 * SECTION_H, w for i mod 3 = 2 below 3 * SECTION_W, else t.
// HALVES (pictures): axis(i) = h for the first half of the pairs, w for the second.
//# include "lib/angle.wgsl"
//# if NORM
//# include "lib/reduce.wgsl"
//# endif
const_assert HD % 2u == 0u;
const_assert PAIRS * 2u <= HD;

var<workgroup> head_in: array<f32, HD>;
var<workgroup> head_out: array<f32, HD>;

//# if NORM
fn head_scale(tid: u32) -> f32 {
    var squares = 0.0;
    for (var d = tid; d < HD; d += WG) {
        squares += head_in[d] * head_in[d];
    }
    return 1.0 / sqrt(workgroup_sum(squares, tid) / f32(HD) + EPS);
}
//# endif

// sin and cos of the angle of pair i.
fn turn_of(token: u32, i: u32) -> vec2<f32> {
    var axis = 0u;
    if (i % 3u == 1u && i < 3u * SECTION_H) {
        axis = 1u;
    }
    if (i % 3u == 2u && i < 3u * SECTION_W) {
        axis = 2u;
    }
    if (HALVES) {
        axis = select(1u, 2u, i >= PAIRS / 2u);
    }
    return sin_cos(positions[token * 3u + axis] * freqs[i]);
}

fn turn_head(token: u32, tid: u32) {
    for (var i = tid; i < PAIRS; i += WG) {
        let turn = turn_of(token, i);
        let a = select(i, 2u * i, INTERLEAVED);
        let b = select(i + PAIRS, 2u * i + 1u, INTERLEAVED);
        head_out[a] = head_in[a] * turn.y - head_in[b] * turn.x;
        head_out[b] = head_in[b] * turn.y + head_in[a] * turn.x;
    }
    for (var d = 2u * PAIRS + tid; d < HD; d += WG) {
        head_out[d] = head_in[d];
    }
    workgroupBarrier();
}
