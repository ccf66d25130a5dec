//! Shared memory of a block, with what is known about each byte and each access.

use super::warp::Warp;

/// States of a byte. This one belongs to no variable.
pub(crate) const OUTSIDE: u8 = 0;
pub(crate) const UNWRITTEN: u8 = 1;
pub(crate) const WRITTEN: u8 = 2;
pub(crate) const PENDING: u8 = 3;

/// What is wrong with an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    Bounds,
    Unwritten,
    Pending,
    /// The other thread, and whether it wrote.
    Race {
        thread: u32,
        wrote: bool,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) data: Vec<u8>,
    /// For every byte: [`OUTSIDE`], [`UNWRITTEN`], [`WRITTEN`], [`PENDING`].
    pub(crate) state: Vec<u8>,
    /// Last write of a cell: interval, thread, atomic; 0 none.
    writes: Vec<u64>,
    /// Last read of a cell by each warp: interval, several lanes, lane; 0 none.
    reads: Vec<u32>,
    /// log2 of the bytes in a cell.
    shift: u32,
    warps: usize,
}

const READ_MANY: u32 = 32;

fn write_stamp(warp: &Warp, lane: usize, atomic: bool) -> u64 {
    u64::from(warp.interval) << 16 | u64::from(warp.id * 32 + lane as u32) << 1 | u64::from(atomic)
}

/// A read in `slots` that is not ordered before this warp's next access, by another thread.
#[cold]
fn reader(slots: &[u32], warp: &Warp, me: u32) -> Option<Flaw> {
    for (w, &slot) in slots.iter().enumerate() {
        let thread = w as u32 * 32 + (slot & 31);
        // Of several readers the last is known, and the others as long as no lanes have met since.
        let others = slot & READ_MANY != 0 && slot >> 6 == warp.interval;
        if !warp.is_ordered(me as usize % 32, thread, slot >> 6) && (thread != me || others) {
            return Some(Flaw::Race { thread, wrote: false });
        }
    }
    None
}

impl Shared {
    pub(crate) fn reset(&mut self, vars: &[(u32, u32)], end: u32, cell: u32, warps: usize) {
        let end = end as usize;
        self.shift = cell.trailing_zeros();
        self.warps = warps;
        self.data.clear();
        self.data.resize(end, 0xff);
        self.state.clear();
        self.state.resize(end, OUTSIDE);
        for &(offset, size) in vars {
            self.state[offset as usize..(offset + size) as usize].fill(UNWRITTEN);
        }
        let cells = (end >> self.shift) + 1;
        self.writes.clear();
        self.writes.resize(cells, 0);
        self.reads.clear();
        self.reads.resize(cells * warps, 0);
    }

    /// Bounds and state of a read.
    #[inline(always)]
    pub(crate) fn check_read(&self, at: u64, bytes: u32) -> Option<Flaw> {
        let Some(state) = self.range(at, bytes) else {
            return Some(Flaw::Bounds);
        };
        let words = state.as_chunks::<4>().0;
        let all = if bytes >= 4 {
            words.iter().all(|w| *w == [WRITTEN; 4])
        } else {
            state.iter().all(|&s| s == WRITTEN)
        };
        if all { None } else { self.name_state(state, true) }
    }

    #[inline]
    pub(crate) fn check_write(&self, at: u64, bytes: u32) -> Option<Flaw> {
        let Some(state) = self.range(at, bytes) else {
            return Some(Flaw::Bounds);
        };
        if state.iter().all(|&s| s == WRITTEN || s == UNWRITTEN) {
            return None;
        }
        self.name_state(state, false)
    }

    #[inline(always)]
    fn range(&self, at: u64, bytes: u32) -> Option<&[u8]> {
        let end = at.checked_add(u64::from(bytes))?;
        if end > self.state.len() as u64 { None } else { Some(&self.state[at as usize..end as usize]) }
    }

    #[cold]
    fn name_state(&self, state: &[u8], read: bool) -> Option<Flaw> {
        if state.contains(&OUTSIDE) {
            Some(Flaw::Bounds)
        } else if state.contains(&PENDING) {
            Some(Flaw::Pending)
        } else if read && state.contains(&UNWRITTEN) {
            Some(Flaw::Unwritten)
        } else {
            None
        }
    }

    #[inline(always)]
    fn cells(&self, at: u64, bytes: u32) -> std::ops::Range<usize> {
        let first = at as usize >> self.shift;
        first..((at as usize + bytes as usize - 1) >> self.shift) + 1
    }

    /// Notes a read, and finds a write that is not ordered before it.
    #[inline(always)]
    pub(crate) fn read(
        &mut self,
        warp: &Warp,
        lane: usize,
        at: u64,
        bytes: u32,
        atomic: bool,
    ) -> Option<Flaw> {
        let mut flaw = None;
        let me = warp.id * 32 + lane as u32;
        for cell in self.cells(at, bytes) {
            let stamp = self.writes[cell];
            if stamp != 0 && flaw.is_none() {
                let (interval, thread) = ((stamp >> 16) as u32, (stamp >> 1) as u32 & 0x7fff);
                if thread != me && !(atomic && stamp & 1 != 0) && !warp.is_ordered(lane, thread, interval) {
                    flaw = Some(Flaw::Race { thread, wrote: true });
                }
            }
            if atomic {
                continue;
            }
            let slot = &mut self.reads[cell * self.warps + warp.id as usize];
            let mine = warp.interval << 6 | lane as u32;
            *slot = if *slot >> 6 == warp.interval && *slot != mine { mine | READ_MANY } else { mine };
        }
        flaw
    }

    /// Notes a write, and finds an access that is not ordered before it. A write of equal bytes over another
    /// write is let through (`same`).
    #[inline]
    pub(crate) fn write(
        &mut self,
        warp: &Warp,
        lane: usize,
        at: u64,
        bytes: u32,
        atomic: bool,
        same: bool,
    ) -> Option<Flaw> {
        let mut flaw = None;
        let me = warp.id * 32 + lane as u32;
        for cell in self.cells(at, bytes) {
            let stamp = self.writes[cell];
            if flaw.is_none() && stamp != 0 && !same {
                let (interval, thread) = ((stamp >> 16) as u32, (stamp >> 1) as u32 & 0x7fff);
                if thread != me && !(atomic && stamp & 1 != 0) && !warp.is_ordered(lane, thread, interval) {
                    flaw = Some(Flaw::Race { thread, wrote: true });
                }
            }
            if flaw.is_none() {
                let slots = &self.reads[cell * self.warps..][..self.warps];
                if slots.iter().zip(&warp.clock).any(|(slot, clock)| slot >> 6 > *clock) {
                    flaw = reader(slots, warp, me);
                }
            }
            self.writes[cell] = write_stamp(warp, lane, atomic);
        }
        flaw
    }

    pub(crate) fn mark(&mut self, at: u64, bytes: u32, state: u8) {
        self.state[at as usize..at as usize + bytes as usize].fill(state);
    }

    /// Notes a write that was checked when it was issued.
    pub(crate) fn stamp(&mut self, warp: &Warp, lane: usize, at: u64, bytes: u32) {
        for cell in self.cells(at, bytes) {
            self.writes[cell] = write_stamp(warp, lane, false);
        }
    }
}
