//! `mma`, `ldmatrix`, `stmatrix`, `movmatrix`.
//!
//! With g = lane / 4, t = lane % 4 and e elements in a 32-bit register, the fragments of every shape are
//!
//! ```text
//! A   register r, element s: row g + 8 (r % 2), column t·e + s + (r / 2)·4e     (8 rows: row g, column t·e + s + r·4e)
//! B   register r, element s: row t·e + s + r·4e, column g
//! C,D element i:             row g + 8 (i / 2), column 2 t + i % 2
//! ```
//!
//! An 8x8 matrix of 16-bit elements has row lane / 4, columns 2 t and 2 t + 1 in each lane.

use super::block::Env;
use super::fp;
use super::mem::{Data, holds, take_bytes};
use super::shared::{Flaw, WRITTEN};
use super::value::{LANES, Lanes, V32, V64};
use super::warp::Warp;
use crate::error::FindingKind;
use crate::ir::*;

fn elements(ty: MmaTy) -> usize {
    match ty {
        MmaTy::S8 | MmaTy::U8 => 4,
        MmaTy::F16 | MmaTy::Bf16 => 2,
        _ => 1,
    }
}

/// Row and column of element `s` of register `r` of A.
pub(crate) fn place_a(m: usize, e: usize, lane: usize, r: usize, s: usize) -> (usize, usize) {
    let (g, t) = (lane / 4, lane % 4);
    if m == 8 { (g, t * e + s + r * 4 * e) } else { (g + 8 * (r % 2), t * e + s + r / 2 * 4 * e) }
}

pub(crate) fn place_b(e: usize, lane: usize, r: usize, s: usize) -> (usize, usize) {
    (lane % 4 * e + s + r * 4 * e, lane / 4)
}

pub(crate) fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2)
}

fn float_element(ty: MmaTy, bits: u32, s: usize) -> f32 {
    match ty {
        MmaTy::F16 => fp::f16_to_f32(bits >> (16 * s) & 0xffff),
        MmaTy::Bf16 => fp::bf16_to_f32(bits >> (16 * s) & 0xffff),
        // The low bits of a tf32 operand are ignored.
        MmaTy::Tf32 => f32::from_bits(bits & !0x1fff),
        _ => f32::from_bits(bits),
    }
}

fn int_element(ty: MmaTy, bits: u32, s: usize) -> i64 {
    let byte = (bits >> (8 * s)) as u8;
    if ty == MmaTy::S8 { i64::from(byte as i8) } else { i64::from(byte) }
}

impl Env<'_> {
    /// Warp-wide instructions without a mask need all threads.
    fn whole_warp(&mut self, warp: &Warp, m: u32) {
        let missing = warp.present & !m;
        if missing != 0 || warp.present != !0 {
            self.record(FindingKind::WarpMask, warp, m.trailing_zeros() as usize, None, || {
                format!("all 32 lanes must execute this together; only {m:#010x} do")
            });
        }
    }

    #[inline(always)]
    pub(crate) fn mma(&mut self, warp: &mut Warp, mma: &Mma, mask: u32) {
        self.whole_warp(warp, mask);
        let (m, n, k) = (usize::from(mma.m), usize::from(mma.n), usize::from(mma.k));
        self.counters.tensor_flops += (2 * m * n * k) as u64;
        match mma.cd_ty {
            MmaTy::F64 => return self.mma_f64(warp, mma, mask),
            MmaTy::S32 => return self.mma_s8(warp, mma, mask),
            _ => {}
        }
        let mut undef = 0;
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 8]; 16];
        let mut acc = [[0f32; 8]; 16];
        let e = elements(mma.a_ty);
        for (r, src) in mma.a.iter().enumerate() {
            let v = self.src32(warp, src);
            undef |= v.undef;
            for lane in 0..LANES {
                for s in 0..e {
                    let (row, col) = place_a(m, e, lane, r, s);
                    a[row][col] = float_element(mma.a_ty, v.v[lane], s);
                }
            }
        }
        for (r, src) in mma.b.iter().enumerate() {
            let v = self.src32(warp, src);
            undef |= v.undef;
            for lane in 0..LANES {
                for s in 0..e {
                    let (row, col) = place_b(e, lane, r, s);
                    b[row][col] = float_element(mma.b_ty, v.v[lane], s);
                }
            }
        }
        let ec = elements(mma.cd_ty);
        for (r, src) in mma.c.iter().enumerate() {
            let v = self.src32(warp, src);
            undef |= v.undef;
            for lane in 0..LANES {
                for s in 0..ec {
                    let (row, col) = place_c(lane, r * ec + s);
                    acc[row][col] = float_element(mma.cd_ty, v.v[lane], s);
                }
            }
        }
        for (acc, a) in acc.iter_mut().zip(&a) {
            for (x, b) in a[..k].iter().zip(&b) {
                for (acc, y) in acc.iter_mut().zip(b) {
                    *acc += x * y;
                }
            }
        }
        for (r, &d) in mma.d.iter().enumerate() {
            let mut v = V32 { v: [0; LANES], undef: if undef & mask != 0 { !0 } else { 0 } };
            for lane in 0..LANES {
                for s in 0..ec {
                    let (row, col) = place_c(lane, r * ec + s);
                    let x = acc[row][col];
                    v.v[lane] |= match mma.cd_ty {
                        MmaTy::F16 => fp::f32_to_f16(x) << (16 * s),
                        _ if x.is_nan() => 0x7fff_ffff,
                        _ => x.to_bits(),
                    };
                }
            }
            warp.put32(d, &v, mask);
        }
    }

    fn mma_s8(&mut self, warp: &mut Warp, mma: &Mma, mask: u32) {
        let (m, n, k) = (usize::from(mma.m), usize::from(mma.n), usize::from(mma.k));
        let mut undef = 0;
        let mut a = [[0i64; 32]; 16];
        let mut b = [[0i64; 8]; 32];
        let mut acc = [[0i64; 8]; 16];
        for (r, src) in mma.a.iter().enumerate() {
            let v = self.src32(warp, src);
            undef |= v.undef;
            for (lane, s) in (0..LANES).flat_map(|l| (0..4).map(move |s| (l, s))) {
                let (row, col) = place_a(m, 4, lane, r, s);
                a[row][col] = int_element(mma.a_ty, v.v[lane], s);
            }
        }
        for (r, src) in mma.b.iter().enumerate() {
            let v = self.src32(warp, src);
            undef |= v.undef;
            for (lane, s) in (0..LANES).flat_map(|l| (0..4).map(move |s| (l, s))) {
                let (row, col) = place_b(4, lane, r, s);
                b[row][col] = int_element(mma.b_ty, v.v[lane], s);
            }
        }
        for (i, src) in mma.c.iter().enumerate() {
            let v = self.src32(warp, src);
            undef |= v.undef;
            for lane in 0..LANES {
                let (row, col) = place_c(lane, i);
                acc[row][col] = i64::from(v.v[lane] as i32);
            }
        }
        for row in 0..m {
            for col in 0..n {
                acc[row][col] += (0..k).map(|i| a[row][i] * b[i][col]).sum::<i64>();
            }
        }
        for (i, &d) in mma.d.iter().enumerate() {
            let v = std::array::from_fn(|lane| {
                let (row, col) = place_c(lane, i);
                let x = acc[row][col];
                if mma.satfinite {
                    x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
                } else {
                    x as u32
                }
            });
            warp.put32(d, &V32 { v, undef: if undef & mask != 0 { !0 } else { 0 } }, mask);
        }
    }

    fn mma_f64(&mut self, warp: &mut Warp, mma: &Mma, mask: u32) {
        let (m, n, k) = (usize::from(mma.m), usize::from(mma.n), usize::from(mma.k));
        let mut undef = 0;
        let mut a = [[0f64; 16]; 16];
        let mut b = [[0f64; 8]; 16];
        let mut acc = [[0f64; 8]; 16];
        for (r, src) in mma.a.iter().enumerate() {
            let v = self.src64(warp, src);
            undef |= v.undef;
            for lane in 0..LANES {
                let (row, col) = place_a(m, 1, lane, r, 0);
                a[row][col] = f64::from_bits(v.v[lane]);
            }
        }
        for (r, src) in mma.b.iter().enumerate() {
            let v = self.src64(warp, src);
            undef |= v.undef;
            for lane in 0..LANES {
                let (row, col) = place_b(1, lane, r, 0);
                b[row][col] = f64::from_bits(v.v[lane]);
            }
        }
        for (i, src) in mma.c.iter().enumerate() {
            let v = self.src64(warp, src);
            undef |= v.undef;
            for lane in 0..LANES {
                let (row, col) = place_c(lane, i);
                acc[row][col] = f64::from_bits(v.v[lane]);
            }
        }
        for row in 0..m {
            for col in 0..n {
                acc[row][col] = (0..k).fold(acc[row][col], |sum, i| a[row][i].mul_add(b[i][col], sum));
            }
        }
        for (i, &d) in mma.d.iter().enumerate() {
            let v = std::array::from_fn(|lane| {
                let (row, col) = place_c(lane, i);
                acc[row][col].to_bits()
            });
            warp.put64(d, &V64 { v, undef: if undef & mask != 0 { !0 } else { 0 } }, mask);
        }
    }

    pub(crate) fn ldmatrix(
        &mut self,
        warp: &mut Warp,
        count: u8,
        trans: bool,
        d: &[Reg],
        addr: &Addr,
        m: u32,
    ) {
        self.whole_warp(warp, m);
        let rows = usize::from(count) * 8;
        // Only the lanes that give a row need an address.
        let used = m & (((1u64 << rows) - 1) as u32);
        let addresses = self.addresses(warp, addr, Space::Shared, used);
        let mut data: Data = [[!0; LANES]; 8];
        self.read(warp, Space::Shared, &addresses, 16, used, &mut data, &mut [0; 16], None);
        for (j, &d) in d.iter().enumerate() {
            let element = |row: usize, col: usize| data[col / 2][j * 8 + row] >> (16 * (col % 2)) & 0xffff;
            let v = std::array::from_fn(|lane| {
                let (g, t) = (lane / 4, lane % 4 * 2);
                if trans {
                    element(t, g) | element(t + 1, g) << 16
                } else {
                    element(g, t) | element(g, t + 1) << 16
                }
            });
            warp.put32(d, &V32 { v, undef: 0 }, m);
        }
    }

    pub(crate) fn stmatrix(
        &mut self,
        warp: &mut Warp,
        count: u8,
        trans: bool,
        addr: &Addr,
        a: &[Src],
        m: u32,
    ) {
        self.whole_warp(warp, m);
        let rows = usize::from(count) * 8;
        let used = m & (((1u64 << rows) - 1) as u32);
        let addresses = self.addresses(warp, addr, Space::Shared, used);
        let mut data: Data = [[0; LANES]; 8];
        let mut undef = 0;
        for (j, src) in a.iter().enumerate() {
            let v = self.src32(warp, src);
            undef |= v.undef & m;
            for lane in 0..LANES {
                let (g, t) = (lane / 4, lane % 4 * 2);
                for s in 0..2 {
                    let (row, col) = if trans { (t + s, g) } else { (g, t + s) };
                    let half = v.v[lane] >> (16 * s) & 0xffff;
                    data[col / 2][j * 8 + row] |= half << (16 * (col % 2));
                }
            }
        }
        self.undefined(warp, undef, "what is stored");
        super::mem::count_banks(&mut self.counters.shared_store, &addresses, 16, used);
        for l in Lanes(used) {
            let at = addresses[l];
            let mut flaw =
                if !at.is_multiple_of(16) { Some(Flaw::Bounds) } else { self.shared.check_write(at, 16) };
            if flaw.is_none() {
                let same = holds(&data, l, &self.shared.data[at as usize..at as usize + 16]);
                flaw = self.shared.write(warp, l, at, 16, false, same);
            }
            if !at.is_multiple_of(16) {
                self.record(FindingKind::Misaligned, warp, l, Some(at), || {
                    "a row needs an address that is a multiple of 16".to_owned()
                });
                continue;
            }
            if let Some(flaw) = flaw {
                self.shared_flaw(warp, l, at, 16, flaw, "write");
                if flaw == Flaw::Bounds {
                    continue;
                }
            }
            take_bytes(&data, l, &mut self.shared.data[at as usize..at as usize + 16]);
            self.shared.mark(at, 16, WRITTEN);
        }
    }

    /// Transposes an 8x8 matrix held across the warp.
    pub(crate) fn movmatrix(&mut self, warp: &mut Warp, d: Reg, a: &Src, m: u32) {
        self.whole_warp(warp, m);
        let a = self.src32(warp, a);
        let element = |row: usize, col: usize| a.v[row * 4 + col / 2] >> (16 * (col % 2)) & 0xffff;
        let v = std::array::from_fn(|lane| {
            let (g, t) = (lane / 4, lane % 4 * 2);
            element(t, g) | element(t + 1, g) << 16
        });
        warp.put32(d, &V32 { v, undef: if a.undef & m != 0 { !0 } else { 0 } }, m);
    }
}
