//! Barriers of blocks and warps: who arrives, who waits, what they order.

use std::sync::Arc;

use super::block::{Barrier, Env, Waiting};
use super::value::{Lanes, V32};
use super::warp::{Warp, WarpSync};
use crate::error::FindingKind;
use crate::ir::{BarKind, Reg, Src};

/// Intervals stop here: later accesses look simultaneous, which stamps of 26 bits can still hold.
const LAST_INTERVAL: u32 = (1 << 26) - 1;

impl Warp {
    /// What follows in this warp can be told from what came before.
    pub(crate) fn advance(&mut self) {
        self.interval = (self.interval + 1).min(LAST_INTERVAL);
    }

    /// Everything up to here is ordered before what follows in this warp.
    pub(crate) fn next_interval(&mut self) {
        self.advance();
        self.clock[self.id as usize] = self.interval - 1;
    }

    /// All have come that a `bar.warp.sync` waits for.
    fn meet(&mut self, at: usize) {
        let WarpSync { arrived, .. } = self.syncs.swap_remove(at);
        self.lanes_meet(arrived);
        self.unpark(|mask| mask & arrived != 0);
    }

    /// Lanes that wait here no longer do.
    fn unpark(&mut self, waits: impl Fn(u32) -> bool) {
        for frame in &mut self.frames {
            for group in frame.groups.iter_mut().filter(|g| g.parked && waits(g.mask)) {
                group.parked = false;
            }
            // Lanes that went on without waiting may stand at the same place.
            let mut i = 0;
            while i < frame.groups.len() {
                let group = frame.groups[i];
                let twin =
                    frame.groups[..i].iter_mut().find(|g| g.pc == group.pc && !g.parked && !group.parked);
                if let Some(twin) = twin {
                    twin.mask |= group.mask;
                    frame.groups.swap_remove(i);
                } else {
                    i += 1;
                }
            }
        }
    }
}

/// What lanes do that have come to a `bar.warp.sync`.
pub(crate) enum Meeting {
    /// Go on.
    Complete,
    /// Go on, as do others that have waited for them.
    WakesOthers,
    Waits,
}

pub(crate) struct BarArgs<'a> {
    pub(crate) kind: BarKind,
    pub(crate) aligned: bool,
    pub(crate) id: &'a Src,
    pub(crate) count: Option<&'a Src>,
    pub(crate) d: Reg,
    pub(crate) p: &'a Src,
}

impl Env<'_> {
    /// Executes a barrier instruction for the lanes of `m`. True if the lanes must wait.
    pub(crate) fn bar(&mut self, warp: &mut Warp, args: &BarArgs<'_>, m: u32) -> bool {
        let id = self.src32(warp, args.id);
        let lane = m.trailing_zeros() as usize;
        let index = id.v[lane];
        self.undefined(warp, id.undef & m, "the number of the barrier");
        if Lanes(m).any(|l| id.v[l] != index) || index > 15 {
            self.record(FindingKind::InvalidOperand, warp, lane, None, || {
                format!("barrier {index}: must be the same below 16 in all lanes")
            });
            self.abort = true;
            return false;
        }
        if args.aligned && m != warp.present {
            let (got, missing) = (m.count_ones(), warp.present & !m);
            let exited = missing & !warp.live;
            self.record(FindingKind::DivergentBarrier, warp, missing.trailing_zeros() as usize, None, || {
                format!(
                    "{got} of {} threads of the warp execute the barrier; missing lanes {missing:#010x}, of which {exited:#010x} have exited",
                    warp.present.count_ones()
                )
            });
            self.abort = true;
            return false;
        }
        let threads: u32 = self.cx.block.iter().product();
        let whole = threads.next_multiple_of(32);
        let expected = match args.count {
            None => whole,
            Some(count) => {
                let count = self.src32(warp, count);
                self.undefined(warp, count.undef & m, "the thread count of the barrier");
                let count = count.v[lane];
                if count == 0 || !count.is_multiple_of(32) || count > whole {
                    self.record(FindingKind::BarrierCount, warp, lane, None, || {
                        format!(
                            "{count} threads: must be a multiple of 32, at most the {threads} of the block"
                        )
                    });
                    self.abort = true;
                    return false;
                }
                count
            }
        };
        let barrier = &mut self.barriers[index as usize];
        // A thread that arrives alone counts for itself; with the last of its warp those count that it lacks.
        let of_warp = barrier.waiting.iter().filter(|w| w.warp == warp.id);
        let here = of_warp.fold(0, |here, w| here | w.mask);
        let arriving =
            if args.aligned || here | m == warp.live { 32 - here.count_ones() } else { m.count_ones() };
        let reduces = |kind: BarKind| !matches!(kind, BarKind::Sync | BarKind::Arrive);
        let mixed = barrier.waiting.iter().any(|w| reduces(w.kind) != reduces(args.kind));
        if here & m != 0 || mixed {
            self.record(FindingKind::InvalidOperand, warp, lane, None, || {
                if mixed {
                    format!("barrier {index} is used with and without a reduction at once")
                } else {
                    format!(
                        "lanes {:#010x} have arrived at barrier {index} before, and it is not complete",
                        here & m
                    )
                }
            });
            self.abort = true;
            return false;
        }
        if barrier.arrived > 0 && barrier.expected != expected {
            let first = barrier.expected;
            self.record(FindingKind::BarrierCount, warp, lane, None, || {
                format!("barrier {index} expects {expected} threads here, and {first} where others wait")
            });
            self.abort = true;
            return false;
        }
        barrier.expected = expected;
        barrier.arrived += arriving;
        if barrier.arrived > expected {
            let arrived = barrier.arrived;
            self.record(FindingKind::BarrierCount, warp, lane, None, || {
                format!("{arrived} threads arrive at barrier {index}, which expects {expected}")
            });
            self.abort = true;
            return false;
        }
        if barrier.clock.is_empty() {
            barrier.clock = vec![0; warp.clock.len()];
        }
        for (joined, &mine) in barrier.clock.iter_mut().zip(&warp.clock) {
            *joined = (*joined).max(mine);
        }
        barrier.clock[warp.id as usize] = barrier.clock[warp.id as usize].max(warp.interval);
        warp.next_interval();
        let (value, undef) = warp.pred(args.p);
        if !matches!(args.kind, BarKind::Sync | BarKind::Arrive) {
            self.undefined(warp, undef & m, "the predicate of the reduction");
        }
        let waiting = Waiting {
            warp: warp.id,
            mask: m,
            whole: m == warp.live && args.kind != BarKind::Arrive,
            met: 0,
            kind: args.kind,
            d: args.d,
            value: value & m,
            function: self.function,
            pc: self.pc,
            clock: None,
        };
        let signal = &mut self.signals[index as usize];
        if args.kind == BarKind::Arrive {
            signal.first.get_or_insert_with(|| waiting.clone());
        } else {
            signal.is_awaited = true;
        }
        self.barriers[index as usize].waiting.push(waiting);
        self.complete(index as usize);
        args.kind != BarKind::Arrive
    }

    /// Executes `bar.warp.sync` for the lanes of `m`. Lanes may wait for each other at different ones, if these name
    /// the same lanes.
    pub(crate) fn bar_warp(&mut self, warp: &mut Warp, mask: &Src, m: u32) -> Meeting {
        let masks = self.src32(warp, mask);
        self.undefined(warp, masks.undef & m, "the mask");
        let named = masks.v[m.trailing_zeros() as usize];
        if Lanes(m).any(|l| masks.v[l] != named) {
            // Several meetings at one instruction: each has to be complete.
            self.warp_mask(warp, Some(mask), m);
            let mut left = m;
            while left != 0 {
                let named = masks.v[left.trailing_zeros() as usize];
                let same = Lanes(left).filter(|&l| masks.v[l] == named).fold(0, |s, l| s | 1 << l);
                warp.lanes_meet(same);
                left &= !same;
            }
            return Meeting::Complete;
        }
        if let Some(lane) = Lanes(m).find(|&l| masks.v[l] >> l & 1 == 0) {
            self.record(FindingKind::WarpMask, warp, lane, None, || {
                format!("the mask {:#010x} does not name lane {lane}, which executes this", masks.v[lane])
            });
        }
        let (function, pc) = (self.function, self.pc);
        let at = match warp.syncs.iter().position(|s| s.named == named) {
            Some(at) => at,
            None if named & warp.live & !m == 0 => {
                warp.lanes_meet(m);
                return Meeting::Complete;
            }
            None => {
                warp.syncs.push(WarpSync { named, arrived: 0, function, pc });
                warp.syncs.len() - 1
            }
        };
        warp.syncs[at].arrived |= m;
        if named & warp.live & !warp.syncs[at].arrived != 0 {
            return Meeting::Waits;
        }
        warp.meet(at);
        Meeting::WakesOthers
    }

    /// Lanes have exited: those that wait for them at a `bar.warp.sync` wait in vain.
    pub(crate) fn exited(&mut self, warp: &mut Warp, lanes: u32) {
        while let Some(at) = warp.syncs.iter().position(|s| s.named & lanes & !s.arrived != 0) {
            self.waits_in_vain(warp, at, "have exited");
            warp.syncs[at].named &= !lanes;
            if warp.syncs[at].named & warp.live & !warp.syncs[at].arrived == 0 {
                warp.meet(at);
            }
        }
    }

    /// A finding at the `bar.warp.sync` where lanes wait for others.
    pub(crate) fn waits_in_vain(&mut self, warp: &Warp, at: usize, why: &str) {
        let WarpSync { named, arrived, function, pc } = warp.syncs[at];
        let here = std::mem::replace(&mut self.function, function);
        let pc = std::mem::replace(&mut self.pc, pc);
        let absent = named & !arrived;
        self.record(FindingKind::WarpMask, warp, arrived.trailing_zeros() as usize, None, || {
            format!(
                "the mask {named:#010x} names lanes {absent:#010x}, which {why}; lanes {arrived:#010x} wait"
            )
        });
        (self.function, self.pc) = (here, pc);
    }

    fn complete(&mut self, index: usize) {
        let barrier = &mut self.barriers[index];
        if barrier.arrived < barrier.expected {
            return;
        }
        let done = std::mem::take(barrier);
        self.counters.barriers += 1;
        self.settle(done);
    }

    /// Hands out the result of a complete barrier.
    fn settle(&mut self, mut done: Barrier) {
        let votes: u32 = done.waiting.iter().map(|w| w.value.count_ones()).sum();
        let all = done.waiting.iter().all(|w| w.value == w.mask);
        // Warps that wait as a whole go on in one interval, later than all of theirs. None of them was in those between.
        let met = done.waiting.iter().map(|w| done.clock[w.warp as usize]).max().unwrap_or(0);
        for waiting in done.waiting.iter().filter(|w| w.whole) {
            done.clock[waiting.warp as usize] = met;
        }
        let clock: Arc<[u32]> = done.clock.into();
        for mut waiting in done.waiting {
            if waiting.kind == BarKind::Arrive {
                continue;
            }
            waiting.value = match waiting.kind {
                BarKind::RedPopc => votes,
                BarKind::RedAnd => u32::from(all),
                BarKind::RedOr => u32::from(votes > 0),
                _ => 0,
            };
            waiting.clock = Some(Arc::clone(&clock));
            waiting.met = met;
            self.released.push(waiting);
        }
    }

    /// Wakes a group of lanes.
    pub(crate) fn release(&mut self, warp: &mut Warp, waiting: &Waiting) {
        warp.unpark(|mask| mask == waiting.mask);
        if let Some(clock) = &waiting.clock {
            for (mine, &joined) in warp.clock.iter_mut().zip(clock.iter()) {
                *mine = (*mine).max(joined);
            }
            if waiting.whole && warp.interval <= waiting.met {
                warp.interval = waiting.met;
                warp.next_interval();
            }
        }
        match waiting.kind {
            BarKind::RedPopc => warp.put32(waiting.d, &V32::splat(waiting.value), waiting.mask),
            BarKind::RedAnd | BarKind::RedOr => {
                warp.put_pred(waiting.d, if waiting.value != 0 { !0 } else { 0 }, 0, waiting.mask);
            }
            _ => {}
        }
    }
}
