// ACT == "gelu": x * (1 + erf(x / sqrt 2)) / 2; "gelu_tanh": its approximation by tanh (Hendrycks and Gimpel 2016).

//# if ACT == "gelu"
// max(x, 0) - |x| / 2 * erfc(|x| / sqrt 2) does not cancel for negative x. erfc(z) = t p(t) e^-z^2 with t = 1 / (1 + 0.45 z)
// and a polynomial fitted to a relative error of 3e-7 for z up to 9, where erfc is 0 in float32.
fn activate(x: f32) -> f32 {
    let z = min(abs(x) * 0.707106781, 9.0);
    let t = 1.0 / (1.0 + 0.45 * z);
    var p = 0.06568326 * t - 0.2351385;
    p = p * t + 0.19962247;
    p = p * t + 0.04914679;
    p = p * t + 0.18375799;
    p = p * t + 0.22962329;
    p = p * t + 0.25337858;
    p = p * t + 0.25392637;
    return max(x, 0.0) - 0.5 * abs(x) * (t * p * exp(-z * z));
}
//# else
// (1 + tanh u) / 2 = 1 / (1 + e^-2u); at |x| = 10 it is 0 or 1, and e^2u still a float.
fn activate(x: f32) -> f32 {
    let c = clamp(x, -10.0, 10.0);
    return x / (1.0 + exp(-1.595769122 * (c + 0.044715 * c * c * c)));
}
//# endif
