//! The activations of epilogues, a register at a time.

use super::simd::Simd;
use crate::ops::Activation;

/// The activation of every lane.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn activate<S: Simd>(activation: Activation, z: S::V) -> S::V {
    // SAFETY: the caller's contract.
    unsafe {
        match activation {
            Activation::None => z,
            Activation::Silu => silu::<S>(z),
            Activation::Gelu => gelu::<S>(z),
        }
    }
}

/// `z / (1 + e^-z)`, below -88 as at -88: there it is a subnormal number.
///
/// # Safety
/// As [`activate`].
#[inline(always)]
unsafe fn silu<S: Simd>(z: S::V) -> S::V {
    // SAFETY: the caller's contract. `max` keeps a NaN of its second operand.
    unsafe {
        let z = S::max(S::splat(-88.0), z);
        let e = S::exp(S::sub(S::splat(0.0), z));
        S::div(z, S::add(S::splat(1.0), e))
    }
}

/// `z * Phi(z)` with erf to 1.5e-7 (Abramowitz and Stegun 7.1.26).
///
/// # Safety
/// As [`activate`].
#[inline(always)]
unsafe fn gelu<S: Simd>(z: S::V) -> S::V {
    // SAFETY: the caller's contract.
    unsafe {
        let one = S::splat(1.0);
        let x = S::abs(S::mul(z, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
        let t = S::div(one, S::fma(S::splat(0.327_591_1), x, one));
        let mut q = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
            q = S::fma(q, t, S::splat(c));
        }
        let e = S::exp(S::sub(S::splat(0.0), S::mul(x, x)));
        let erf = S::copysign(S::sub(one, S::mul(S::mul(q, t), e)), z);
        S::mul(S::mul(S::splat(0.5), z), S::add(one, erf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Isa, Kernel};
    use crate::reference;

    struct Apply<'a>(Activation, &'a [f32], &'a mut [f32]);
    impl Kernel for Apply<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for (z, y) in self.1.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
                // SAFETY: both chunks have `z.len()` lanes.
                unsafe {
                    S::store_n(
                        y.as_mut_ptr(),
                        activate::<S>(self.0, S::load_n(z.as_ptr(), z.len())),
                        z.len(),
                    );
                }
            }
        }
    }

    #[test]
    fn activations_stay_within_their_bounds() {
        let z: Vec<f32> =
            (-24_000..24_000).map(|i| i as f32 * 0.005).chain([-1e4, 1e4, f32::MIN, f32::MAX]).collect();
        for isa in Isa::available() {
            for activation in Activation::ALL {
                let mut y = vec![f32::NAN; z.len()];
                isa.run(Apply(activation, &z, &mut y));
                for (&z, &y) in z.iter().zip(&y) {
                    let (want, error) = reference::activate(activation, (f64::from(z), 0.0));
                    let ok = (f64::from(y) - want).abs() <= error;
                    assert!(
                        ok,
                        "{} {}({z}) = {y:e}, wanted {want:e} +- {error:e}",
                        isa.name(),
                        activation.name()
                    );
                }
                let mut nan = [0.0];
                isa.run(Apply(activation, &[f32::NAN], &mut nan));
                assert!(nan[0].is_nan());
            }
        }
    }
}
