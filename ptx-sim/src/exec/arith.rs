//! Arithmetic: every operation as a function of one lane, mapped over the warp.

use super::block::Env;
use super::fp::{self, Format, Num};
use super::value::{LANES, V32, V64, map1, map1w, map2, map2w, map3, map3w, mask_of};
use super::warp::Warp;
use crate::ir::*;

fn sx16(v: u32) -> i32 {
    i32::from(v as u16 as i16)
}

fn zx16(v: u32) -> u32 {
    v & 0xffff
}

/// `bfe` on 64 bits of which `width` count: the sign is extended for a signed type.
fn bfe(a: u64, pos: u32, len: u32, width: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let sign_at = (pos + len).saturating_sub(1).min(width - 1);
    let sign = signed && len > 0 && a >> sign_at & 1 != 0;
    let field = if pos >= width { 0 } else { a >> pos };
    let have = len.min(width.saturating_sub(pos));
    let mask = if have >= 64 { !0 } else { (1u64 << have) - 1 };
    let out = field & mask;
    if sign { out | !mask } else { out }
}

fn bfi(a: u64, b: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= width || len == 0 {
        return b;
    }
    let have = len.min(width - pos);
    let mask = if have >= 64 { !0 } else { ((1u64 << have) - 1) << pos };
    b & !mask | a << pos & mask
}

fn prmt(mode: u8, a: u32, b: u32, c: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let byte = |i: u32| (bytes >> (i * 8)) as u32 & 0xff;
    let select: [u32; 4] = match mode {
        0 => {
            let mut out = 0;
            for i in 0..4 {
                let s = c >> (4 * i) & 0xf;
                let v = byte(s & 7);
                let v = if s & 8 != 0 { if v & 0x80 != 0 { 0xff } else { 0 } } else { v };
                out |= v << (8 * i);
            }
            return out;
        }
        1 => std::array::from_fn(|i| (c & 3) + i as u32),
        2 => std::array::from_fn(|i| (c & 3).wrapping_sub(i as u32) & 7),
        3 => [c & 3; 4],
        4 => std::array::from_fn(|i| (i as u32).max(c & 3)),
        5 => std::array::from_fn(|i| (i as u32).min(c & 3)),
        _ => {
            let s = (c & 1) * 2;
            [s, s + 1, s, s + 1]
        }
    };
    (0..4).map(|i| byte(select[i as usize]) << (8 * i)).sum()
}

fn dp4a(a: u32, b: u32, c: u32, sa: bool, sb: bool) -> u32 {
    let byte = |v: u32, i: u32, signed: bool| {
        let v = (v >> (8 * i)) as u8;
        if signed { i32::from(v as i8) } else { i32::from(v) }
    };
    (0..4).fold(c, |sum, i| sum.wrapping_add((byte(a, i, sa) * byte(b, i, sb)) as u32))
}

fn dp2a(a: u32, b: u32, c: u32, sa: bool, sb: bool, hi: bool) -> u32 {
    (0..2).fold(c, |sum, i| {
        let x = (a >> (16 * i)) as u16;
        let x = if sa { i32::from(x as i16) } else { i32::from(x) };
        let y = (b >> (8 * i + if hi { 16 } else { 0 })) as u8;
        let y = if sb { i32::from(y as i8) } else { i32::from(y) };
        sum.wrapping_add(x.wrapping_mul(y) as u32)
    })
}

fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let mut out = 0;
    for i in 0..8 {
        if table >> i & 1 != 0 {
            out |= if i & 4 != 0 { a } else { !a }
                & if i & 2 != 0 { b } else { !b }
                & if i & 1 != 0 { c } else { !c };
        }
    }
    out
}

/// `fns`: the position of the n-th set bit from a base.
fn fns(mask: u32, base: u32, offset: u32) -> u32 {
    let (base, offset) = (base & 31, offset as i32);
    if offset == 0 {
        return if mask >> base & 1 != 0 { base } else { !0 };
    }
    let step = if offset < 0 { -1 } else { 1 };
    let (mut at, mut left) = (base as i32, offset.unsigned_abs());
    while (0..32).contains(&at) {
        if mask >> at & 1 != 0 {
            left -= 1;
            if left == 0 {
                return at as u32;
            }
        }
        at += step;
    }
    !0
}

fn halves(a: u32, b: u32, f: impl Fn(u32, u32) -> u32) -> u32 {
    f(a & 0xffff, b & 0xffff) & 0xffff | f(a >> 16, b >> 16) << 16
}

fn s24(v: u32) -> i64 {
    i64::from((v << 8) as i32 >> 8)
}

fn u24(v: u32) -> i64 {
    i64::from(v & 0xff_ffff)
}

impl Env<'_> {
    #[inline(always)]
    pub(crate) fn int(&mut self, warp: &mut Warp, op: IntOp, ty: Ty, d: Reg, src: [&Src; 3], m: u32) {
        if matches!(op, IntOp::MulWide | IntOp::MadWide) {
            return self.wide(warp, op, ty, d, src, m);
        }
        if matches!(op, IntOp::Bfe) {
            let (b, c) = (self.src32(warp, src[1]), self.src32(warp, src[2]));
            let a = self.src64(warp, src[0]);
            let v = std::array::from_fn(|l| bfe(a.v[l], b.v[l], c.v[l], ty.bits(), ty.signed()));
            return warp.put64(d, &V64 { v, undef: a.undef | b.undef | c.undef }, m);
        }
        match ty.bytes() {
            8 => self.int64(warp, op, ty.signed(), d, src, m),
            2 => self.int16(warp, op, ty.signed(), d, src, m),
            _ => self.int32(warp, op, ty, d, src, m),
        }
    }

    #[inline(always)]
    fn int32(&mut self, warp: &mut Warp, op: IntOp, ty: Ty, d: Reg, src: [&Src; 3], m: u32) {
        let signed = ty.signed();
        let a = self.src32(warp, src[0]);
        let b = self.src32(warp, src[1]);
        let two = |f: fn(u32, u32) -> u32| map2(&a, &b, f);
        let three = |f: &dyn Fn(u32, u32, u32) -> u32| {
            let c = self.src32(warp, src[2]);
            map3(&a, &b, &c, f)
        };
        let v = match op {
            IntOp::Add => map2(&a, &b, u32::wrapping_add),
            IntOp::Sub => map2(&a, &b, u32::wrapping_sub),
            IntOp::AddSat => two(|a, b| (a as i32).saturating_add(b as i32) as u32),
            IntOp::SubSat => two(|a, b| (a as i32).saturating_sub(b as i32) as u32),
            IntOp::MulLo => map2(&a, &b, u32::wrapping_mul),
            IntOp::MulHi if signed => {
                map2(&a, &b, |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32)
            }
            IntOp::MulHi => map2(&a, &b, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
            IntOp::MadLo => {
                let c = self.src32(warp, src[2]);
                map3(&a, &b, &c, |a, b, c| a.wrapping_mul(b).wrapping_add(c))
            }
            IntOp::MadHi if signed => {
                three(&|a, b, c| (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).wrapping_add(c))
            }
            IntOp::MadHi => three(&|a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)),
            IntOp::MadHiSat => three(&|a, b, c| {
                (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as i32).saturating_add(c as i32) as u32
            }),
            IntOp::Mul24Lo if signed => two(|a, b| (s24(a) * s24(b)) as u32),
            IntOp::Mul24Lo => two(|a, b| (u24(a) * u24(b)) as u32),
            IntOp::Mul24Hi if signed => two(|a, b| ((s24(a) * s24(b)) >> 16) as u32),
            IntOp::Mul24Hi => two(|a, b| ((u24(a) * u24(b)) >> 16) as u32),
            IntOp::Mad24Lo if signed => three(&|a, b, c| ((s24(a) * s24(b)) as u32).wrapping_add(c)),
            IntOp::Mad24Lo => three(&|a, b, c| ((u24(a) * u24(b)) as u32).wrapping_add(c)),
            IntOp::Mad24Hi if signed => three(&|a, b, c| (((s24(a) * s24(b)) >> 16) as u32).wrapping_add(c)),
            IntOp::Mad24Hi => three(&|a, b, c| (((u24(a) * u24(b)) >> 16) as u32).wrapping_add(c)),
            IntOp::Sad if signed => three(&|a, b, c| c.wrapping_add((a as i32).abs_diff(b as i32))),
            IntOp::Sad => three(&|a, b, c| c.wrapping_add(a.abs_diff(b))),
            // Division by zero gives all ones, as the hardware does; the remainder is the dividend.
            IntOp::Div if signed => {
                two(|a, b| if b == 0 { !0 } else { (a as i32).wrapping_div(b as i32) as u32 })
            }
            IntOp::Div => two(|a, b| a.checked_div(b).unwrap_or(!0)),
            IntOp::Rem if signed => {
                two(|a, b| if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 })
            }
            IntOp::Rem => two(|a, b| a.checked_rem(b).unwrap_or(a)),
            IntOp::Abs => map1(&a, |a| (a as i32).wrapping_abs() as u32),
            IntOp::Neg => map1(&a, u32::wrapping_neg),
            IntOp::Min if signed => map2(&a, &b, |a, b| (a as i32).min(b as i32) as u32),
            IntOp::Min => map2(&a, &b, |a, b| a.min(b)),
            IntOp::Max if signed => map2(&a, &b, |a, b| (a as i32).max(b as i32) as u32),
            IntOp::Max => map2(&a, &b, |a, b| a.max(b)),
            IntOp::MinRelu => two(|a, b| (a as i32).min(b as i32).max(0) as u32),
            IntOp::MaxRelu => two(|a, b| (a as i32).max(b as i32).max(0) as u32),
            IntOp::Min16x2(relu) if signed => {
                let least = if relu { 0 } else { i32::MIN };
                map2(&a, &b, |a, b| halves(a, b, |a, b| sx16(a).min(sx16(b)).max(least) as u32))
            }
            IntOp::Max16x2(relu) if signed => {
                let least = if relu { 0 } else { i32::MIN };
                map2(&a, &b, |a, b| halves(a, b, |a, b| sx16(a).max(sx16(b)).max(least) as u32))
            }
            IntOp::Min16x2(_) => two(|a, b| halves(a, b, |a, b| a.min(b))),
            IntOp::Max16x2(_) => two(|a, b| halves(a, b, |a, b| a.max(b))),
            IntOp::Add16x2 => two(|a, b| halves(a, b, u32::wrapping_add)),
            IntOp::Popc => map1(&a, u32::count_ones),
            IntOp::Clz => map1(&a, u32::leading_zeros),
            IntOp::Brev => map1(&a, u32::reverse_bits),
            IntOp::Bfind | IntOp::BfindShift => map1(&a, |a| {
                let a = if signed && (a as i32) < 0 { !a } else { a };
                match a.checked_ilog2() {
                    None => !0,
                    Some(bit) if op == IntOp::BfindShift => 31 - bit,
                    Some(bit) => bit,
                }
            }),
            IntOp::Fns => three(&fns),
            IntOp::Szext(wrap) => map2(&a, &b, |a, n| {
                let n = if wrap { n & 31 } else { n.min(32) };
                match n {
                    0 => 0,
                    n if signed => ((a << (32 - n)) as i32 >> (32 - n)) as u32,
                    n => a << (32 - n) >> (32 - n),
                }
            }),
            IntOp::Bmsk(wrap) => map2(&a, &b, |pos, len| {
                let (pos, len) = if wrap { (pos & 31, len & 31) } else { (pos, len.min(32)) };
                if pos > 31 { 0 } else { (((1u64 << len) - 1) << pos) as u32 }
            }),
            IntOp::And => map2(&a, &b, |a, b| a & b),
            IntOp::Or => map2(&a, &b, |a, b| a | b),
            IntOp::Xor => map2(&a, &b, |a, b| a ^ b),
            IntOp::Not => map1(&a, |a| !a),
            IntOp::Cnot => map1(&a, |a| u32::from(a == 0)),
            IntOp::Shl => map2(&a, &b, |a, n| if n > 31 { 0 } else { a << n }),
            IntOp::Shr if signed => map2(&a, &b, |a, n| ((a as i32) >> n.min(31)) as u32),
            IntOp::Shr => map2(&a, &b, |a, n| if n > 31 { 0 } else { a >> n }),
            IntOp::ShfL(wrap) => three(&|a, b, c| {
                let n = if wrap { c & 31 } else { c.min(32) };
                ((u64::from(b) << 32 | u64::from(a)) << n >> 32) as u32
            }),
            IntOp::ShfR(wrap) => three(&|a, b, c| {
                let n = if wrap { c & 31 } else { c.min(32) };
                ((u64::from(b) << 32 | u64::from(a)) >> n) as u32
            }),
            IntOp::Lop3(table) => three(&|a, b, c| lop3(table, a, b, c)),
            IntOp::Prmt(mode) => three(&|a, b, c| prmt(mode, a, b, c)),
            IntOp::Dp4a(sa, sb) => three(&|a, b, c| dp4a(a, b, c, sa, sb)),
            IntOp::Dp2a(sa, sb, hi) => three(&|a, b, c| dp2a(a, b, c, sa, sb, hi)),
            IntOp::MulWide | IntOp::MadWide | IntOp::Bfe => a,
        };
        warp.put32(d, &v, m);
    }

    fn int16(&mut self, warp: &mut Warp, op: IntOp, signed: bool, d: Reg, src: [&Src; 3], m: u32) {
        let mut a = self.src32(warp, src[0]);
        let mut b = self.src32(warp, src[1]);
        let shift = matches!(op, IntOp::Shl | IntOp::Shr);
        // As 32-bit values of the same sign; the result is cut to 16 bits.
        let extend = |v: &V32| {
            if signed { map1(v, |v| sx16(v) as u32) } else { map1(v, zx16) }
        };
        a = extend(&a);
        if !shift {
            b = extend(&b);
        }
        let v = match op {
            IntOp::MulHi => map2(&a, &b, |a, b| (a.wrapping_mul(b) as i32 >> 16) as u32),
            IntOp::MadHi => {
                let c = self.src32(warp, src[2]);
                map3(&a, &b, &c, |a, b, c| ((a.wrapping_mul(b) as i32 >> 16) as u32).wrapping_add(c))
            }
            IntOp::Add => map2(&a, &b, u32::wrapping_add),
            IntOp::Sub => map2(&a, &b, u32::wrapping_sub),
            IntOp::MulLo => map2(&a, &b, u32::wrapping_mul),
            IntOp::MadLo => {
                let c = self.src32(warp, src[2]);
                map3(&a, &b, &c, |a, b, c| a.wrapping_mul(b).wrapping_add(c))
            }
            IntOp::Sad => {
                let c = self.src32(warp, src[2]);
                map3(&a, &b, &c, |a, b, c| c.wrapping_add((a as i32).abs_diff(b as i32)))
            }
            IntOp::Div => {
                map2(&a, &b, |a, b| if b == 0 { !0 } else { (a as i32).wrapping_div(b as i32) as u32 })
            }
            IntOp::Rem => {
                map2(&a, &b, |a, b| if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 })
            }
            IntOp::Abs => map1(&a, |a| (a as i32).wrapping_abs() as u32),
            IntOp::Neg => map1(&a, u32::wrapping_neg),
            IntOp::Min => map2(&a, &b, |a, b| (a as i32).min(b as i32) as u32),
            IntOp::Max => map2(&a, &b, |a, b| (a as i32).max(b as i32) as u32),
            IntOp::And => map2(&a, &b, |a, b| a & b),
            IntOp::Or => map2(&a, &b, |a, b| a | b),
            IntOp::Xor => map2(&a, &b, |a, b| a ^ b),
            IntOp::Not => map1(&a, |a| !a),
            IntOp::Cnot => map1(&a, |a| u32::from(a == 0)),
            IntOp::Shl => map2(&a, &b, |a, n| if n > 15 { 0 } else { a << n }),
            IntOp::Shr if signed => map2(&a, &b, |a, n| ((a as i32) >> n.min(15)) as u32),
            IntOp::Shr => map2(&a, &b, |a, n| if n > 15 { 0 } else { a >> n }),
            // The decoder lets no other operation have a 16-bit type.
            _ => a,
        };
        warp.put32(d, &map1(&v, zx16), m);
    }

    #[inline(always)]
    fn int64(&mut self, warp: &mut Warp, op: IntOp, signed: bool, d: Reg, src: [&Src; 3], m: u32) {
        let a = self.src64(warp, src[0]);
        let b = self.src64(warp, src[1]);
        let two = |f: fn(u64, u64) -> u64| map2w(&a, &b, f);
        let three = |f: fn(u64, u64, u64) -> u64| {
            let c = self.src64(warp, src[2]);
            map3w(&a, &b, &c, f)
        };
        let hi_s = |a: u64, b: u64| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64;
        let hi_u = |a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64;
        let v = match op {
            IntOp::Add => map2w(&a, &b, u64::wrapping_add),
            IntOp::Sub => map2w(&a, &b, u64::wrapping_sub),
            IntOp::MulLo => map2w(&a, &b, u64::wrapping_mul),
            IntOp::MulHi if signed => map2w(&a, &b, hi_s),
            IntOp::MulHi => map2w(&a, &b, hi_u),
            IntOp::MadLo => three(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            IntOp::MadHi => {
                let c = self.src64(warp, src[2]);
                map3w(&a, &b, &c, |a, b, c| if signed { hi_s(a, b) } else { hi_u(a, b) }.wrapping_add(c))
            }
            IntOp::Sad if signed => three(|a, b, c| c.wrapping_add((a as i64).abs_diff(b as i64))),
            IntOp::Sad => three(|a, b, c| c.wrapping_add(a.abs_diff(b))),
            IntOp::Div if signed => {
                two(|a, b| if b == 0 { !0 } else { (a as i64).wrapping_div(b as i64) as u64 })
            }
            IntOp::Div => two(|a, b| a.checked_div(b).unwrap_or(!0)),
            IntOp::Rem if signed => {
                two(|a, b| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 })
            }
            IntOp::Rem => two(|a, b| a.checked_rem(b).unwrap_or(a)),
            IntOp::Abs => map1w(&a, |a| (a as i64).wrapping_abs() as u64),
            IntOp::Neg => map1w(&a, u64::wrapping_neg),
            IntOp::Min if signed => two(|a, b| (a as i64).min(b as i64) as u64),
            IntOp::Min => two(|a, b| a.min(b)),
            IntOp::Max if signed => two(|a, b| (a as i64).max(b as i64) as u64),
            IntOp::Max => two(|a, b| a.max(b)),
            IntOp::Popc => map1w(&a, |a| u64::from(a.count_ones())),
            IntOp::Clz => map1w(&a, |a| u64::from(a.leading_zeros())),
            IntOp::Brev => map1w(&a, u64::reverse_bits),
            IntOp::Bfind | IntOp::BfindShift => map1w(&a, |a| {
                let a = if signed && (a as i64) < 0 { !a } else { a };
                match a.checked_ilog2() {
                    None => 0xffff_ffff,
                    Some(bit) if op == IntOp::BfindShift => u64::from(63 - bit),
                    Some(bit) => u64::from(bit),
                }
            }),
            IntOp::And => map2w(&a, &b, |a, b| a & b),
            IntOp::Or => map2w(&a, &b, |a, b| a | b),
            IntOp::Xor => map2w(&a, &b, |a, b| a ^ b),
            IntOp::Not => map1w(&a, |a| !a),
            IntOp::Cnot => map1w(&a, |a| u64::from(a == 0)),
            // The shift amount is 32 bits wide.
            IntOp::Shl => map2w(&a, &b, |a, n| if n as u32 > 63 { 0 } else { a << (n as u32) }),
            IntOp::Shr if signed => map2w(&a, &b, |a, n| ((a as i64) >> (n as u32).min(63)) as u64),
            IntOp::Shr => map2w(&a, &b, |a, n| if n as u32 > 63 { 0 } else { a >> (n as u32) }),
            // The decoder lets no other operation have a 64-bit type.
            _ => a,
        };
        warp.put64(d, &v, m);
    }

    #[inline(always)]
    fn wide(&mut self, warp: &mut Warp, op: IntOp, ty: Ty, d: Reg, src: [&Src; 3], m: u32) {
        let (a, b) = (self.src32(warp, src[0]), self.src32(warp, src[1]));
        let mut v = V64 { v: [0; LANES], undef: a.undef | b.undef };
        match (ty.bytes(), ty.signed()) {
            (2, true) => (0..LANES).for_each(|l| v.v[l] = (sx16(a.v[l]) * sx16(b.v[l])) as u32 as u64),
            (2, false) => (0..LANES).for_each(|l| v.v[l] = u64::from(zx16(a.v[l]) * zx16(b.v[l]))),
            (_, true) => {
                (0..LANES)
                    .for_each(|l| v.v[l] = (i64::from(a.v[l] as i32) * i64::from(b.v[l] as i32)) as u64);
            }
            (_, false) => (0..LANES).for_each(|l| v.v[l] = u64::from(a.v[l]) * u64::from(b.v[l])),
        }
        if op == IntOp::MadWide {
            let c = self.src64(warp, src[2]);
            v = map2w(&v, &c, u64::wrapping_add);
        }
        warp.put64(d, &v, m);
    }

    pub(crate) fn bfi(&mut self, warp: &mut Warp, wide: bool, d: Reg, [a, b, pos, len]: [&Src; 4], m: u32) {
        let (a, b) = (self.src64(warp, a), self.src64(warp, b));
        let (pos, len) = (self.src32(warp, pos), self.src32(warp, len));
        let width = if wide { 64 } else { 32 };
        let v = std::array::from_fn(|l| bfi(a.v[l], b.v[l], pos.v[l], len.v[l], width));
        warp.put64(d, &V64 { v, undef: a.undef | b.undef | pos.undef | len.undef }, m);
    }

    pub(crate) fn carry(
        &mut self,
        warp: &mut Warp,
        op: CarryOp,
        ty: Ty,
        (carry_in, carry_out): (bool, bool),
        d: Reg,
        src: [&Src; 3],
        m: u32,
    ) {
        let [a, b, c] = src.map(|s| self.src64(warp, s));
        let bits = ty.bits();
        let mask = u128::from(u64::MAX >> (64 - bits));
        let mut v = V64 { v: [0; LANES], undef: a.undef | b.undef | c.undef };
        if carry_in {
            v.undef |= warp.undef_carry;
        }
        let mut out = 0;
        for l in 0..LANES {
            let cc = u128::from(carry_in && warp.carry >> l & 1 != 0);
            let (x, y) = (u128::from(a.v[l]) & mask, u128::from(b.v[l]) & mask);
            let sum = match op {
                CarryOp::Add => x + y + cc,
                // The carry flag of a subtraction is its borrow.
                CarryOp::Sub => x.wrapping_sub(y).wrapping_sub(cc),
                CarryOp::MadLo | CarryOp::MadHi => {
                    let product = if ty.signed() {
                        let sx = |v: u128| (v << (128 - bits)) as i128 >> (128 - bits);
                        (sx(x) * sx(y)) as u128
                    } else {
                        x * y
                    };
                    let part = if op == CarryOp::MadLo { product } else { product >> bits };
                    (part & mask) + (u128::from(c.v[l]) & mask) + cc
                }
            };
            v.v[l] = (sum & mask) as u64;
            out |= u32::from(sum >> bits & 1 != 0) << l;
        }
        if carry_out {
            warp.carry = warp.carry & !m | out & m;
            warp.undef_carry = warp.undef_carry & !m | v.undef & m;
        }
        warp.put64(d, &v, m);
    }

    #[inline(always)]
    pub(crate) fn float(
        &mut self,
        warp: &mut Warp,
        op: FloatOp,
        ty: Ty,
        mode: FloatMode,
        d: Reg,
        src: [&Src; 3],
        m: u32,
    ) {
        match ty {
            Ty::F32 => self.float32(warp, op, mode, d, src, m),
            Ty::F64 => {
                let [a, b, c] = src.map(|s| self.src64(warp, s));
                let v = std::array::from_fn(|l| float64(op, mode, a.v[l], b.v[l], c.v[l]));
                warp.put64(d, &V64 { v, undef: a.undef | b.undef | c.undef }, m);
            }
            Ty::F32x2 => {
                let [a, b, c] = src.map(|s| self.src64(warp, s));
                let v = std::array::from_fn(|l| {
                    let half = |s: u32| {
                        u64::from(float32(
                            op,
                            mode,
                            (a.v[l] >> s) as u32,
                            (b.v[l] >> s) as u32,
                            (c.v[l] >> s) as u32,
                        ))
                    };
                    half(0) | half(32) << 32
                });
                warp.put64(d, &V64 { v, undef: a.undef | b.undef | c.undef }, m);
            }
            _ => {
                let f = if matches!(ty, Ty::F16 | Ty::F16x2) { fp::F16 } else { fp::BF16 };
                let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
                let [a, b, c] = src.map(|s| self.src32(warp, s));
                let v = map3(&a, &b, &c, |a, b, c| {
                    let low = half(op, mode, f, a & 0xffff, b & 0xffff, c & 0xffff);
                    if packed { low | half(op, mode, f, a >> 16, b >> 16, c >> 16) << 16 } else { low }
                });
                warp.put32(d, &v, m);
            }
        }
    }

    #[inline(always)]
    fn float32(&mut self, warp: &mut Warp, op: FloatOp, mode: FloatMode, d: Reg, src: [&Src; 3], m: u32) {
        let a = self.src32(warp, src[0]);
        let b = self.src32(warp, src[1]);
        let plain = mode.round == Round::Nearest && !mode.ftz && !mode.sat;
        let f = f32::from_bits;
        let v = match op {
            FloatOp::Add if plain => map2(&a, &b, |a, b| canonical(f(a) + f(b))),
            FloatOp::Sub if plain => map2(&a, &b, |a, b| canonical(f(a) - f(b))),
            FloatOp::Mul if plain => map2(&a, &b, |a, b| canonical(f(a) * f(b))),
            FloatOp::Fma if plain => {
                let c = self.src32(warp, src[2]);
                map3(&a, &b, &c, |a, b, c| canonical(f(a).mul_add(f(b), f(c))))
            }
            _ => {
                let c = self.src32(warp, src[2]);
                map3(&a, &b, &c, |a, b, c| float32(op, mode, a, b, c))
            }
        };
        warp.put32(d, &v, m);
    }

    /// Lanes where a comparison holds, and where an operand is undefined.
    #[inline(always)]
    pub(crate) fn compare(
        &mut self,
        warp: &Warp,
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        a: &Src,
        b: &Src,
    ) -> (u32, u32) {
        if ty.bytes() == 8 {
            let (a, b) = (self.src64(warp, a), self.src64(warp, b));
            let (x, y) = (&a.v, &b.v);
            let holds = match ty {
                Ty::F64 => mask_of(|l| compare_floats(cmp, f64::from_bits(x[l]), f64::from_bits(y[l]))),
                Ty::S64 => by_order(cmp, |l| x[l] as i64, |l| y[l] as i64),
                _ => by_order(cmp, |l| x[l], |l| y[l]),
            };
            return (holds, a.undef | b.undef);
        }
        let (a, b) = (self.src32(warp, a), self.src32(warp, b));
        let (x, y) = (&a.v, &b.v);
        let holds = match ty {
            Ty::F32 => mask_of(|l| compare_floats(cmp, flushed(x[l], ftz), flushed(y[l], ftz))),
            Ty::F16 | Ty::F16x2 => mask_of(|l| {
                compare_floats(cmp, flushed_half(x[l] & 0xffff, ftz), flushed_half(y[l] & 0xffff, ftz))
            }),
            Ty::Bf16 | Ty::Bf16x2 => {
                mask_of(|l| compare_floats(cmp, fp::bf16_to_f32(x[l]), fp::bf16_to_f32(y[l])))
            }
            Ty::S32 => by_order(cmp, |l| x[l] as i32, |l| y[l] as i32),
            Ty::S16 => by_order(cmp, |l| sx16(x[l]), |l| sx16(y[l])),
            Ty::U16 | Ty::B16 => by_order(cmp, |l| zx16(x[l]), |l| zx16(y[l])),
            _ => by_order(cmp, |l| x[l], |l| y[l]),
        };
        (holds, a.undef | b.undef)
    }

    /// The same for the high halves of packed operands.
    pub(crate) fn compare_high(
        &mut self,
        warp: &Warp,
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        a: &Src,
        b: &Src,
    ) -> (u32, u32) {
        let (a, b) = (self.src32(warp, a), self.src32(warp, b));
        let value = |v: u32| {
            if ty == Ty::F16x2 { flushed_half(v >> 16, ftz) } else { fp::bf16_to_f32(v >> 16) }
        };
        (mask_of(|l| compare_floats(cmp, value(a.v[l]), value(b.v[l]))), a.undef | b.undef)
    }

    pub(crate) fn testp(&mut self, warp: &mut Warp, test: TestP, ty: Ty, d: Reg, a: &Src, m: u32) {
        let a = self.src64(warp, a);
        let f = if ty == Ty::F64 { fp::F64 } else { fp::F32 };
        let holds = mask_of(|l| {
            let magnitude = a.v[l] & (f.sign() - 1);
            match test {
                TestP::Finite => magnitude < f.inf(),
                TestP::Infinite => magnitude == f.inf(),
                TestP::Number => magnitude <= f.inf(),
                TestP::NotANumber => magnitude > f.inf(),
                // Zeros count as normal.
                TestP::Normal => magnitude < f.inf() && !f.is_subnormal(magnitude),
                TestP::Subnormal => f.is_subnormal(magnitude),
            }
        });
        warp.put_pred(d, holds, a.undef, m);
    }
}

fn flushed_half(bits: u32, ftz: bool) -> f32 {
    fp::f16_to_f32(if ftz { fp::F16.flush(u64::from(bits)) as u32 } else { bits })
}

fn flushed(bits: u32, ftz: bool) -> f32 {
    f32::from_bits(if ftz { fp::F32.flush(u64::from(bits)) as u32 } else { bits })
}

#[inline(always)]
fn by_order<T: Ord>(cmp: Cmp, a: impl Fn(usize) -> T, b: impl Fn(usize) -> T) -> u32 {
    match cmp {
        Cmp::Eq => mask_of(|l| a(l) == b(l)),
        Cmp::Ne => mask_of(|l| a(l) != b(l)),
        Cmp::Lt => mask_of(|l| a(l) < b(l)),
        Cmp::Le => mask_of(|l| a(l) <= b(l)),
        Cmp::Gt => mask_of(|l| a(l) > b(l)),
        // The unordered comparisons are refused for integers.
        _ => mask_of(|l| a(l) >= b(l)),
    }
}

#[inline(always)]
fn compare_floats<T: PartialOrd + Copy>(cmp: Cmp, a: T, b: T) -> bool {
    let nan = a.partial_cmp(&a).is_none() || b.partial_cmp(&b).is_none();
    match cmp {
        Cmp::Eq => a == b,
        Cmp::Ne => !nan && a != b,
        Cmp::Lt => a < b,
        Cmp::Le => a <= b,
        Cmp::Gt => a > b,
        Cmp::Ge => a >= b,
        Cmp::Equ => nan || a == b,
        Cmp::Neu => nan || a != b,
        Cmp::Ltu => nan || a < b,
        Cmp::Leu => nan || a <= b,
        Cmp::Gtu => nan || a > b,
        Cmp::Geu => nan || a >= b,
        Cmp::Num => !nan,
        Cmp::Nan => nan,
    }
}

/// The bits of a result, with the one NaN that f32 instructions produce.
#[inline(always)]
fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// The exact result before rounding, for the operations that have one.
fn exact(op: FloatOp, mode: Round, a: Num, b: Num, c: Num) -> Num {
    match op {
        FloatOp::Add => fp::add(a, b, mode),
        FloatOp::Sub => fp::add(a, fp::negate(b), mode),
        FloatOp::Mul => fp::mul(a, b),
        FloatOp::Fma => fp::fma(a, b, c, mode),
        FloatOp::Div => fp::div(a, b),
        FloatOp::Rcp => fp::div(fp::from_int(false, 1), a),
        FloatOp::Sqrt => fp::sqrt(a),
        _ => Num::Nan,
    }
}

/// min and max on the bits of any format: -0 < +0, a NaN loses unless `nan`.
fn min_max(op: FloatOp, mode: FloatMode, f: Format, a: u64, b: u64) -> u64 {
    let (sign, mask) = (f.sign(), f.sign() - 1);
    let (x, y) = if mode.xorsign { (a & mask, b & mask) } else { (a, b) };
    let out = match (f.is_nan(a), f.is_nan(b)) {
        (true, true) => return f.nan,
        (true, _) | (_, true) if mode.nan => return f.nan,
        (true, _) => y,
        (_, true) => x,
        _ => {
            let key = |v: u64| {
                if v & sign != 0 { -((v & mask) as i64) - 1 } else { (v & mask) as i64 }
            };
            if (key(x) <= key(y)) == (op == FloatOp::Min) { x } else { y }
        }
    };
    if mode.xorsign { out & mask | (a ^ b) & sign } else { out }
}

/// One f32 operation with all its modes.
fn float32(op: FloatOp, mode: FloatMode, a: u32, b: u32, c: u32) -> u32 {
    let flush = |v: u32| {
        if mode.ftz { fp::F32.flush(u64::from(v)) as u32 } else { v }
    };
    let (a, b, c) = (flush(a), flush(b), flush(c));
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let wide = f64::from(x);
    let nearest = mode.round == Round::Nearest;
    let bits = match op {
        FloatOp::Abs if f32::from_bits(a).is_nan() => 0x7fff_ffff,
        FloatOp::Abs => a & 0x7fff_ffff,
        FloatOp::Neg if f32::from_bits(a).is_nan() => 0x7fff_ffff,
        FloatOp::Neg => a ^ 0x8000_0000,
        // copysign d, a, b: the sign of a, the magnitude of b.
        FloatOp::CopySign => a & 0x8000_0000 | b & 0x7fff_ffff,
        FloatOp::Min | FloatOp::Max => min_max(op, mode, fp::F32, u64::from(a), u64::from(b)) as u32,
        FloatOp::Add if nearest => canonical(x + y),
        FloatOp::Sub if nearest => canonical(x - y),
        FloatOp::Mul if nearest => canonical(x * y),
        FloatOp::Fma if nearest => canonical(x.mul_add(y, f32::from_bits(c))),
        // The approximation divides by nothing beyond 2^126: what it would divide by is 0 there.
        FloatOp::Div if mode.approx && y.abs() > 2f32.powi(126) && y.is_finite() => {
            canonical(if x.is_finite() { 0f32.copysign(x) * y.signum() } else { f32::NAN })
        }
        FloatOp::Div if nearest => canonical(x / y),
        FloatOp::Rcp if nearest => canonical(1.0 / x),
        FloatOp::Sqrt if nearest => canonical(x.sqrt()),
        // The approximations: computed in f64 and rounded once, which is inside of every documented bound.
        FloatOp::Rsqrt => canonical((1.0 / wide.sqrt()) as f32),
        FloatOp::Sin => canonical(wide.sin() as f32),
        FloatOp::Cos => canonical(wide.cos() as f32),
        FloatOp::Lg2 => canonical(wide.log2() as f32),
        FloatOp::Ex2 => canonical(wide.exp2() as f32),
        FloatOp::Tanh => canonical(wide.tanh() as f32),
        _ => {
            let [a, b, c] = [a, b, c].map(|v| fp::unpack(u64::from(v), fp::F32));
            fp::pack(exact(op, mode.round, a, b, c), fp::F32, mode.round) as u32
        }
    };
    let bits = flush(bits);
    if !mode.sat {
        return bits;
    }
    let v = f32::from_bits(bits);
    if v > 0.0 { v.min(1.0).to_bits() } else { 0 }
}

fn float64(op: FloatOp, mode: FloatMode, a: u64, b: u64, c: u64) -> u64 {
    let (x, y, z) = (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
    let nearest = mode.round == Round::Nearest;
    // The approximations of f64 that flush look at the upper word only.
    let coarse = |v: f64| fp::F64.flush(v.to_bits()) & !0xffff_ffff;
    match op {
        FloatOp::Abs => a & !fp::F64.sign(),
        FloatOp::Neg => a ^ fp::F64.sign(),
        FloatOp::CopySign => a & fp::F64.sign() | b & !fp::F64.sign(),
        FloatOp::Min | FloatOp::Max => min_max(op, mode, fp::F64, a, b),
        FloatOp::Rcp if mode.approx => coarse(1.0 / f64::from_bits(coarse(x))),
        FloatOp::Rsqrt if mode.ftz => coarse(1.0 / f64::from_bits(coarse(x)).sqrt()),
        FloatOp::Rsqrt => (1.0 / x.sqrt()).to_bits(),
        FloatOp::Add if nearest => (x + y).to_bits(),
        FloatOp::Sub if nearest => (x - y).to_bits(),
        FloatOp::Mul if nearest => (x * y).to_bits(),
        FloatOp::Fma if nearest => x.mul_add(y, z).to_bits(),
        FloatOp::Div if nearest => (x / y).to_bits(),
        FloatOp::Rcp if nearest => (1.0 / x).to_bits(),
        FloatOp::Sqrt if nearest => x.sqrt().to_bits(),
        _ => {
            let [a, b, c] = [a, b, c].map(|v| fp::unpack(v, fp::F64));
            fp::pack(exact(op, mode.round, a, b, c), fp::F64, mode.round)
        }
    }
}

/// One f16 or bf16 operation: exact, rounded once.
fn half(op: FloatOp, mode: FloatMode, f: Format, a: u32, b: u32, c: u32) -> u32 {
    let flush = |v: u32| {
        if mode.ftz { f.flush(u64::from(v)) as u32 } else { v }
    };
    let (a, b, c) = (flush(a), flush(b), flush(c));
    let nan = |v: u32| f.is_nan(u64::from(v));
    let value = |v: u32| {
        if f == fp::F16 { fp::f16_to_f32(v) } else { fp::bf16_to_f32(v) }
    };
    let from = |v: f64| fp::pack(fp::unpack(v.to_bits(), fp::F64), f, Round::Nearest) as u32;
    let bits = match op {
        FloatOp::Abs | FloatOp::Neg if nan(a) => f.nan as u32,
        FloatOp::Abs => a & 0x7fff,
        FloatOp::Neg => a ^ 0x8000,
        FloatOp::Min | FloatOp::Max => min_max(op, mode, f, u64::from(a), u64::from(b)) as u32,
        FloatOp::Ex2 => from(f64::from(value(a)).exp2()),
        FloatOp::Tanh => from(f64::from(value(a)).tanh()),
        _ => {
            let [a, b, c] = [a, b, c].map(|v| fp::unpack(u64::from(v), f));
            fp::pack(exact(op, Round::Nearest, a, b, c), f, Round::Nearest) as u32
        }
    };
    let bits = flush(bits);
    let one = if f == fp::F16 { 0x3c00 } else { 0x3f80 };
    if mode.relu && !nan(bits) && bits & 0x8000 != 0 {
        0
    } else if mode.sat {
        if nan(bits) || bits & 0x8000 != 0 { 0 } else { bits.min(one) }
    } else {
        bits
    }
}
