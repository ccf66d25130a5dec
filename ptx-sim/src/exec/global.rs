//! Races in global memory, across the threads of a block and across blocks.
//!
//! Every cell remembers its last write and a summary of the reads since, in one atomic word each, so that
//! blocks on several host threads can check against each other. A writer publishes its stamp before it
//! looks at the readers, a reader before it looks at the writer: of two that race, one sees the other.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::warp::Warp;
use crate::ir::Sync;
use crate::memory::{Alloc, PAGE};

/// Launches before stamps repeat and the shadow must be cleared.
pub(crate) const GENERATIONS: u64 = 511;
/// Blocks that a stamp can tell apart.
pub(crate) const MAX_BLOCKS: u64 = 1 << 24;
const MAX_INTERVAL: u32 = (1 << 18) - 1;

// A stamp: generation 9, block 24, interval 18, thread 10, then for a write one bit `atomic`, for a read
// `several threads` and `several blocks` (63 and one bits in all). Of several threads the interval is the latest of
// theirs, and their warps, modulo 10, stand in the place of the thread.
const ATOMIC: u64 = 1;
const MANY: u64 = 1;
const BLOCKS: u64 = 2;

fn generation(stamp: u64) -> u64 {
    stamp >> 54
}
fn block(stamp: u64) -> u64 {
    stamp >> 30 & (MAX_BLOCKS - 1)
}
fn interval(stamp: u64) -> u32 {
    (stamp >> 12) as u32 & MAX_INTERVAL
}
fn thread(stamp: u64) -> u32 {
    (stamp >> 2) as u32 & 1023
}

/// Warps that several readers may belong to.
const WARPS: usize = 10;

fn bit_of(warp: usize) -> u64 {
    1 << (2 + warp % WARPS)
}
/// The warps in a read summary, as bits in the place of the thread.
fn warps(stamp: u64) -> u64 {
    if stamp & MANY != 0 { stamp & (0x3ff << 2) } else { bit_of(thread(stamp) as usize / 32) }
}

/// The other side of a race.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Other {
    pub(crate) block: u64,
    pub(crate) thread: u32,
    pub(crate) wrote: bool,
}

/// Blocks that have made their writes visible with a fence and an atomic: by the atomic's address, in their order.
#[derive(Debug, Default)]
pub(crate) struct Releases(Mutex<Released>);

#[derive(Debug, Default)]
struct Released {
    /// Of each block its place in that order.
    by_address: HashMap<u64, HashMap<u64, u32>>,
    entries: usize,
}

/// Past this number of blocks and addresses, order between blocks is taken for granted.
const MAX_RELEASES: usize = 1 << 22;

/// How many of the blocks at an address are ordered before the running one.
pub(crate) type Acquired = HashMap<u64, u32>;

impl Releases {
    fn lock(&self) -> MutexGuard<'_, Released> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn release(&self, address: u64, block: u64) {
        let mut all = self.lock();
        if all.entries < MAX_RELEASES {
            let blocks = all.by_address.entry(address).or_default();
            let before = blocks.len();
            blocks.entry(block).or_insert(before as u32);
            let more = blocks.len() - before;
            all.entries += more;
        }
    }

    pub(crate) fn acquire(&self, address: u64, acquired: &mut Acquired) {
        if let Some(blocks) = self.lock().by_address.get(&address) {
            acquired.insert(address, blocks.len() as u32);
        }
    }

    fn is_before(&self, block: u64, acquired: &Acquired) -> bool {
        if acquired.is_empty() {
            return false;
        }
        let all = self.lock();
        all.entries >= MAX_RELEASES
            || acquired.iter().any(|(address, &known)| {
                all.by_address
                    .get(address)
                    .and_then(|blocks| blocks.get(&block))
                    .is_some_and(|&at| at < known)
            })
    }

    /// Whether all blocks but one are ordered before it.
    fn is_last(&self, block: u64, acquired: &Acquired, total: u64) -> bool {
        if acquired.is_empty() {
            return total == 1;
        }
        let all = self.lock();
        all.entries >= MAX_RELEASES
            || acquired.iter().any(|(address, &known)| {
                let mine = all.by_address.get(address).and_then(|blocks| blocks.get(&block));
                u64::from(known) + u64::from(mine.is_none_or(|&at| at >= known)) == total
            })
    }
}

/// Who accesses.
pub(crate) struct Who<'a> {
    pub(crate) warp: &'a Warp,
    pub(crate) lane: usize,
    pub(crate) block: u64,
    pub(crate) grid: &'a [u32; 3],
    pub(crate) generation: u64,
    pub(crate) shift: u32,
    pub(crate) releases: &'a Releases,
    pub(crate) acquired: &'a Acquired,
    /// None for a plain access.
    pub(crate) sync: Option<Sync>,
}

impl Who<'_> {
    fn stamp(&self) -> u64 {
        let interval = u64::from(self.warp.interval.min(MAX_INTERVAL));
        let thread = u64::from(self.warp.id * 32 + self.lane as u32);
        self.generation << 54 | self.block << 30 | interval << 12 | thread << 2
    }

    fn is_ordered(&self, stamp: u64) -> bool {
        if block(stamp) != self.block {
            return self.releases.is_before(block(stamp), self.acquired);
        }
        let i = interval(stamp);
        // Past the last interval that a stamp can hold, order within the block is taken for granted.
        i == MAX_INTERVAL || self.warp.is_ordered(self.lane, thread(stamp), i)
    }

    /// Whether this access and that write are atomics to each other: one whose scope is its block is not to another block.
    fn may_meet(&self, write: u64) -> bool {
        let in_scope = |sync: Sync| sync.wide || block(write) == self.block;
        write & ATOMIC != 0 && self.sync.is_some_and(in_scope)
    }

    /// The first warp of several readers whose reads are not ordered before this warp's next access.
    fn unordered_reader(&self, stamp: u64) -> Option<usize> {
        let latest = interval(stamp);
        let is_unordered = |w: usize| {
            // Which lanes of this warp have read is known as long as none have met since: all, perhaps.
            let known = w != self.warp.id as usize || !self.warp.is_split() || latest >= self.warp.interval;
            known && latest > self.warp.clock[w]
        };
        (0..self.warp.clock.len())
            .find(|&w| warps(stamp) & bit_of(w) != 0 && latest != MAX_INTERVAL && is_unordered(w))
    }

    /// Whether every other block is ordered before this one: then it matters not which of them have read.
    fn is_last_block(&self) -> bool {
        let total = self.grid.iter().map(|&n| u64::from(n)).product();
        self.releases.is_last(self.block, self.acquired, total)
    }

    fn is_me(&self, stamp: u64) -> bool {
        block(stamp) == self.block && thread(stamp) == self.warp.id * 32 + self.lane as u32
    }

    fn cells(&self, at: u64, bytes: u32) -> std::ops::Range<usize> {
        let first = at >> self.shift;
        first as usize..(((at + u64::from(bytes) - 1) >> self.shift) + 1) as usize
    }

    #[inline]
    pub(crate) fn read(&self, alloc: &Alloc, at: u64, bytes: u32) -> Option<Other> {
        let mine = self.stamp();
        let mut other = None;
        for cell in self.cells(at, bytes) {
            let page = alloc.page(cell / PAGE);
            if self.sync.is_none() {
                let slot = &page.reads[cell % PAGE];
                let mut old = slot.load(Relaxed);
                while let Some(new) = self.joined(old, mine) {
                    match slot.compare_exchange(old, new, SeqCst, Relaxed) {
                        Ok(_) => break,
                        Err(now) => old = now,
                    }
                }
            }
            let write = page.writes[cell % PAGE].load(SeqCst);
            if generation(write) == self.generation
                && !self.is_me(write)
                && !self.may_meet(write)
                && !self.is_ordered(write)
            {
                other = Some(Other { block: block(write), thread: thread(write), wrote: true });
            }
        }
        other
    }

    /// The read summary with this read in it; none if it is there already.
    #[inline]
    fn joined(&self, old: u64, mine: u64) -> Option<u64> {
        if old == mine || generation(old) == self.generation && old & BLOCKS != 0 {
            return None;
        }
        if generation(old) != self.generation {
            return Some(mine);
        }
        if block(old) != self.block {
            let ordered = self.releases.is_before(block(old), self.acquired);
            return Some(if ordered { mine } else { mine | BLOCKS });
        }
        if old & MANY == 0 && (self.is_me(old) || self.is_ordered(old)) {
            return Some(mine);
        }
        if old & MANY != 0 && self.unordered_reader(old).is_none() {
            return Some(mine);
        }
        let latest = u64::from(interval(old).max(interval(mine)));
        let of_block = self.generation << 54 | self.block << 30;
        let new = of_block | latest << 12 | warps(old) | bit_of(self.warp.id as usize) | MANY;
        (new != old).then_some(new)
    }

    #[inline]
    pub(crate) fn write(&self, alloc: &Alloc, at: u64, bytes: u32, same: bool) -> Option<Other> {
        let mine = if self.sync.is_some() { self.stamp() | ATOMIC } else { self.stamp() };
        let mut other = None;
        for cell in self.cells(at, bytes) {
            let page = alloc.page(cell / PAGE);
            let old = page.writes[cell % PAGE].swap(mine, SeqCst);
            if generation(old) == self.generation
                && !self.is_me(old)
                && !self.may_meet(old)
                && !same
                && !self.is_ordered(old)
            {
                other = Some(Other { block: block(old), thread: thread(old), wrote: true });
            }
            let read = page.reads[cell % PAGE].load(SeqCst);
            if other.is_none() && generation(read) == self.generation {
                let ordered = if read & BLOCKS != 0 {
                    self.is_last_block()
                } else if read & MANY != 0 && block(read) == self.block {
                    self.unordered_reader(read).is_none()
                } else {
                    self.is_me(read) && read & MANY == 0 || self.is_ordered(read)
                };
                if !ordered {
                    let thread = match self.unordered_reader(read) {
                        Some(warp) if read & MANY != 0 => warp as u32 * 32,
                        _ => thread(read),
                    };
                    other = Some(Other { block: block(read), thread, wrote: false });
                }
            }
        }
        other
    }
}
