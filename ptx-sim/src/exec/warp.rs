//! The state of one warp: registers, frames, groups of lanes, local memory, copies in flight.

use super::shared::{OUTSIDE, UNWRITTEN};
use super::value::{LANES, Lanes, V32, V64};
use crate::ir::{Function, Reg, Src};

/// Atomics in vain before lanes let others of their warp go first.
const PATIENCE: u32 = 1 << 10;

/// Lanes that are at the same instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    /// Rank of its block: the lowest runs first.
    pub(crate) order: u32,
    pub(crate) mask: u32,
    /// Waits at a barrier.
    pub(crate) parked: bool,
}

/// An activation of a function.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) function: u32,
    pub(crate) groups: Vec<Group>,
    pub(crate) base32: usize,
    pub(crate) base64: usize,
    pub(crate) base_pred: usize,
    /// Start of its variables in local memory.
    pub(crate) local: u32,
    /// Lanes that entered.
    pub(crate) mask: u32,
    /// Frame offsets and sizes: from the callee's returns to the caller's variables.
    pub(crate) rets: Vec<(u32, u32, u32)>,
}

/// Lanes that wait at `bar.warp.sync` until all that the mask names have come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WarpSync {
    pub(crate) named: u32,
    pub(crate) arrived: u32,
    pub(crate) function: u32,
    pub(crate) pc: u32,
}

/// A `cp.async` that has not landed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy {
    pub(crate) lane: u8,
    pub(crate) bytes: u8,
    pub(crate) source_bytes: u8,
    pub(crate) group: u32,
    pub(crate) dst: u32,
    pub(crate) src: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub(crate) id: u32,
    /// Threads that exist in this warp, and those that have not exited.
    pub(crate) present: u32,
    pub(crate) live: u32,
    pub(crate) tid: [[u32; LANES]; 3],
    pub(crate) r32: Vec<[u32; LANES]>,
    pub(crate) r64: Vec<[u64; LANES]>,
    pub(crate) pred: Vec<u32>,
    pub(crate) undef32: Vec<u32>,
    pub(crate) undef64: Vec<u32>,
    /// Of a register that is undefined in some lanes: those where its low, or its high half is defined all the same.
    pub(crate) known32: Vec<[u32; 2]>,
    pub(crate) known64: Vec<[u32; 2]>,
    pub(crate) undef_pred: Vec<u32>,
    pub(crate) carry: u32,
    pub(crate) undef_carry: u32,
    pub(crate) frames: Vec<Frame>,
    pub(crate) base32: usize,
    pub(crate) base64: usize,
    pub(crate) base_pred: usize,
    /// Local memory, a stretch of `local_stride` bytes for each lane, and a state for every byte.
    pub(crate) local: Vec<u8>,
    pub(crate) local_state: Vec<u8>,
    pub(crate) local_stride: usize,
    /// For every warp of the block the last interval of it that is ordered before this warp's next access; for
    /// this warp itself the last that is so for every pair of its lanes.
    pub(crate) clock: Vec<u32>,
    /// Where lanes have met without the others: for each lane, of every lane, the last interval that is ordered
    /// before the former's next access, if it is later than in `clock`. Empty until that happens.
    pub(crate) lane_clock: Vec<[u32; LANES]>,
    /// What was ordered before this warp's last fence, itself included. Empty if there was none.
    pub(crate) fenced: Vec<u32>,
    /// What its atomics have seen of other warps' fences, and its next fence will order. Empty if nothing.
    pub(crate) seen: Vec<u32>,
    /// Lanes that wait at a `bar.warp.sync` for others.
    pub(crate) syncs: Vec<WarpSync>,
    /// This warp's current interval.
    pub(crate) interval: u32,
    /// Atomics in a row that have changed nothing, and lanes that let others go first since they wait for them.
    pub(crate) idle: u32,
    pub(crate) yielding: u32,
    pub(crate) copies: Vec<Copy>,
    pub(crate) committed: [u32; LANES],
    pub(crate) steps: u64,
}

impl Warp {
    /// Back to the start of a kernel, keeping the memory.
    pub(crate) fn reset(&mut self, function: u32, kernel: &Function, present: u32, warps: usize) {
        self.present = present;
        self.live = present;
        self.frames.clear();
        self.r32.clear();
        self.r64.clear();
        self.pred.clear();
        self.undef32.clear();
        self.undef64.clear();
        self.known32.clear();
        self.known64.clear();
        self.undef_pred.clear();
        self.carry = 0;
        self.undef_carry = !0;
        self.copies.clear();
        self.committed = [0; LANES];
        self.steps = 0;
        self.idle = 0;
        self.yielding = 0;
        self.clock.clear();
        self.clock.resize(warps, 0);
        self.lane_clock.clear();
        self.fenced.clear();
        self.seen.clear();
        self.syncs.clear();
        self.interval = 1;
        self.local_stride = 0;
        self.local.clear();
        self.local_state.clear();
        self.push_frame(function, kernel, present, Vec::new(), 0);
    }

    pub(crate) fn push_frame(
        &mut self,
        function: u32,
        code: &Function,
        mask: u32,
        rets: Vec<(u32, u32, u32)>,
        local: u32,
    ) {
        let frame = Frame {
            function,
            groups: vec![Group { pc: 0, order: 0, mask, parked: false }],
            base32: self.r32.len(),
            base64: self.r64.len(),
            base_pred: self.pred.len(),
            local,
            mask,
            rets,
        };
        let grow = |n: usize, more: u32| n + more as usize;
        let (n32, n64, np) = (
            grow(frame.base32, code.regs32),
            grow(frame.base64, code.regs64),
            grow(frame.base_pred, code.preds),
        );
        self.r32.resize(n32, [!0; LANES]);
        self.undef32.resize(n32, !0);
        self.known32.resize(n32, [0; 2]);
        self.r64.resize(n64, [!0; LANES]);
        self.undef64.resize(n64, !0);
        self.known64.resize(n64, [0; 2]);
        self.pred.resize(np, 0);
        self.undef_pred.resize(np, !0);
        // Most kernels have no local variables, and short ones should not pay for 32 empty stretches.
        if code.frame_bytes > 0 {
            let end = local as usize + code.frame_bytes as usize;
            if end > self.local_stride {
                self.grow_local(end);
            }
            self.mark_local(mask, local, code.frame_bytes, OUTSIDE);
            for &(offset, size) in &code.frame_vars {
                self.mark_local(mask, local + offset, size, UNWRITTEN);
            }
        }
        self.frames.push(frame);
        self.enter_top();
    }

    fn grow_local(&mut self, end: usize) {
        let stride = end.next_power_of_two().max(64);
        let mut local = vec![0xff; stride * LANES];
        let mut state = vec![OUTSIDE; stride * LANES];
        for l in 0..LANES {
            let (from, to) = (l * self.local_stride, l * stride);
            local[to..to + self.local_stride].copy_from_slice(&self.local[from..from + self.local_stride]);
            state[to..to + self.local_stride]
                .copy_from_slice(&self.local_state[from..from + self.local_stride]);
        }
        (self.local, self.local_state, self.local_stride) = (local, state, stride);
    }

    /// Sets the state of local bytes in some lanes.
    pub(crate) fn mark_local(&mut self, mask: u32, offset: u32, len: u32, state: u8) {
        for l in Lanes(mask) {
            let at = l * self.local_stride + offset as usize;
            self.local_state[at..at + len as usize].fill(state);
        }
    }

    pub(crate) fn pop_frame(&mut self) -> Option<Frame> {
        let frame = self.frames.pop()?;
        self.r32.truncate(frame.base32);
        self.undef32.truncate(frame.base32);
        self.known32.truncate(frame.base32);
        self.r64.truncate(frame.base64);
        self.undef64.truncate(frame.base64);
        self.known64.truncate(frame.base64);
        self.pred.truncate(frame.base_pred);
        self.undef_pred.truncate(frame.base_pred);
        self.enter_top();
        Some(frame)
    }

    fn enter_top(&mut self) {
        if let Some(top) = self.frames.last() {
            (self.base32, self.base64, self.base_pred) = (top.base32, top.base64, top.base_pred);
        }
    }

    /// A predicate operand: the lanes where it holds, and those where it was never written.
    #[inline(always)]
    pub(crate) fn pred(&self, src: &Src) -> (u32, u32) {
        match *src {
            Src::Pred(p, negate) => {
                let at = self.base_pred + p as usize;
                (if negate { !self.pred[at] } else { self.pred[at] }, self.undef_pred[at])
            }
            Src::Imm(v) => (if v & 1 != 0 { !0 } else { 0 }, 0),
            _ => (0, 0),
        }
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, d: Reg, v: u32, undef: u32, m: u32) {
        if let Reg::Pred(p) = d {
            let at = self.base_pred + p as usize;
            self.pred[at] = self.pred[at] & !m | v & m;
            self.undef_pred[at] = self.undef_pred[at] & !m | undef & m;
        }
    }

    #[inline(always)]
    pub(crate) fn put32(&mut self, d: Reg, v: &V32, m: u32) {
        match d {
            Reg::W32(r) => {
                let at = self.base32 + r as usize;
                let reg = &mut self.r32[at];
                if m == !0 {
                    *reg = v.v;
                    self.undef32[at] = v.undef;
                } else {
                    for l in 0..LANES {
                        let keep = (m >> l & 1).wrapping_sub(1);
                        reg[l] = reg[l] & keep | v.v[l] & !keep;
                    }
                    self.undef32[at] = self.undef32[at] & !m | v.undef & m;
                }
                if v.undef & m != 0 {
                    self.known32[at] = self.known32[at].map(|known| known & !m);
                }
            }
            Reg::W64(_) => self.put64(d, &V64 { v: v.v.map(u64::from), undef: v.undef }, m),
            _ => {}
        }
    }

    #[inline(always)]
    pub(crate) fn put64(&mut self, d: Reg, v: &V64, m: u32) {
        match d {
            Reg::W64(r) => {
                let at = self.base64 + r as usize;
                let reg = &mut self.r64[at];
                if m == !0 {
                    *reg = v.v;
                    self.undef64[at] = v.undef;
                } else {
                    for l in 0..LANES {
                        let keep = (u64::from(m) >> l & 1).wrapping_sub(1);
                        reg[l] = reg[l] & keep | v.v[l] & !keep;
                    }
                    self.undef64[at] = self.undef64[at] & !m | v.undef & m;
                }
                if v.undef & m != 0 {
                    self.known64[at] = self.known64[at].map(|known| known & !m);
                }
            }
            Reg::W32(_) => self.put32(d, &v.narrow(), m),
            _ => {}
        }
    }

    /// The lanes where the low, and where the high half of an operand is undefined.
    pub(crate) fn undef_halves(&self, src: &Src) -> [u32; 2] {
        let (undef, known) = match *src {
            Src::W32(r) => {
                let at = self.base32 + r as usize;
                (self.undef32[at], self.known32[at])
            }
            Src::W64(r) => {
                let at = self.base64 + r as usize;
                (self.undef64[at], self.known64[at])
            }
            _ => (0, [0; 2]),
        };
        known.map(|known| undef & !known)
    }

    /// Notes which half of a register just written is undefined, where not both are.
    pub(crate) fn put_halves(&mut self, d: Reg, undef: [u32; 2], m: u32) {
        let known = match d {
            Reg::W32(r) => &mut self.known32[self.base32 + r as usize],
            Reg::W64(r) => &mut self.known64[self.base64 + r as usize],
            _ => return,
        };
        for (known, undef) in known.iter_mut().zip(undef) {
            *known = *known & !m | !undef & m;
        }
    }

    /// Lanes that try an atomic in vain for long wait for others, of this warp perhaps: those go first, until an
    /// atomic changes something again.
    pub(crate) fn note_atomic(&mut self, m: u32, changed: bool) {
        self.idle = if changed { 0 } else { self.idle + 1 };
        if changed {
            self.yielding = 0;
        } else if self.idle >= PATIENCE {
            (self.idle, self.yielding) = (0, self.yielding | m);
        }
    }

    /// A fence, as it looks forward: what follows can be told from what came before.
    pub(crate) fn release(&mut self) {
        self.fenced.clone_from(&self.clock);
        self.fenced[self.id as usize] = self.interval;
        self.advance();
    }

    /// A fence, as it looks back: what atomics have seen is ordered before what follows.
    pub(crate) fn acquire(&mut self) {
        for (mine, seen) in self.clock.iter_mut().zip(self.seen.drain(..)) {
            *mine = (*mine).max(seen);
        }
    }

    /// Whether an access stamped with `interval` by a thread happens before the next access of a lane of this warp.
    #[inline(always)]
    pub(crate) fn is_ordered(&self, lane: usize, thread: u32, interval: u32) -> bool {
        interval <= self.clock[thread as usize / 32] || self.have_lanes_met(lane, thread, interval)
    }

    #[cold]
    fn have_lanes_met(&self, lane: usize, thread: u32, interval: u32) -> bool {
        let known = self.lane_clock.get(lane).map(|of| of[thread as usize % 32]);
        thread / 32 == self.id && known.is_some_and(|latest| interval <= latest)
    }

    /// Whether a part of the lanes has met without the others: who has read in an earlier interval is then not known.
    pub(crate) fn is_split(&self) -> bool {
        !self.lane_clock.is_empty()
    }

    /// What these lanes have done is ordered before what any of them does next.
    pub(crate) fn lanes_meet(&mut self, lanes: u32) {
        if self.live & !lanes == 0 {
            return self.next_interval();
        }
        if self.lane_clock.is_empty() {
            self.lane_clock = vec![[0; LANES]; LANES];
        }
        let mut joined = [0; LANES];
        for l in Lanes(lanes) {
            for (joined, &known) in joined.iter_mut().zip(&self.lane_clock[l]) {
                *joined = (*joined).max(known);
            }
        }
        Lanes(lanes).for_each(|l| joined[l] = self.interval);
        Lanes(lanes).for_each(|l| self.lane_clock[l] = joined);
        self.advance();
    }
}
