//! Floating-point arithmetic of any format and rounding mode, in integers: exact first, rounded once.
//!
//! The f32 and f64 operations that round to nearest run on the host's arithmetic instead; tests compare
//! the two.

use crate::ir::Round;

/// A binary interchange format, or one laid out like one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) exp_bits: u32,
    /// Explicit bits of the significand.
    pub(crate) man_bits: u32,
    /// The NaN that operations return.
    pub(crate) nan: u64,
}

pub(crate) const F16: Format = Format { exp_bits: 5, man_bits: 10, nan: 0x7fff };
pub(crate) const BF16: Format = Format { exp_bits: 8, man_bits: 7, nan: 0x7fff };
/// tf32 with its 19 bits; in a register they are the upper bits of an f32.
pub(crate) const TF32: Format = Format { exp_bits: 8, man_bits: 10, nan: 0x3ffff };
pub(crate) const F32: Format = Format { exp_bits: 8, man_bits: 23, nan: 0x7fff_ffff };
pub(crate) const F64: Format = Format { exp_bits: 11, man_bits: 52, nan: 0xfff8_0000_0000_0000 };

impl Format {
    pub(crate) fn inf(self) -> u64 {
        ((1 << self.exp_bits) - 1) << self.man_bits
    }

    pub(crate) fn sign(self) -> u64 {
        1 << (self.exp_bits + self.man_bits)
    }

    /// Exponent of the lowest bit of a subnormal.
    fn low(self) -> i32 {
        2 - (1 << (self.exp_bits - 1)) - self.man_bits as i32
    }

    pub(crate) fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.inf()
    }

    pub(crate) fn is_subnormal(self, bits: u64) -> bool {
        let magnitude = bits & (self.sign() - 1);
        magnitude != 0 && magnitude >> self.man_bits == 0
    }

    /// A subnormal becomes a zero of its sign.
    pub(crate) fn flush(self, bits: u64) -> u64 {
        if self.is_subnormal(bits) { bits & self.sign() } else { bits }
    }
}

/// A number before rounding. A finite one is `man * 2^exp`, with `sticky` for a positive remainder below
/// the lowest bit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Num {
    Nan,
    Inf(bool),
    Zero(bool),
    Finite { neg: bool, exp: i32, man: u128, sticky: bool },
}

use Num::{Finite, Inf, Nan, Zero};

pub(crate) fn unpack(bits: u64, f: Format) -> Num {
    let neg = bits & f.sign() != 0;
    let magnitude = bits & (f.sign() - 1);
    let (field, frac) = (magnitude >> f.man_bits, magnitude & ((1 << f.man_bits) - 1));
    if magnitude > f.inf() {
        Nan
    } else if magnitude == f.inf() {
        Inf(neg)
    } else if magnitude == 0 {
        Zero(neg)
    } else if field == 0 {
        // As wide as a normal number, so that sums and quotients keep enough bits.
        let shift = f.man_bits + 1 - (64 - frac.leading_zeros());
        Finite { neg, exp: f.low() - shift as i32, man: u128::from(frac) << shift, sticky: false }
    } else {
        let man = u128::from(frac | 1 << f.man_bits);
        Finite { neg, exp: f.low() + field as i32 - 1, man, sticky: false }
    }
}

pub(crate) fn from_int(negative: bool, magnitude: u64) -> Num {
    if magnitude == 0 {
        return Zero(false);
    }
    Finite { neg: negative, exp: 0, man: u128::from(magnitude), sticky: false }
}

/// Whether a magnitude with this remainder is rounded away from zero.
fn rounds_up(mode: Round, neg: bool, odd: bool, above_half: bool, half: bool, inexact: bool) -> bool {
    match mode {
        Round::Nearest => above_half || half && odd,
        Round::Away => above_half || half,
        Round::Zero => false,
        Round::Down => inexact && neg,
        Round::Up => inexact && !neg,
    }
}

/// Splits `man` at bit `shift` and rounds the upper part.
fn round_at(man: u128, shift: i32, sticky: bool, mode: Round, neg: bool) -> u128 {
    if shift <= 0 {
        // Room below: the callers leave no sticky bit here but with a far longer significand.
        return man << -shift;
    }
    if shift > 127 {
        return u128::from(rounds_up(mode, neg, false, false, false, man != 0 || sticky));
    }
    let kept = man >> shift;
    let rest = man & ((1 << shift) - 1);
    let middle = 1 << (shift - 1);
    let above = rest > middle || rest == middle && sticky;
    let half = rest == middle && !sticky;
    kept + u128::from(rounds_up(mode, neg, kept & 1 == 1, above, half, rest != 0 || sticky))
}

pub(crate) fn pack(n: Num, f: Format, mode: Round) -> u64 {
    match n {
        Nan => f.nan,
        Inf(neg) => f.inf() | if neg { f.sign() } else { 0 },
        Zero(neg) => {
            if neg {
                f.sign()
            } else {
                0
            }
        }
        Finite { neg, exp, man, sticky } => {
            let length = 128 - man.leading_zeros() as i32;
            let unit = (exp + length - 1 - f.man_bits as i32).max(f.low());
            let kept = round_at(man, unit - exp, sticky, mode, neg) as u64;
            // The hidden bit adds one to the exponent field, and so does a carry out of the significand.
            let field = (unit - f.low()) as u64;
            let bits = if field >> f.exp_bits != 0 { f.inf() } else { (field << f.man_bits) + kept };
            let bits = if bits >= f.inf() {
                let to_inf = match mode {
                    Round::Nearest | Round::Away => true,
                    Round::Zero => false,
                    Round::Down => neg,
                    Round::Up => !neg,
                };
                if to_inf { f.inf() } else { f.inf() - 1 }
            } else {
                bits
            };
            bits | if neg { f.sign() } else { 0 }
        }
    }
}

/// To an integral value, still exact.
pub(crate) fn to_integral(n: Num, mode: Round) -> Num {
    let Finite { neg, exp, man, sticky } = n else {
        return n;
    };
    if exp >= 0 {
        return n;
    }
    match round_at(man, -exp, sticky, mode, neg) {
        0 => Zero(neg),
        man => Finite { neg, exp: 0, man, sticky: false },
    }
}

/// To an integer, clamped to `min..=max`; a NaN becomes `nan`.
pub(crate) fn to_int(n: Num, mode: Round, min: i128, max: i128, nan: i128) -> i128 {
    match to_integral(n, mode) {
        Nan => nan,
        Inf(neg) => {
            if neg {
                min
            } else {
                max
            }
        }
        Zero(_) => 0,
        Finite { neg, exp, man, .. } => {
            let magnitude = if exp > 70 || exp > man.leading_zeros() as i32 - 2 {
                i128::MAX
            } else {
                (man << exp) as i128
            };
            (if neg { -magnitude } else { magnitude }).clamp(min, max)
        }
    }
}

pub(crate) fn negate(n: Num) -> Num {
    match n {
        Nan => Nan,
        Inf(neg) => Inf(!neg),
        Zero(neg) => Zero(!neg),
        Finite { neg, exp, man, sticky } => Finite { neg: !neg, exp, man, sticky },
    }
}

fn negative(n: Num) -> bool {
    matches!(n, Inf(true) | Zero(true) | Finite { neg: true, .. })
}

pub(crate) fn mul(a: Num, b: Num) -> Num {
    let neg = negative(a) != negative(b);
    match (a, b) {
        (Nan, _) | (_, Nan) | (Inf(_), Zero(_)) | (Zero(_), Inf(_)) => Nan,
        (Inf(_), _) | (_, Inf(_)) => Inf(neg),
        (Zero(_), _) | (_, Zero(_)) => Zero(neg),
        (Finite { exp: ea, man: ma, .. }, Finite { exp: eb, man: mb, .. }) => {
            Finite { neg, exp: ea + eb, man: ma * mb, sticky: false }
        }
    }
}

/// `mode` decides the sign of an exact zero only.
pub(crate) fn add(a: Num, b: Num, mode: Round) -> Num {
    match (a, b) {
        (Nan, _) | (_, Nan) => Nan,
        (Inf(x), Inf(y)) if x != y => Nan,
        (Inf(x), _) | (_, Inf(x)) => Inf(x),
        (Zero(x), Zero(y)) => Zero(if x == y { x } else { mode == Round::Down }),
        (Zero(_), n) | (n, Zero(_)) => n,
        (Finite { neg: na, exp: ea, man: ma, .. }, Finite { neg: nb, exp: eb, man: mb, .. }) => {
            if ea < eb {
                return add(b, a, mode);
            }
            // a is shifted left as far as it goes, b right by the rest; nothing cancels when bits of b are lost.
            let room = ma.leading_zeros() as i32 - 2;
            let left = (ea - eb).min(room);
            let right = ea - eb - left;
            let (ma, exp) = (ma << left, ea - left);
            let lost = right > 0 && (right > 127 || mb & ((1 << right) - 1) != 0);
            let mb = if right > 127 { 0 } else { mb >> right };
            if na == nb {
                return Finite { neg: na, exp, man: ma + mb, sticky: lost };
            }
            let mb = mb + u128::from(lost);
            match ma.cmp(&mb) {
                std::cmp::Ordering::Equal => Zero(mode == Round::Down),
                std::cmp::Ordering::Greater => Finite { neg: na, exp, man: ma - mb, sticky: lost },
                std::cmp::Ordering::Less => Finite { neg: nb, exp, man: mb - ma, sticky: lost },
            }
        }
    }
}

pub(crate) fn fma(a: Num, b: Num, c: Num, mode: Round) -> Num {
    add(mul(a, b), c, mode)
}

pub(crate) fn div(a: Num, b: Num) -> Num {
    let neg = negative(a) != negative(b);
    match (a, b) {
        (Nan, _) | (_, Nan) | (Inf(_), Inf(_)) | (Zero(_), Zero(_)) => Nan,
        (Inf(_), _) | (_, Zero(_)) => Inf(neg),
        (Zero(_), _) | (_, Inf(_)) => Zero(neg),
        (Finite { exp: ea, man: ma, .. }, Finite { exp: eb, man: mb, .. }) => {
            let shift = ma.leading_zeros() as i32 - 1;
            let ma = ma << shift;
            Finite { neg, exp: ea - shift - eb, man: ma / mb, sticky: !ma.is_multiple_of(mb) }
        }
    }
}

pub(crate) fn sqrt(a: Num) -> Num {
    match a {
        Zero(neg) => Zero(neg),
        Inf(false) => Inf(false),
        Nan | Inf(true) | Finite { neg: true, .. } => Nan,
        Finite { exp, man, .. } => {
            let mut shift = man.leading_zeros() as i32;
            shift -= (exp - shift) & 1;
            let man = man << shift;
            let root = man.isqrt();
            Finite { neg: false, exp: (exp - shift) / 2, man: root, sticky: root * root != man }
        }
    }
}

/// f16 to f32: exact.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u32) -> f32 {
    // Shifted into place, the exponent is off by 112; a multiplication mends it and normalizes subnormals.
    let magnitude = f32::from_bits((h & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let magnitude = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 | (h & 0x3ff) << 13 } else { magnitude.to_bits() };
    f32::from_bits(magnitude | (h & 0x8000) << 16)
}

#[inline(always)]
pub(crate) fn bf16_to_f32(h: u32) -> f32 {
    f32::from_bits(h << 16)
}

pub(crate) fn f32_to(f: Format, x: f32, mode: Round) -> u64 {
    pack(unpack(u64::from(x.to_bits()), F32), f, mode)
}

/// f32 to f16, to nearest even: by arithmetic, since it is in every kernel with f16 results.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u32 {
    let bits = x.to_bits();
    let sign = bits >> 16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Normal: round the 13 bits that go, carry included. Subnormal: adding 0.5 aligns and rounds.
    let normal = (magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1))).wrapping_sub(112 << 23) >> 13;
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let h = if magnitude > 0x7f80_0000 {
        return 0x7fff;
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else {
        finite
    };
    sign | h
}

/// f32 to bf16, to nearest even.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}
