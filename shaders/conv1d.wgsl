// y[t, f] = after(sum_j,c weight[f, j, c] * x[LEAD + t - (TAPS - 1 - j) * DILATION, c]): a causal convolution over rows of
// time, channels last, as a matmul whose columns are gathered while they are staged. One workgroup computes TILE_F
// outputs of TILE_T rows, 4 x 4 of them a thread, from blocks of 32 channels of one tap in workgroup memory.
// What happens to a sum (ACT, SCALE, RESIDUAL, HIDES, PLAIN, SNAKE): lib/conv1d.wgsl.
// Rows from state[1] * rate on are left alone.
// Bindings: weight [F, TAPS, C], x, after, [residual], state, y, [plain]. Called by ops/conv1d.py.
//# include "lib/conv1d.wgsl"

const EACH: u32 = 4u; // rows and outputs of a thread
const TILE_F: u32 = EACH * SIDE_F;
const TILE_T: u32 = EACH * SIDE_T;
const THREADS: u32 = SIDE_F * SIDE_T;
const DEPTH: u32 = 8u; // fours of channels in a block
// One more four a line, so that threads that store a column go to different banks.
const LINE_F: u32 = TILE_F + 1u;
const LINE_T: u32 = TILE_T + 1u;

var<workgroup> weight_tile: array<vec4<f32>, DEPTH * LINE_F>;
var<workgroup> x_tile: array<vec4<f32>, DEPTH * LINE_T>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let first_f = group.x * TILE_F;
    let first_t = group.y * TILE_T;
    let rows = min(shape.n, state[1] * shape.rate);
    if (first_t >= rows) {
        return;
    }
    let tf = tid % SIDE_F;
    let tt = tid / SIDE_F;
    var sums = array<f32, EACH * EACH>();
    for (var tap = 0u; tap < shape.taps; tap++) {
        for (var first = 0u; first < shape.fours; first += DEPTH) {
            workgroupBarrier();
            for (var i = tid; i < DEPTH * TILE_F; i += THREADS) {
                let c = first + i % DEPTH;
                // Outputs beyond the end repeat the last one and are not written; channels beyond it count 0.
                let at = (min(first_f + i / DEPTH, shape.f - 1u) * shape.taps + tap) * shape.fours;
                var four = vec4<f32>(0.0);
                if (c < shape.fours) {
                    four = weight_four(at + c);
                }
                weight_tile[(i % DEPTH) * LINE_F + i / DEPTH] = four;
            }
            for (var i = tid; i < DEPTH * TILE_T; i += THREADS) {
                let c = min(first + i % DEPTH, shape.fours - 1u);
                x_tile[(i % DEPTH) * LINE_T + i / DEPTH] = x[x_row(min(first_t + i / DEPTH, rows - 1u), tap) + c];
            }
            workgroupBarrier();
            for (var i = 0u; i < DEPTH; i++) {
                var fours = array<vec4<f32>, EACH>();
                for (var t = 0u; t < EACH; t++) {
                    fours[t] = x_tile[i * LINE_T + t * SIDE_T + tt];
                }
                for (var f = 0u; f < EACH; f++) {
                    let four = weight_tile[i * LINE_F + f * SIDE_F + tf];
                    for (var t = 0u; t < EACH; t++) {
                        // Four multiply-adds on a GPU, where dot() and an addition are five instructions.
                        sums[f * EACH + t] += four.x * fours[t].x;
                        sums[f * EACH + t] += four.y * fours[t].y;
                        sums[f * EACH + t] += four.z * fours[t].z;
                        sums[f * EACH + t] += four.w * fours[t].w;
                    }
                }
            }
        }
    }
    for (var t = 0u; t < EACH; t++) {
        let row = first_t + t * SIDE_T + tt;
        for (var f = 0u; f < EACH; f++) {
            let output = first_f + f * SIDE_F + tf;
            if (row < rows && output < shape.f) {
                finish(row, output, sums[f * EACH + t]);
            }
        }
    }
}
