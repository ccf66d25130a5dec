//! Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random
//! numbers: as easy as 1, 2, 3") and standard normal numbers made of them.
//!
//! `z(seed, stream, e)` is element `e` of a stream of independent standard normal numbers. It is computed
//! from its indices alone: the same on every target to a few units in the last place, from the same
//! integers, in whatever order or batch it is asked for.
//!
//! ```text
//! w[0..4] = philox4x32(counter = [e / 4, stream low, stream high, 0], key = [seed low, seed high])
//! u = (w[2h] | 1) / 2^32, of 24 bits where it is at least 1/2       (0, 1), for h = 0, 1
//! t = (floor(w[2h+1] / 64) + 1/2) / 2^26                            (0, 1), turns
//! z(4 (e/4) + 2h)     = sqrt(-2 ln u) cos(2 pi t)                   Box and Muller 1958
//! z(4 (e/4) + 2h + 1) = sqrt(-2 ln u) sin(2 pi t)
//! ```
//!
//! The largest magnitude is sqrt(64 ln 2), about 6.66.

use crate::cpu::simd::{Isa, Kernel, Simd};

/// Four random words: a bijection of the counter for each key.
#[inline(always)]
pub fn philox4x32(mut counter: [u32; 4], [mut k0, mut k1]: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xd251_1f53;
        let b = u64::from(counter[2]) * 0xcd9e_8d57;
        counter =
            [(b >> 32) as u32 ^ counter[1] ^ k0, b as u32, (a >> 32) as u32 ^ counter[3] ^ k1, a as u32];
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    counter
}

/// The first elements of a stream: `out[e] = z(seed, stream, e)`.
pub fn normals(seed: u64, stream: u64, out: &mut [f32]) {
    fill(Isa::detect(), seed, stream, 0, out);
}

/// The elements of a stream from `4 * block` on.
pub(crate) fn fill(isa: Isa, seed: u64, stream: u64, block: u32, out: &mut [f32]) {
    isa.run(Fill { seed, stream, block, out });
}

struct Fill<'a> {
    seed: u64,
    stream: u64,
    block: u32,
    out: &'a mut [f32],
}

/// Blocks made at once. Loops over them become vector instructions of whatever width there is: enough
/// turns that the compiler does not unroll the loop instead.
const LANES: usize = 64;

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { seed, stream, mut block, out } = self;
        let (whole, rest) = out.as_chunks_mut::<{ 4 * LANES }>();
        for chunk in whole {
            normal_blocks(seed, stream, block, chunk);
            block = block.wrapping_add(LANES as u32);
        }
        if !rest.is_empty() {
            let mut chunk = [0.0; 4 * LANES];
            normal_blocks(seed, stream, block, &mut chunk);
            rest.copy_from_slice(&chunk[..rest.len()]);
        }
    }
}

#[inline(always)]
fn normal_blocks(seed: u64, stream: u64, block: u32, out: &mut [f32; 4 * LANES]) {
    let mut words = [[0; LANES]; 4];
    for l in 0..LANES {
        let counter = [block.wrapping_add(l as u32), stream as u32, (stream >> 32) as u32, 0];
        let w = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
        for h in 0..4 {
            words[h][l] = w[h];
        }
    }
    let mut z = [[0.0; LANES]; 4];
    for (half, next) in [(0, 1), (2, 3)] {
        for l in 0..LANES {
            let r = radius(words[half][l]);
            let (cos, sin) = turn(words[next][l]);
            z[half][l] = r * cos;
            z[next][l] = r * sin;
        }
    }
    for (l, quad) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *quad = [z[0][l], z[1][l], z[2][l], z[3][l]];
    }
}

/// `sqrt(-2 ln u)` to 2 ulp. `u` has 24 significant bits where it is at least 1/2, so that no rounding makes
/// it 1.
#[inline(always)]
fn radius(w: u32) -> f32 {
    let a = w | 1;
    let a = a & !((a >> 31).wrapping_neg() & 0xff);
    let u = a as f32 * (1.0 / 4_294_967_296.0);
    // u = m 2^e with m from sqrt(1/2) to sqrt(2); ln m = f - f^2/2 + f^3 P(f), a minimax polynomial.
    let bits = u.to_bits() as i32;
    let e = bits.wrapping_sub(0x3f35_04f3) >> 23;
    let f = f32::from_bits(bits.wrapping_sub(e << 23) as u32) - 1.0;
    let mut p = LOG[0];
    for c in &LOG[1..] {
        p = p * f + c;
    }
    let square = f * f;
    let ln = f + (square * f * p - 0.5 * square) + e as f32 * std::f32::consts::LN_2;
    (-2.0 * ln).sqrt()
}

/// Cosine and sine of an angle in turns, `t` above, to 2 ulp: `y` is what is left of the nearest quarter, in
/// eighths.
#[inline(always)]
fn turn(w: u32) -> (f32, f32) {
    let quarter = w.wrapping_add(1 << 29) >> 30;
    let rest = w.wrapping_sub(quarter << 30) as i32 >> 6;
    let y = (rest << 1 | 1) as f32 * (1.0 / 16_777_216.0);
    let s = y * y;
    let sin = y * (((SIN[0] * s + SIN[1]) * s + SIN[2]) * s + SIN[3]);
    let cos = (((COS[0] * s + COS[1]) * s + COS[2]) * s + COS[3]) * s + 1.0;
    let (a, b) = if quarter & 1 == 0 { (cos, sin) } else { (sin, cos) };
    let (a, b) = (a.to_bits() ^ (quarter.wrapping_add(1) & 2) << 30, b.to_bits() ^ (quarter & 2) << 30);
    (f32::from_bits(a), f32::from_bits(b))
}

/// `(ln(1 + f) - f + f^2/2) / f^3`, highest power first: weighted least maximum on sqrt(1/2)..sqrt(2) less 1.
const LOG: [f32; 8] = [
    -0.076_345_086,
    0.127_616,
    -0.131_601_88,
    0.142_017_56,
    -0.166_233_57,
    0.200_012_27,
    -0.250_008_23,
    0.333_333_31,
];
/// `sin(pi/4 y) / y` in y^2, highest power first.
const SIN: [f32; 4] = [-3.595_450_8e-5, 2.490_007e-3, -8.074_544e-2, std::f32::consts::FRAC_PI_4];
/// `(cos(pi/4 y) - 1) / y^2` in y^2, highest power first.
const COS: [f32; 4] = [3.529_811_2e-6, -3.259_386_3e-4, 1.585_432_5e-2, -0.308_425_13];

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the authors' implementation.
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), want);
        }
    }

    /// Every instruction set gives the same bits, from any block on.
    #[test]
    fn instruction_sets_agree() {
        let mut want = vec![0.0; 1000];
        fill(Isa::Plain, 7, 1 << 40, 0, &mut want);
        for isa in Isa::available() {
            let mut got = vec![0.0; 1000];
            fill(isa, 7, 1 << 40, 0, &mut got);
            assert_eq!(got, want, "{}", isa.name());
            let mut part = vec![0.0; 101];
            fill(isa, 7, 1 << 40, 33, &mut part);
            assert_eq!(part, want[132..233], "{}", isa.name());
        }
    }

    /// Radius and angle at the ends of their ranges and in between, against f64.
    #[test]
    fn radius_and_turn_are_accurate() {
        let words = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761));
        let ends = [0, 1, 2, 255, 1 << 23, (1 << 31) - 1, 1 << 31, u32::MAX, u32::MAX - 256, 0xb504_f333];
        for w in words.chain(ends) {
            let kept = if w >> 31 == 1 { (w | 1) & !0xff } else { w | 1 };
            let want = (-2.0 * (f64::from(kept) / 4_294_967_296.0).ln()).sqrt();
            let off = (f64::from(radius(w)) / want - 1.0).abs() * f64::from(1 << 24);
            assert!(off < 6.0, "radius({w}) is off by {off} u");
            let t = (f64::from(w >> 6) + 0.5) / 67_108_864.0;
            let (cos, sin) = turn(w);
            for (got, want) in
                [(cos, (std::f64::consts::TAU * t).cos()), (sin, (std::f64::consts::TAU * t).sin())]
            {
                // The f64 functions lose digits where the result is small: allow for those of the angle.
                let off = ((f64::from(got) - want).abs() - 4e-15) / want.abs() * f64::from(1 << 24);
                assert!(off < 5.0, "turn({w}) is off by {off} u");
            }
        }
    }
}
