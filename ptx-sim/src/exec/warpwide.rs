//! Exchange between the lanes of a warp: shuffles, votes, matches, reductions.

use super::block::Env;
use super::value::{LANES, Lanes, V32, mask_of};
use super::warp::Warp;
use crate::error::FindingKind;
use crate::ir::*;

impl Env<'_> {
    /// The lanes that each lane's mask names; every lane must name itself and only lanes that are here.
    pub(crate) fn warp_mask(&mut self, warp: &Warp, mask: Option<&Src>, m: u32) -> [u32; LANES] {
        let Some(mask) = mask else { return [m; LANES] };
        let v = self.src32(warp, mask);
        self.undefined(warp, v.undef & m, "the mask");
        for l in Lanes(m) {
            let named = v.v[l];
            let absent = named & warp.live & !m;
            if absent != 0 || named >> l & 1 == 0 {
                self.record(FindingKind::WarpMask, warp, l, None, || {
                    if absent != 0 {
                        format!("the mask {named:#010x} names lanes {absent:#010x}, which do not execute this with lanes {m:#010x}")
                    } else {
                        format!("the mask {named:#010x} does not name lane {l}, which executes this")
                    }
                });
                break;
            }
        }
        v.v.map(|named| named & m)
    }

    pub(crate) fn shfl(
        &mut self,
        warp: &mut Warp,
        mode: ShflMode,
        (d, p): (Reg, Reg),
        [a, b, c]: [&Src; 3],
        mask: Option<&Src>,
        m: u32,
    ) {
        let named = self.warp_mask(warp, mask, m);
        let [a, b, c] = [a, b, c].map(|s| self.src32(warp, s));
        let mut out = V32 { v: [0; LANES], undef: 0 };
        let mut in_range = 0;
        let mut absent = 0;
        for l in 0..LANES {
            let lane = l as u32;
            let (bval, cval, seg) = (b.v[l] & 31, c.v[l] & 31, c.v[l] >> 8 & 31);
            let max = lane & seg | cval & !seg & 31;
            let (j, valid) = match mode {
                ShflMode::Up => (lane.wrapping_sub(bval), lane as i32 - bval as i32 >= max as i32),
                ShflMode::Down => (lane + bval, lane + bval <= max),
                ShflMode::Bfly => (lane ^ bval, lane ^ bval <= max),
                ShflMode::Idx => {
                    let j = lane & seg | bval & !seg & 31;
                    (j, j <= max)
                }
            };
            let j = if valid { (j & 31) as usize } else { l };
            in_range |= u32::from(valid) << l;
            absent |= u32::from(named[l] >> j & 1 == 0) << l;
            out.v[l] = a.v[j];
            out.undef |= (a.undef >> j & 1 | b.undef >> l & 1) << l;
        }
        let absent = absent & m;
        if absent != 0 {
            self.record(FindingKind::WarpMask, warp, absent.trailing_zeros() as usize, None, || {
                format!("lanes {absent:#010x} read from lanes that do not execute this shuffle, or that their mask does not name ({m:#010x} execute it)")
            });
        }
        warp.put32(d, &out, m);
        warp.put_pred(p, in_range, 0, m);
    }

    pub(crate) fn vote(
        &mut self,
        warp: &mut Warp,
        mode: VoteMode,
        d: Reg,
        a: &Src,
        mask: Option<&Src>,
        m: u32,
    ) {
        let named = self.warp_mask(warp, mask, m);
        let (p, undef) = warp.pred(a);
        let undef = if undef & m != 0 { !0 } else { 0 };
        match mode {
            VoteMode::Ballot => warp.put32(d, &V32 { v: named.map(|n| n & p), undef }, m),
            VoteMode::All => warp.put_pred(d, mask_of(|l| named[l] & !p == 0), undef, m),
            VoteMode::Any => warp.put_pred(d, mask_of(|l| named[l] & p != 0), undef, m),
            VoteMode::Uni => {
                let holds = mask_of(|l| named[l] & p == 0 || named[l] & !p == 0);
                warp.put_pred(d, holds, undef, m);
            }
        }
    }
    pub(crate) fn match_any(
        &mut self,
        warp: &mut Warp,
        all: bool,
        bits: u32,
        (d, p): (Reg, Reg),
        a: &Src,
        mask: &Src,
        m: u32,
    ) {
        let named = self.warp_mask(warp, Some(mask), m);
        let mut a = self.src64(warp, a);
        if bits == 32 {
            a.v = a.v.map(|v| v & 0xffff_ffff);
        }
        let undef = if a.undef & m != 0 { !0 } else { 0 };
        let equal: [u32; LANES] = std::array::from_fn(|l| named[l] & mask_of(|k| a.v[k] == a.v[l]));
        if all {
            let agree = mask_of(|l| equal[l] == named[l]);
            let v = std::array::from_fn(|l| if agree >> l & 1 != 0 { named[l] } else { 0 });
            warp.put32(d, &V32 { v, undef }, m);
            warp.put_pred(p, agree, undef, m);
        } else {
            warp.put32(d, &V32 { v: equal, undef }, m);
        }
    }
    pub(crate) fn redux(
        &mut self,
        warp: &mut Warp,
        op: ReduxOp,
        signed: bool,
        d: Reg,
        a: &Src,
        mask: &Src,
        m: u32,
    ) {
        let named = self.warp_mask(warp, Some(mask), m);
        let a = self.src32(warp, a);
        let f = |x: u32, y: u32| match op {
            ReduxOp::Add => x.wrapping_add(y),
            ReduxOp::Min if signed => (x as i32).min(y as i32) as u32,
            ReduxOp::Max if signed => (x as i32).max(y as i32) as u32,
            ReduxOp::Min => x.min(y),
            ReduxOp::Max => x.max(y),
            ReduxOp::And => x & y,
            ReduxOp::Or => x | y,
            ReduxOp::Xor => x ^ y,
        };
        let v = std::array::from_fn(|l| Lanes(named[l]).map(|k| a.v[k]).reduce(f).unwrap_or(0));
        warp.put32(d, &V32 { v, undef: if a.undef & m != 0 { !0 } else { 0 } }, m);
    }
}
