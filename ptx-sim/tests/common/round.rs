//! Arithmetic of any binary format by its definition: exact values, and of the numbers of the format the one
//! that the rounding mode names.
//!
//! Exact values are integers in units of 2^-2200 that are wide enough for the product of any two f64. The bit
//! patterns of a format grow with their values, so a bisection finds the neighbours of an exact value.

use std::cmp::Ordering;

#[derive(Clone, Copy, PartialEq)]
pub struct Format {
    pub exp_bits: u32,
    pub man_bits: u32,
    /// What the manual calls the canonical NaN; f64 has none, there any will do.
    pub nan: u64,
}

pub const F16: Format = Format { exp_bits: 5, man_bits: 10, nan: 0x7fff };
pub const BF16: Format = Format { exp_bits: 8, man_bits: 7, nan: 0x7fff };
pub const F32: Format = Format { exp_bits: 8, man_bits: 23, nan: 0x7fff_ffff };
pub const F64: Format = Format { exp_bits: 11, man_bits: 52, nan: 0x7ff8_0000_0000_0000 };

/// No number, an infinity, or plus or minus an integer times a power of two.
#[derive(Clone, Copy)]
pub enum Num {
    Nan,
    Inf(bool),
    Of(bool, u128, i32),
}
use Num::{Inf, Nan, Of};

const WORDS: usize = 72;
const UNIT: i32 = 2200;

/// Most significant word first, so that the order of arrays is that of the values.
type Exact = [u64; WORDS];

fn exact(m: u128, e: i32) -> Exact {
    let mut out = [0; WORDS];
    let shift = (e + UNIT) as usize;
    let at = WORDS - 1 - shift / 64;
    let (low, high) = (m as u64, (m >> 64) as u64);
    let by = shift % 64;
    out[at] = low << by;
    if by > 0 {
        out[at - 1] = low >> (64 - by) | high << by;
        out[at - 2] = high >> (64 - by);
    } else {
        out[at - 1] = high;
    }
    out
}

fn plus(a: &Exact, b: &Exact) -> Exact {
    let (mut out, mut carry) = ([0; WORDS], 0);
    for i in (0..WORDS).rev() {
        let sum = u128::from(a[i]) + u128::from(b[i]) + carry;
        (out[i], carry) = (sum as u64, sum >> 64);
    }
    out
}

/// a - b, which is not negative.
fn minus(a: &Exact, b: &Exact) -> Exact {
    let (mut out, mut borrow) = ([0; WORDS], false);
    for i in (0..WORDS).rev() {
        let (d, x) = a[i].overflowing_sub(b[i]);
        let (d, y) = d.overflowing_sub(u64::from(borrow));
        (out[i], borrow) = (d, x || y);
    }
    out
}

impl Format {
    pub fn sign(self) -> u64 {
        1 << (self.exp_bits + self.man_bits)
    }

    pub fn inf(self) -> u64 {
        self.sign() - (1 << self.man_bits)
    }

    pub fn is_nan(self, v: u64) -> bool {
        v & (self.sign() - 1) > self.inf()
    }

    fn signed(self, neg: bool, magnitude: u64) -> u64 {
        if neg { magnitude | self.sign() } else { magnitude }
    }

    /// Of a pattern without its sign. The pattern of infinity stands for the power of two that would follow.
    fn magnitude(self, v: u64) -> (u128, i32) {
        let (field, fraction) = (v >> self.man_bits, v & ((1 << self.man_bits) - 1));
        let lowest = 2 - (1 << (self.exp_bits - 1)) - self.man_bits as i32;
        match field {
            0 => (fraction.into(), lowest),
            _ => ((fraction | 1 << self.man_bits).into(), lowest + field as i32 - 1),
        }
    }

    pub fn value(self, v: u64) -> Num {
        let (neg, v) = (v & self.sign() != 0, v & (self.sign() - 1));
        if v > self.inf() {
            Nan
        } else if v == self.inf() {
            Inf(neg)
        } else {
            let (m, e) = self.magnitude(v);
            Of(neg, m, e)
        }
    }

    /// A subnormal number becomes a zero of its sign.
    pub fn flush(self, v: u64) -> u64 {
        if v & self.inf() == 0 { v & self.sign() } else { v }
    }

    /// To 0..=1, and a NaN to 0.
    pub fn saturate(self, v: u64) -> u64 {
        let one = ((1 << (self.exp_bits - 1)) - 1) << self.man_bits;
        if self.is_nan(v) || v & self.sign() != 0 { 0 } else { v.min(one) }
    }

    pub fn relu(self, v: u64) -> u64 {
        if !self.is_nan(v) && v & self.sign() != 0 { 0 } else { v }
    }

    /// The number that a mode gives for a magnitude; `order` compares a candidate with it.
    fn round(self, mode: &str, neg: bool, order: impl Fn(u128, i32) -> Ordering) -> u64 {
        let (mut low, mut high) = (0, self.inf());
        while high - low > 1 {
            let middle = (low + high) / 2;
            let (m, e) = self.magnitude(middle);
            if order(m, e) == Ordering::Greater {
                high = middle;
            } else {
                low = middle;
            }
        }
        let ((m, e), (n, f)) = (self.magnitude(low), self.magnitude(high));
        let up = match mode {
            _ if order(m, e) == Ordering::Equal => false,
            "rz" => false,
            "rm" => neg,
            "rp" => !neg,
            _ => match order(m + (n << (f - e)), e - 1) {
                Ordering::Less => true,
                Ordering::Greater => false,
                Ordering::Equal => mode == "rna" || low & 1 == 1,
            },
        };
        self.signed(neg, if up { high } else { low })
    }

    /// A value in this format.
    pub fn fit(self, mode: &str, x: Num) -> u64 {
        match x {
            Nan => self.nan,
            Inf(neg) => self.signed(neg, self.inf()),
            Of(neg, 0, _) => self.signed(neg, 0),
            Of(neg, m, e) => {
                let x = exact(m, e);
                self.round(mode, neg, |m, e| exact(m, e).cmp(&x))
            }
        }
    }

    pub fn add(self, mode: &str, x: Num, y: Num) -> u64 {
        match (x, y) {
            (Nan, _) | (_, Nan) => self.nan,
            (Inf(a), Inf(b)) if a != b => self.nan,
            (Inf(neg), _) | (_, Inf(neg)) => self.signed(neg, self.inf()),
            (Of(a, m, e), Of(b, n, f)) => {
                let (x, y) = (exact(m, e), exact(n, f));
                let (neg, sum) = match x.cmp(&y) {
                    _ if a == b => (a, plus(&x, &y)),
                    // Of an exact zero.
                    Ordering::Equal => (mode == "rm", [0; WORDS]),
                    Ordering::Greater => (a, minus(&x, &y)),
                    Ordering::Less => (b, minus(&y, &x)),
                };
                self.round(mode, neg, |m, e| exact(m, e).cmp(&sum))
            }
        }
    }

    pub fn div(self, mode: &str, x: Num, y: Num) -> u64 {
        match (x, y) {
            (Nan, _) | (_, Nan) | (Inf(_), Inf(_)) | (Of(_, 0, _), Of(_, 0, _)) => self.nan,
            (Inf(a), Of(b, ..)) | (Of(a, ..), Of(b, 0, _)) => self.signed(a != b, self.inf()),
            (Of(a, 0, _), Of(b, ..)) | (Of(a, ..), Inf(b)) => self.signed(a != b, 0),
            (Of(a, m, e), Of(b, n, f)) => {
                let x = exact(m, e);
                self.round(mode, a != b, |m, e| exact(m * n, e + f).cmp(&x))
            }
        }
    }

    pub fn sqrt(self, mode: &str, x: Num) -> u64 {
        match x {
            Of(neg, 0, _) => self.signed(neg, 0),
            Inf(false) => self.inf(),
            Nan | Inf(true) | Of(true, ..) => self.nan,
            Of(false, m, e) => {
                let x = exact(m, e);
                self.round(mode, false, |m, e| exact(m * m, 2 * e).cmp(&x))
            }
        }
    }
}

pub fn negate(x: Num) -> Num {
    match x {
        Nan => Nan,
        Inf(neg) => Inf(!neg),
        Of(neg, m, e) => Of(!neg, m, e),
    }
}

pub fn mul(x: Num, y: Num) -> Num {
    match (x, y) {
        (Nan, _) | (_, Nan) | (Inf(_), Of(_, 0, _)) | (Of(_, 0, _), Inf(_)) => Nan,
        (Inf(a), Inf(b) | Of(b, ..)) | (Of(a, ..), Inf(b)) => Inf(a != b),
        (Of(a, m, e), Of(b, n, f)) => Of(a != b, m * n, e + f),
    }
}

pub fn int(v: i128) -> Num {
    Of(v < 0, v.unsigned_abs(), 0)
}
