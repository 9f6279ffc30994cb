// What a 3x3 convolution with stride 2 and padding 1 reads, as rows for a matmul: y[(b, t, f), tap * C + c] =
// x[b, 2 t + kt - 1, 2 f + kf - 1, c] with tap = 3 kt + kf, and 0 outside of x. x [B * T_IN * F_IN, C] channels last.
// One thread four values of one row. Rows of y have WIDTH values: 9 C, and zeros up to a multiple of four.
// Of the T_IN columns of every b only those that valid[0] frames fill count, ceil(valid[0] / SCALE); the rest are 0, too.
// Bindings: x, valid, state, y. Called by ops/conv.py.

//# if C % 4
@group(0) @binding(0) var<storage, read> x: array<f32>;
//# else
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
//# endif
@group(0) @binding(1) var<storage, read> valid: array<u32>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

const T_OUT: u32 = (T_IN + 1u) / 2u;
const F_OUT: u32 = (F_IN + 1u) / 2u;
const_assert WIDTH % 4u == 0u;

// Which row of x the tap of an output position reads, and whether there is one.
struct Source {
    row: u32,
    inside: bool,
}

fn source(position: u32, tap: u32) -> Source {
    let b = position / (T_OUT * F_OUT);
    // One more than the true place, so that -1 needs no sign.
    let t = 2u * (position / F_OUT % T_OUT) + tap / 3u;
    let f = 2u * (position % F_OUT) + tap % 3u;
    let columns = min(T_IN, (valid[0] + SCALE - 1u) / SCALE);
    return Source((b * T_IN + t - 1u) * F_IN + f - 1u, t >= 1u && t <= columns && f >= 1u && f <= F_IN && tap < 9u);
}

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let position = id.y;
    if (id.x >= WIDTH / 4u || position >= state[1] * (T_OUT * F_OUT)) {
        return;
    }
    var values = vec4<f32>();
//# if C % 4
    for (var i = 0u; i < 4u; i++) {
        let at = 4u * id.x + i;
        let found = source(position, at / C);
        if (found.inside) {
            values[i] = x[found.row * C + at % C];
        }
    }
//# else
    let found = source(position, 4u * id.x / C);
    if (found.inside) {
        values = x[found.row * (C / 4u) + id.x % (C / 4u)];
    }
//# endif
    y[position * (WIDTH / 4u) + id.x] = values;
}
