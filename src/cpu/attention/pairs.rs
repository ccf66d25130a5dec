//! Q, K and V in bf16 as the products of pairs take them, 32 bits for two numbers that are multiplied and added together:
//! of Q and K two neighbouring elements of a token, of V the same element of two neighbouring tokens.
//!
//! ```text
//! Q [element/2][query]    K [key][element/2]    exponentials [key/2][query]    V [key/2][element]
//! ```
//!
//! Tiles of K and V have rows along whichever axis is dense in memory, as in f32. Of an odd number the last pair has a 0.

use super::{Lay, pitch};
use crate::cpu::simd::Simd;
use crate::dtype::Float;
use std::ops::Range;

/// Two elements, or one and 0.
///
/// # Safety
/// They are there, and are of 16 bits.
#[inline(always)]
unsafe fn two<T: Float>(from: *const T, stride: usize, both: bool) -> u32 {
    let from = from.cast::<u16>();
    // SAFETY: by the contract.
    unsafe { u32::from(*from) | if both { u32::from(*from.add(stride)) << 16 } else { 0 } }
}

/// Pairs the elements of two rows, or those of one with 0.
///
/// # Safety
/// The rows have `count` elements, `to` holds them, and the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn zip<S: Simd, T: Float>(low: *const T, high: Option<*const T>, count: usize, to: *mut f32) {
    // SAFETY: by the contract; whole vectors are read and written only where they fit.
    unsafe {
        let whole = count - count % S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            let high = match high {
                Some(high) => S::get(high.add(i)),
                None => S::splat(0.0),
            };
            S::store(to.add(i), S::pair(S::get(low.add(i)), high));
        }
        if whole < count {
            let rest = count - whole;
            let high = match high {
                Some(high) => S::get_n(high.add(whole), rest),
                None => S::splat(0.0),
            };
            S::store_n(to.add(whole), S::pair(S::get_n(low.add(whole), rest), high), rest);
        }
    }
}

/// Copies `count` queries, transposed: `to[pair][query]` in rows of `width`, zeros past `count`.
///
/// # Safety
/// The queries are inside the view, `to` holds `width` floats a pair of elements, `width` is a multiple of the lanes, and the
/// CPU has the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn gather<S: Simd, T: Float>(
    from: *const T,
    lay: Lay,
    count: usize,
    to: *mut f32,
    width: usize,
) {
    let Lay { n, e, d } = lay;
    for i in 0..d.div_ceil(2) {
        let both = 2 * i + 1 < d;
        // SAFETY: by the contract.
        unsafe {
            let (from, to) = (from.add(2 * i * e), to.add(i * width));
            if lay.across() {
                zip::<S, T>(from, both.then(|| from.add(e)), count, to);
            } else {
                for query in 0..count {
                    *to.add(query) = f32::from_bits(two(from.add(query * n), e, both));
                }
            }
            for query in count..width {
                *to.add(query) = 0.0;
            }
        }
    }
}

/// Copies the first tokens of a tile of K of `count`, or more of them.
///
/// # Safety
/// The tokens are inside the view, `to` holds the tile, and the CPU has the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn keys<S: Simd, T: Float>(
    from: *const T,
    lay: Lay,
    tokens: Range<usize>,
    count: usize,
    to: &mut [f32],
) {
    let Lay { n, e, d } = lay;
    let pairs = d.div_ceil(2);
    let to = to.as_mut_ptr();
    if lay.across() {
        for i in 0..pairs {
            // SAFETY: rows 2i and 2i + 1 are inside the view, row i inside `to`, by the contract.
            unsafe {
                let from = from.add(2 * i * e);
                let high = (2 * i + 1 < d).then(|| from.add(e));
                zip::<S, T>(from, high, tokens.len(), to.add(i * pitch(count) + tokens.start));
            }
        }
        return;
    }
    for (r, token) in tokens.enumerate() {
        // SAFETY: token r is inside the view, and its row inside `to`, by the contract.
        unsafe {
            let (from, to) = (from.add(r * n), to.add(token * pitch(pairs)));
            if e == 1 {
                // They are pairs in memory already.
                std::ptr::copy_nonoverlapping(from.cast::<u16>(), to.cast(), d);
                if d % 2 == 1 {
                    *to.cast::<u16>().add(d) = 0;
                }
            } else {
                for i in 0..pairs {
                    *to.add(i) = f32::from_bits(two(from.add(2 * i * e), e, 2 * i + 1 < d));
                }
            }
        }
    }
}

/// The same of V.
///
/// # Safety
/// As for [`keys`]; tokens come in order.
#[inline(always)]
pub(super) unsafe fn values<S: Simd, T: Float>(
    from: *const T,
    lay: Lay,
    tokens: Range<usize>,
    count: usize,
    to: &mut [f32],
) {
    let Lay { n, e, d } = lay;
    let pairs = count.div_ceil(2);
    let to = to.as_mut_ptr();
    if lay.across() {
        for i in 0..d {
            // SAFETY: row i is inside the view and inside `to`, by the contract.
            unsafe {
                let to = to.add(i * pitch(pairs)).cast::<u16>();
                std::ptr::copy_nonoverlapping(from.add(i * e).cast(), to.add(tokens.start), tokens.len());
                if tokens.end == count && count % 2 == 1 {
                    *to.add(count) = 0;
                }
            }
        }
        return;
    }
    let mut token = tokens.start;
    while token < tokens.end {
        // SAFETY: the token is inside the view, and its pair's row inside `to`, by the contract.
        unsafe {
            let (from, to) = (from.add((token - tokens.start) * n), to.add(token / 2 * pitch(d)));
            let (odd, both) = (token % 2, token + 1 < tokens.end);
            if odd == 0 && e == 1 {
                zip::<S, T>(from, both.then(|| from.add(n)), d, to);
            } else if odd == 0 {
                for i in 0..d {
                    *to.add(i) = f32::from_bits(two(from.add(i * e), n, both));
                }
            } else {
                // The first of its pair came from another page.
                for i in 0..d {
                    *to.cast::<u16>().add(2 * i + 1) = *from.cast::<u16>().add(i * e);
                }
            }
            token += if odd == 0 && both { 2 } else { 1 };
        }
    }
}
