//! `cvt` between all scalar types.

use super::block::Env;
use super::fp::{self, Format};
use super::value::{LANES, V32, V64, map2};
use super::warp::Warp;
use crate::ir::*;

fn format(ty: Ty) -> Format {
    match ty {
        Ty::F16 | Ty::F16x2 => fp::F16,
        Ty::Bf16 | Ty::Bf16x2 => fp::BF16,
        Ty::F64 => fp::F64,
        Ty::Tf32 => fp::TF32,
        _ => fp::F32,
    }
}

/// The value of an integer type in the low bits of a register.
fn int_value(bits: u64, ty: Ty) -> i128 {
    let shift = 64 - ty.bits();
    if ty.signed() { i128::from((bits << shift) as i64 >> shift) } else { i128::from(bits << shift >> shift) }
}

fn range(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn float_result(bits: u64, f: Format, mode: CvtMode) -> u64 {
    // Only f32 is flushed.
    let bits = if mode.ftz && f == fp::F32 { f.flush(bits) } else { bits };
    let negative = bits & f.sign() != 0;
    if mode.relu && negative && !f.is_nan(bits) {
        return 0;
    }
    if mode.satfinite && bits & (f.sign() - 1) == f.inf() {
        return bits & f.sign() | (f.inf() - 1);
    }
    if f.is_nan(bits) {
        return if mode.sat { 0 } else { f.nan };
    }
    if mode.sat {
        let one = ((1 << (f.exp_bits - 1)) - 1) << f.man_bits;
        return if negative { 0 } else { bits.min(one) };
    }
    bits
}

/// One conversion, by the definition.
fn convert(to: Ty, from: Ty, mode: CvtMode, bits: u64) -> u64 {
    if from.is_int() {
        let v = int_value(bits, from);
        if to.is_int() {
            let (min, max) = range(to);
            return if mode.sat { v.clamp(min, max) as u64 } else { v as u64 };
        }
        let n = fp::from_int(v < 0, v.unsigned_abs() as u64);
        return float_result(fp::pack(n, format(to), mode.round), format(to), mode);
    }
    let f = format(from);
    let bits = bits & (f.sign() | (f.sign() - 1));
    let bits = if mode.ftz && from == Ty::F32 { f.flush(bits) } else { bits };
    let n = fp::unpack(bits, f);
    if to.is_int() {
        let (min, max) = range(to);
        // A NaN becomes 0; from or to 64 bits it becomes the highest bit, which is the most negative value.
        let wide = to.bytes() == 8 || from == Ty::F64;
        let nan = if !wide {
            0
        } else if to.signed() {
            min
        } else {
            1 << (to.bits() - 1)
        };
        return fp::to_int(n, mode.round, min, max, nan) as u64;
    }
    if to == Ty::Tf32 {
        return float_result(fp::pack(n, fp::TF32, mode.round), fp::TF32, mode) << 13;
    }
    let t = format(to);
    let n = if mode.integral { fp::to_integral(n, mode.round) } else { n };
    let round = if mode.integral { Round::Nearest } else { mode.round };
    if to == from && !mode.integral && f.is_nan(bits) {
        return if mode.sat { 0 } else { t.nan };
    }
    float_result(fp::pack(n, t, round), t, mode)
}

impl Env<'_> {
    #[inline(always)]
    pub(crate) fn cvt(&mut self, warp: &mut Warp, to: Ty, from: Ty, mode: CvtMode, d: Reg, a: &Src, m: u32) {
        let plain = !mode.ftz && !mode.sat && !mode.relu && !mode.satfinite;
        let nearest = plain && mode.round == Round::Nearest && !mode.integral;
        // The frequent ones as vector code.
        if from.bytes() <= 4 && to.bytes() <= 4 {
            let narrow = |v: &V32, f: &dyn Fn(u32) -> u32| V32 { v: v.v.map(f), undef: v.undef };
            let a = self.src32(warp, a);
            let fast = match (to, from) {
                (Ty::F32, Ty::F16) if plain => {
                    Some(V32 { v: a.v.map(|v| quiet(fp::f16_to_f32(v & 0xffff))), undef: a.undef })
                }
                (Ty::F32, Ty::Bf16) if plain => {
                    Some(V32 { v: a.v.map(|v| quiet(fp::bf16_to_f32(v))), undef: a.undef })
                }
                (Ty::F16, Ty::F32) if nearest => {
                    Some(V32 { v: a.v.map(|v| fp::f32_to_f16(f32::from_bits(v))), undef: a.undef })
                }
                (Ty::Bf16, Ty::F32) if nearest => {
                    Some(V32 { v: a.v.map(|v| fp::f32_to_bf16(f32::from_bits(v))), undef: a.undef })
                }
                (Ty::F32, Ty::S32) if nearest => {
                    Some(V32 { v: a.v.map(|v| (v as i32 as f32).to_bits()), undef: a.undef })
                }
                (Ty::F32, Ty::U32) if nearest => {
                    Some(V32 { v: a.v.map(|v| (v as f32).to_bits()), undef: a.undef })
                }
                _ if to.is_int() && from.is_int() && plain && to.bytes() == 4 => {
                    Some(narrow(&a, &|v| int_value(u64::from(v), from) as u32))
                }
                _ => None,
            };
            if let Some(v) = fast {
                return self.put_typed(warp, to, d, &v, m);
            }
        } else if to.is_int() && from.is_int() && plain {
            // What is cut off may be undefined.
            let cuts = from.bytes() == 8 && to.bytes() <= 4 && matches!(a, Src::W64(_));
            let low = cuts.then(|| warp.undef_halves(a)[0]);
            let a = self.src64(warp, a);
            let mut v = V64 { v: [0; LANES], undef: low.unwrap_or(a.undef) };
            match from {
                Ty::U64 | Ty::S64 | Ty::B64 => v.v = a.v,
                Ty::S32 => (0..LANES).for_each(|l| v.v[l] = a.v[l] as i32 as i64 as u64),
                Ty::U32 | Ty::B32 => (0..LANES).for_each(|l| v.v[l] = a.v[l] & 0xffff_ffff),
                _ => (0..LANES).for_each(|l| v.v[l] = int_value(a.v[l], from) as u64),
            }
            return self.put_int(warp, to, d, &v, m);
        }
        let a = self.src64(warp, a);
        let v = V64 { v: a.v.map(|v| convert(to, from, mode, v)), undef: a.undef };
        self.put_int(warp, to, d, &v, m);
    }

    fn put_typed(&mut self, warp: &mut Warp, to: Ty, d: Reg, v: &V32, m: u32) {
        match d {
            Reg::W64(_) => {
                let wide = V64 { v: v.v.map(u64::from), undef: v.undef };
                self.put_int(warp, to, d, &wide, m);
            }
            _ => warp.put32(d, v, m),
        }
    }

    /// Cuts a result to its type, and extends it by its sign into a register that is wider.
    fn put_int(&mut self, warp: &mut Warp, to: Ty, d: Reg, v: &V64, m: u32) {
        let shift = 64 - to.bits();
        let v = if to.signed() {
            V64 { v: v.v.map(|v| ((v << shift) as i64 >> shift) as u64), undef: v.undef }
        } else {
            V64 { v: v.v.map(|v| v << shift >> shift), undef: v.undef }
        };
        // A 16-bit value in a 16-bit register has zero upper bits here, whatever its sign.
        let v = if to.bytes() == 2 && matches!(d, Reg::W32(_)) {
            V64 { v: v.v.map(|v| v & 0xffff_ffff), ..v }
        } else {
            v
        };
        warp.put64(d, &v, m);
    }

    #[inline(always)]
    pub(crate) fn cvt_pair(
        &mut self,
        warp: &mut Warp,
        to: Ty,
        mode: CvtMode,
        d: Reg,
        a: &Src,
        b: &Src,
        m: u32,
    ) {
        let (a, b) = (self.src32(warp, a), self.src32(warp, b));
        let plain = !mode.ftz && !mode.sat && !mode.relu && !mode.satfinite && mode.round == Round::Nearest;
        let v = match to {
            Ty::F16x2 if plain => map2(&a, &b, |a, b| {
                fp::f32_to_f16(f32::from_bits(a)) << 16 | fp::f32_to_f16(f32::from_bits(b))
            }),
            Ty::Bf16x2 if plain => map2(&a, &b, |a, b| {
                fp::f32_to_bf16(f32::from_bits(a)) << 16 | fp::f32_to_bf16(f32::from_bits(b))
            }),
            _ => {
                let one = |v: u32| {
                    let f = format(to);
                    float_result(fp::f32_to(f, f32::from_bits(v), mode.round), f, mode) as u32
                };
                map2(&a, &b, |a, b| one(a) << 16 | one(b))
            }
        };
        warp.put32(d, &v, m);
    }
}

/// The bits of a value, with the NaN that conversions to f32 produce.
#[inline(always)]
fn quiet(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}
