//! One block: its warps, shared memory and barriers, and the scheduling of warps.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::LaunchCx;
use super::findings::{At, Findings};
use super::global::Acquired;
use super::shared::Shared;
use super::warp::Warp;
use crate::Schedule;
use crate::counters::Counters;
use crate::error::FindingKind;
use crate::ir::{BarKind, Reg};

/// A group of lanes that waits at a barrier.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) warp: u32,
    pub(crate) mask: u32,
    pub(crate) kind: BarKind,
    pub(crate) d: Reg,
    /// For `bar.red`: lanes whose predicate holds.
    pub(crate) value: u32,
    pub(crate) function: u32,
    pub(crate) pc: u32,
    /// Whether these are all threads of the warp, which then does nothing until the barrier is complete.
    pub(crate) whole: bool,
    /// Once the barrier is complete: the latest interval of those who met.
    pub(crate) met: u32,
    /// Once the barrier is complete: what is ordered before everything that follows it.
    pub(crate) clock: Option<Arc<[u32]>>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Barrier {
    pub(crate) waiting: Vec<Waiting>,
    /// Threads arrived so far.
    pub(crate) arrived: u32,
    /// Threads expected, given by the first to arrive.
    pub(crate) expected: u32,
    /// Joined clocks of those who have arrived.
    pub(crate) clock: Vec<u32>,
}

/// The first `bar.arrive` at a barrier in a block, and whether anyone waits there.
#[derive(Debug, Default, Clone)]
pub(crate) struct Signal {
    pub(crate) first: Option<Waiting>,
    pub(crate) is_awaited: bool,
}

/// What the warps of a block share.
pub(crate) struct Env<'l> {
    pub(crate) cx: &'l LaunchCx<'l>,
    pub(crate) block: u64,
    pub(crate) ctaid: [u32; 3],
    pub(crate) shared: Shared,
    pub(crate) barriers: Vec<Barrier>,
    pub(crate) signals: Vec<Signal>,
    pub(crate) counters: Counters,
    pub(crate) findings: Findings,
    /// Nothing more can be learnt from this block.
    pub(crate) abort: bool,
    /// Whether this block has executed a device-wide fence, and whose writes it may read.
    pub(crate) fenced: bool,
    pub(crate) acquired: Acquired,
    /// What the fences of this block's warps have ordered before an atomic, by its space and address.
    pub(crate) handed_over: HashMap<(bool, u64), Vec<u32>>,
    /// Location of the instruction that runs.
    pub(crate) function: u32,
    pub(crate) pc: u32,
    pub(crate) released: Vec<Waiting>,
    /// Whether the host has AVX2 and FMA.
    pub(crate) has_avx2: bool,
}

/// Instructions after which a warp lets others run even if it need not: it may wait for one of them in a loop.
const LONG_TURN: u64 = 1 << 16;

/// Why a warp stopped running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Exited,
    /// Waits at a barrier.
    Blocked,
    /// Its turn is over.
    Preempted,
}

impl Env<'_> {
    pub(crate) fn record(
        &mut self,
        kind: FindingKind,
        warp: &Warp,
        lane: usize,
        address: Option<u64>,
        message: impl FnOnce() -> String,
    ) {
        let at = At {
            function: self.function,
            pc: self.pc,
            block: self.block,
            thread: warp.id * 32 + lane as u32,
        };
        self.findings.record(kind, at, address, message);
        if self.findings.len() >= self.cx.max_findings {
            self.cx.stop.store(true, Relaxed);
            self.abort = true;
        }
    }
}

/// A small generator of pseudo-random numbers (splitmix64): schedules only need to be repeatable.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx2") && has!("fma") && has!("bmi1") && has!("bmi2") && has!("lzcnt") && has!("popcnt")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

/// Runs blocks one after another on one host thread, and keeps the memory between them.
pub(crate) struct Worker<'l> {
    pub(crate) env: Env<'l>,
    warps: Vec<Warp>,
}

impl<'l> Worker<'l> {
    pub(crate) fn new(cx: &'l LaunchCx<'l>) -> Self {
        let [bx, by, bz] = cx.block;
        let threads = bx * by * bz;
        let warps = (0..threads.div_ceil(32))
            .map(|id| {
                let mut warp = Warp { id, ..Warp::default() };
                for l in 0..32 {
                    let t = id * 32 + l as u32;
                    warp.tid[0][l] = t % bx;
                    warp.tid[1][l] = t / bx % by;
                    warp.tid[2][l] = t / (bx * by);
                }
                warp
            })
            .collect();
        let env = Env {
            cx,
            block: 0,
            ctaid: [0; 3],
            shared: Shared::default(),
            barriers: vec![Barrier::default(); 16],
            signals: vec![Signal::default(); 16],
            counters: Counters::default(),
            findings: Findings::default(),
            abort: false,
            fenced: false,
            acquired: Acquired::new(),
            handed_over: HashMap::new(),
            function: cx.kernel,
            pc: 0,
            released: Vec::new(),
            has_avx2: has_avx2(),
        };
        Self { env, warps }
    }

    pub(crate) fn run_block(&mut self, block: u64) {
        let cx = self.env.cx;
        let kernel = &cx.functions[cx.kernel as usize];
        let threads = cx.block.iter().product::<u32>();
        let count = self.warps.len();
        let [gx, gy, _] = cx.grid.map(u64::from);
        let env = &mut self.env;
        env.block = block;
        env.ctaid = [(block % gx) as u32, (block / gx % gy) as u32, (block / (gx * gy)) as u32];
        env.shared.reset(cx.shared_vars, cx.shared_end, cx.shared_cell, count);
        for barrier in &mut env.barriers {
            *barrier = Barrier::default();
        }
        env.signals.fill(Signal::default());
        env.abort = false;
        env.fenced = false;
        env.acquired.clear();
        env.handed_over.clear();
        env.counters.blocks += 1;
        for warp in &mut self.warps {
            let present = match threads - warp.id * 32 {
                n if n >= 32 => !0,
                n => (1 << n) - 1,
            };
            warp.reset(cx.kernel, kernel, present, count);
        }

        let mut ready = vec![true; count];
        // Warps whose turn ended while they could go on, so that others come first.
        let mut passed = vec![false; count];
        let mut rng = match cx.schedule {
            Schedule::Random(seed) => Some(Rng(seed ^ block.wrapping_mul(0x2545_f491_4f6c_dd1d))),
            _ => None,
        };
        loop {
            let candidates = ready.iter().filter(|r| **r).count();
            if candidates == 0 || self.env.abort || cx.stop.load(Relaxed) {
                break;
            }
            if !(0..count).any(|w| ready[w] && !passed[w]) {
                passed.fill(false);
            }
            let mut waits = (0..count).filter(|&w| ready[w] && !passed[w]);
            let pick = match (&cx.schedule, &mut rng) {
                (_, Some(rng)) => waits.nth(rng.below(candidates as u64) as usize),
                (Schedule::LastWarpFirst, _) => waits.next_back(),
                _ => waits.next(),
            };
            let Some(w) = pick else { break };
            let quantum = rng.as_mut().map_or(LONG_TURN, |rng| 1 + rng.below(200));
            match self.env.run_warp(&mut self.warps[w], quantum) {
                Stop::Preempted => passed[w] = rng.is_none(),
                Stop::Blocked | Stop::Exited => ready[w] = false,
            }
            for waiting in std::mem::take(&mut self.env.released) {
                ready[waiting.warp as usize] = true;
                self.env.release(&mut self.warps[waiting.warp as usize], &waiting);
            }
        }
        if !self.env.abort && !cx.stop.load(Relaxed) {
            self.check_stuck();
        }
    }

    /// All warps have exited or wait: those that wait do so for ever.
    fn check_stuck(&mut self) {
        let exited = self.warps.iter().filter(|w| w.frames.is_empty()).count();
        let barriers = std::mem::take(&mut self.env.barriers);
        let kind = if exited > 0 { FindingKind::MissingWarps } else { FindingKind::Deadlock };
        for (id, barrier) in barriers.iter().enumerate() {
            let Some(first) = barrier.waiting.iter().find(|w| w.kind != BarKind::Arrive) else {
                continue;
            };
            let (arrived, expected) = (barrier.arrived, barrier.expected);
            self.env.function = first.function;
            self.env.pc = first.pc;
            let lane = first.mask.trailing_zeros() as usize;
            self.env.record(kind, &self.warps[first.warp as usize], lane, None, || {
                format!(
                    "barrier {id} has {arrived} of {expected} threads, and no other will come: {exited} warp(s) have exited, \
                     the others wait"
                )
            });
        }
        self.env.barriers = barriers;
        // A last arrival without a wait is how pipelines end. One that nobody ever waits for is a mistake.
        for (id, signal) in std::mem::take(&mut self.env.signals).into_iter().enumerate() {
            let Some(first) = signal.first.filter(|_| !signal.is_awaited) else { continue };
            self.env.function = first.function;
            self.env.pc = first.pc;
            let lane = first.mask.trailing_zeros() as usize;
            self.env.record(FindingKind::MissingWarps, &self.warps[first.warp as usize], lane, None, || {
                format!("threads arrive at barrier {id}, and no thread of the block ever waits there")
            });
        }
        self.env.signals.resize(16, Signal::default());
        for warp in &self.warps {
            for at in 0..warp.syncs.len() {
                self.env.waits_in_vain(warp, at, "never come to a bar.warp.sync with this mask");
            }
        }
        if self.env.barriers.iter().all(|b| b.waiting.is_empty()) {
            for warp in self.warps.iter().filter(|w| !w.frames.is_empty() && w.syncs.is_empty()) {
                self.env.record(FindingKind::Deadlock, warp, 0, None, || "a warp can never go on".to_owned());
            }
        }
    }
}
