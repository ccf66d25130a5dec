//! What one operand is in all lanes of a warp, and the loops over lanes.
//!
//! Every lane is computed, active or not: the loops have no branches and become vector code. The write back
//! is what keeps inactive lanes as they were.

pub(crate) const LANES: usize = 32;

/// 32 lanes of 32 bits; bit l of `undef` says that lane l derives from a register never written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct V32 {
    pub(crate) v: [u32; LANES],
    pub(crate) undef: u32,
}

/// 32 lanes of 64 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct V64 {
    pub(crate) v: [u64; LANES],
    pub(crate) undef: u32,
}

impl V32 {
    pub(crate) fn splat(v: u32) -> Self {
        Self { v: [v; LANES], undef: 0 }
    }
}

impl V64 {
    pub(crate) fn splat(v: u64) -> Self {
        Self { v: [v; LANES], undef: 0 }
    }

    pub(crate) fn narrow(&self) -> V32 {
        V32 { v: self.v.map(|v| v as u32), undef: self.undef }
    }
}

macro_rules! lanes {
    ($in:ident, $ty:ty, $map1:ident, $map2:ident, $map3:ident) => {
        #[inline(always)]
        pub(crate) fn $map1(a: &$in, f: impl Fn($ty) -> $ty) -> $in {
            let mut v = [0; LANES];
            for l in 0..LANES {
                v[l] = f(a.v[l]);
            }
            $in { v, undef: a.undef }
        }

        #[inline(always)]
        pub(crate) fn $map2(a: &$in, b: &$in, f: impl Fn($ty, $ty) -> $ty) -> $in {
            let mut v = [0; LANES];
            for l in 0..LANES {
                v[l] = f(a.v[l], b.v[l]);
            }
            $in { v, undef: a.undef | b.undef }
        }

        #[inline(always)]
        pub(crate) fn $map3(a: &$in, b: &$in, c: &$in, f: impl Fn($ty, $ty, $ty) -> $ty) -> $in {
            let mut v = [0; LANES];
            for l in 0..LANES {
                v[l] = f(a.v[l], b.v[l], c.v[l]);
            }
            $in { v, undef: a.undef | b.undef | c.undef }
        }
    };
}

lanes!(V32, u32, map1, map2, map3);
lanes!(V64, u64, map1w, map2w, map3w);

/// A mask with the lanes where `f` holds.
#[inline(always)]
pub(crate) fn mask_of(f: impl Fn(usize) -> bool) -> u32 {
    let mut m = 0;
    for l in 0..LANES {
        m |= u32::from(f(l)) << l;
    }
    m
}

/// The lanes of a mask, lowest first.
#[derive(Clone, Copy)]
pub(crate) struct Lanes(pub(crate) u32);

impl Iterator for Lanes {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let l = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(l as usize)
    }
}
