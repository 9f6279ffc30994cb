// sin and cos of large angles. WGSL leaves their precision outside [-pi, pi] open and GPUs lose several digits there,
// so the angle is first brought into [-pi/4, pi/4] with pi/2 in three parts (Cody and Waite), then short Taylor-like
// minimax polynomials follow (coefficients: Cephes sinf, cosf).
fn sin_cos(angle: f32) -> vec2<f32> {
    let n = round(angle * 0.636619772);
    let r = ((angle - n * 1.5703125) - n * 4.83751296997e-4) - n * 7.54979012642e-8;
    let z = r * r;
    let s = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4));
    let c = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
    let quadrant = i32(n) & 3;
    let swapped = (quadrant & 1) == 1;
    let sine = select(s, c, swapped);
    let cosine = select(c, s, swapped);
    return vec2<f32>(
        select(sine, -sine, quadrant >= 2),
        select(cosine, -cosine, quadrant == 1 || quadrant == 2),
    );
}
