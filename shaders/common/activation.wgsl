// Activations applied in epilogues; ACT is one of these tags.
const ACT_NONE: u32 = 0u;
const ACT_SILU: u32 = 1u;
const ACT_GELU: u32 = 2u;

// z / (1 + e^-z), below -88 as at -88: there it is next to nothing, and WGSL need not know infinities.
fn silu(z: f32) -> f32 {
    let y = select(z, -88.0, z < -88.0);
    return y / (1.0 + exp(-y));
}

// erf to 1.5e-7 (Abramowitz and Stegun 7.1.26): WGSL has none. Beyond 9 it is 1, as at 9.
fn erf(z: f32) -> f32 {
    let x = min(abs(z), 9.0);
    let t = 1.0 / (1.0 + 0.3275911 * x);
    let q = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let y = 1.0 - q * exp(-x * x);
    return select(y, -y, z < 0.0);
}

// z * Phi(z), the exact form with the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415).
fn gelu(z: f32) -> f32 {
    return 0.5 * z * (1.0 + erf(z * 0.70710678));
}

fn activate(z: f32, act: u32) -> f32 {
    if (act == ACT_SILU) { return silu(z); }
    if (act == ACT_GELU) { return gelu(z); }
    return z;
}
