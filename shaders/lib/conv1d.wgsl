// What conv1d.wgsl and conv1d_direct.wgsl share: bindings, how a weight is read, and what happens to a finished sum.
// after [1 + SCALE + 2 SNAKE, F]: bias, a factor, e^alpha and 1 / (e^beta + eps) of every output.
//# include "lib/angle.wgsl"
//# if ACT == "gelu"
//# include "lib/gelu.wgsl"
//# endif

struct Shape {
    f: u32, // outputs of a row
    n: u32, // rows of y
    fours: u32, // inputs of a row / 4
    taps: u32,
    dilation: u32,
    lead: u32, // rows of x before row 0: those of earlier steps
    rate: u32, // rows of a token
    hidden: u32, // rows at the start of the stream that shall be zero
}

//# if WEIGHT == "f32"
@group(0) @binding(0) var<storage, read> weight: array<vec4<f32>>;
//# else
@group(0) @binding(0) var<storage, read> weight: array<vec2<u32>>;
//# endif
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> after: array<f32>;
//# if RESIDUAL
@group(0) @binding(3) var<storage, read> residual: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
//# if PLAIN
@group(0) @binding(6) var<storage, read_write> plain: array<f32>;
//# endif
//# else
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
//# if PLAIN
@group(0) @binding(5) var<storage, read_write> plain: array<f32>;
//# endif
//# endif
var<immediate> shape: Shape;

//# if WEIGHT == "f32"
fn weight_four(i: u32) -> vec4<f32> {
    return weight[i];
}
//# elif WEIGHT == "f16"
fn weight_four(i: u32) -> vec4<f32> {
    let words = weight[i];
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}
//# else
fn weight_four(i: u32) -> vec4<f32> {
    let words = weight[i];
    return bitcast<vec4<f32>>(vec4<u32>(words.x << 16u, words.x & 0xFFFF0000u, words.y << 16u, words.y & 0xFFFF0000u));
}
//# endif

// Number of the first four of x that tap `tap` of row t reads.
fn x_row(t: u32, tap: u32) -> u32 {
    return (shape.lead + t - (shape.taps - 1u - tap) * shape.dilation) * shape.fours;
}

fn finish(t: u32, f: u32, sum: f32) {
    let at = t * shape.f + f;
    var value = sum + after[f];
//# if ACT == "gelu"
    value = activate(value);
//# elif ACT == "clamp"
    value = clamp(value, -1.0, 1.0);
//# endif
//# if SCALE
    value *= after[shape.f + f];
//# endif
//# if RESIDUAL
    value += residual[at];
//# endif
//# if HIDES
    if (state[2] * shape.rate + t < shape.hidden) {
        value = 0.0;
    }
//# endif
//# if PLAIN
    plain[at] = value;
//# endif
//# if SNAKE
    let alpha = select(1u, 2u, SCALE) * shape.f + f;
    let sine = sin_cos(after[alpha] * value).x;
    value += after[alpha + shape.f] * (sine * sine);
//# endif
    y[at] = value;
}
