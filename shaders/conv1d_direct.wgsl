// The convolution of conv1d.wgsl without workgroup memory: ROWS outputs of TOKENS rows a thread, straight from the
// buffers. For software adapters, which gain nothing from staging, and for convolutions to a single channel.
// LANES of the WG threads lie side by side along the outputs, the others along the rows of time.
// What happens to a sum (ACT, SCALE, RESIDUAL, HIDES, PLAIN, SNAKE): lib/conv1d.wgsl.
// Rows from state[1] * rate on are left alone.
// Bindings: weight [F, TAPS, C], x, after, [residual], state, y, [plain]. Called by ops/conv1d.py.
//# include "lib/conv1d.wgsl"

const_assert WG % LANES == 0u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let first_f = (group.x * LANES + tid % LANES) * ROWS;
    let first_t = (group.y * (WG / LANES) + tid / LANES) * TOKENS;
    let rows = min(shape.n, state[1] * shape.rate);
    if (first_t >= rows || first_f >= shape.f) {
        return;
    }
    var sums = array<f32, ROWS * TOKENS>();
    for (var tap = 0u; tap < shape.taps; tap++) {
        // Rows and outputs beyond the end repeat the last one; they are not written.
        var of_x = array<u32, TOKENS>();
        for (var t = 0u; t < TOKENS; t++) {
            of_x[t] = x_row(min(first_t + t, rows - 1u), tap);
        }
        var of_weight = array<u32, ROWS>();
        for (var f = 0u; f < ROWS; f++) {
            of_weight[f] = (min(first_f + f, shape.f - 1u) * shape.taps + tap) * shape.fours;
        }
        for (var c = 0u; c < shape.fours; c++) {
            var fours = array<vec4<f32>, TOKENS>();
            for (var t = 0u; t < TOKENS; t++) {
                fours[t] = x[of_x[t] + c];
            }
            for (var f = 0u; f < ROWS; f++) {
                let four = weight_four(of_weight[f] + c);
                for (var t = 0u; t < TOKENS; t++) {
                    sums[f * TOKENS + t] += dot(four, fours[t]);
                }
            }
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        for (var f = 0u; f < ROWS; f++) {
            if (first_t + t < rows && first_f + f < shape.f) {
                finish(first_t + t, first_f + f, sums[f * TOKENS + t]);
            }
        }
    }
}
