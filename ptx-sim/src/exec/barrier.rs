//! Block barriers: who arrives, who waits, what they order.

use std::sync::Arc;

use super::block::{Barrier, Env, Waiting};
use super::value::{Lanes, V32};
use super::warp::Warp;
use crate::error::FindingKind;
use crate::ir::{BarKind, Reg, Src};

/// Intervals stop here: later accesses look simultaneous, which stamps of 26 bits can still hold.
const LAST_INTERVAL: u32 = (1 << 26) - 1;

impl Warp {
    /// Everything up to here is ordered before what follows in this warp.
    pub(crate) fn next_interval(&mut self) {
        self.interval = (self.interval + 1).min(LAST_INTERVAL);
        self.clock[self.id as usize] = self.interval - 1;
    }
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
        self.barriers[index as usize].waiting.push(Waiting {
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
        });
        self.complete(index as usize);
        args.kind != BarKind::Arrive
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
        for frame in &mut warp.frames {
            for group in &mut frame.groups {
                if group.parked && group.mask == waiting.mask {
                    group.parked = false;
                }
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
