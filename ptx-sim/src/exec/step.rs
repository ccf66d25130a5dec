//! The main loop: one warp until it blocks, exits or its turn is over.

use std::sync::atomic::Ordering::Relaxed;

use super::barrier::{BarArgs, Meeting};
use super::block::{Env, Stop};
use super::value::{LANES, Lanes, V32, V64, mask_of};
use super::warp::{Group, Warp};
use crate::error::FindingKind;
use crate::ir::*;
use crate::memory::FUNCTION_WINDOW;
use crate::module::MAX_REGISTER_BYTES;

/// Deepest nesting of calls.
const MAX_FRAMES: usize = 256;

/// Bytes of a new frame, in all lanes, that take about as long as an instruction.
const CLEARED_IN_A_STEP: u64 = 1 << 10;

/// What an instruction does to the control flow.
enum Flow {
    Next,
    /// The groups of the warp were rearranged.
    Regroup,
    /// Waits at a barrier.
    Wait,
}

impl Env<'_> {
    pub(crate) fn run_warp(&mut self, warp: &mut Warp, quantum: u64) -> Stop {
        let last_step = warp.steps.saturating_add(quantum);
        loop {
            let Some(frame) = warp.frames.last_mut() else {
                return Stop::Exited;
            };
            let yields = |g: &Group| g.mask & warp.yielding != 0;
            let able = frame.groups.iter().enumerate().filter(|(_, g)| !g.parked);
            let next = able.min_by_key(|(_, g)| (yields(g), g.order));
            let Some((at, _)) = next else {
                if frame.groups.is_empty() {
                    self.leave_function(warp);
                    continue;
                }
                return Stop::Blocked;
            };
            match self.run_group(warp, at, last_step) {
                Some(stop) => return stop,
                None => continue,
            }
        }
    }

    /// Runs a group to the end of its block, or to where it must wait.
    fn run_group(&mut self, warp: &mut Warp, at: usize, last_step: u64) -> Option<Stop> {
        let frame = &warp.frames[warp.frames.len() - 1];
        let function = &self.cx.functions[frame.function as usize];
        self.function = frame.function;
        let Group { mut pc, mask, .. } = frame.groups[at];
        loop {
            let inst = &function.code[pc as usize];
            self.pc = pc;
            let mut m = mask;
            if let Some(guard) = inst.guard {
                let (holds, undef) = warp.pred(&Src::Pred(guard.pred, guard.negate));
                if undef & mask != 0 {
                    let lane = (undef & mask).trailing_zeros() as usize;
                    self.record(FindingKind::UninitializedRegister, warp, lane, None, || {
                        "the predicate that decides here was never written".to_owned()
                    });
                }
                m &= holds;
            }
            if !matches!(inst.op, Op::Goto { .. }) {
                warp.steps += 1;
                self.counters.warp_instructions += 1;
                self.counters.thread_instructions += u64::from(m.count_ones());
                self.counters.by_class[inst.class as usize] += 1;
            }
            let flow = self.execute(warp, inst, pc, m, mask, at);
            if self.abort {
                return Some(Stop::Blocked);
            }
            match flow {
                Flow::Next => {
                    pc += 1;
                    if warp.steps >= last_step {
                        let top = warp.frames.len() - 1;
                        warp.frames[top].groups[at].pc = pc;
                        return Some(Stop::Preempted);
                    }
                }
                Flow::Regroup => {
                    if warp.steps >= self.cx.step_limit {
                        let limit = self.cx.step_limit;
                        self.record(
                            FindingKind::RunawayLoop,
                            warp,
                            mask.trailing_zeros() as usize,
                            None,
                            || format!("the warp has run {limit} instructions, the limit"),
                        );
                        // Other blocks would run as long, one after another.
                        self.cx.stop.store(true, Relaxed);
                        self.abort = true;
                        return Some(Stop::Blocked);
                    }
                    if self.cx.stop.load(Relaxed) {
                        self.abort = true;
                        return Some(Stop::Blocked);
                    }
                    return if warp.steps >= last_step { Some(Stop::Preempted) } else { None };
                }
                Flow::Wait => {
                    self.stand_at(warp, at, pc + 1);
                    let top = warp.frames.len() - 1;
                    let group = &mut warp.frames[top].groups[at];
                    group.parked = m != 0;
                    // Lanes whose guard does not hold go on alone.
                    if m != mask {
                        group.mask = m;
                        let rest = Group { mask: mask & !m, parked: false, ..*group };
                        warp.frames[top].groups.push(rest);
                    }
                    return None;
                }
            }
        }
    }

    /// Group `at` goes on there.
    fn stand_at(&self, warp: &mut Warp, at: usize, pc: u32) {
        let top = warp.frames.len() - 1;
        let frame = &mut warp.frames[top];
        frame.groups[at].pc = pc;
        let order = self.cx.functions[frame.function as usize].order[pc as usize];
        if order != u32::MAX {
            frame.groups[at].order = order;
        }
    }

    /// Sends lanes of group `at` to other blocks, and joins them with the lanes that wait there.
    fn regroup(&self, warp: &mut Warp, at: usize, targets: &[(u32, u32)]) {
        let top = warp.frames.len() - 1;
        let frame = &mut warp.frames[top];
        let order = &self.cx.functions[frame.function as usize].order;
        frame.groups.swap_remove(at);
        for &(pc, mask) in targets {
            if mask == 0 {
                continue;
            }
            match frame.groups.iter_mut().find(|g| g.pc == pc && !g.parked) {
                Some(group) => group.mask |= mask,
                None => frame.groups.push(Group { pc, order: order[pc as usize], mask, parked: false }),
            }
        }
    }

    fn branch(&mut self, warp: &mut Warp, at: usize, pc: u32, target: u32, m: u32, mask: u32) -> Flow {
        self.counters.branches += 1;
        if m != 0 && m != mask {
            self.counters.divergent_branches += 1;
        }
        // The common case by itself: all lanes go the same way, and nobody waits anywhere.
        let top = warp.frames.len() - 1;
        let frame = &mut warp.frames[top];
        if frame.groups.len() == 1 && (m == mask || m == 0) {
            let pc = if m == 0 { pc + 1 } else { target };
            let order = self.cx.functions[frame.function as usize].order[pc as usize];
            frame.groups[0] = Group { pc, order, mask, parked: false };
            return Flow::Regroup;
        }
        self.regroup(warp, at, &[(target, m), (pc + 1, mask & !m)]);
        Flow::Regroup
    }

    fn execute(&mut self, warp: &mut Warp, inst: &Inst, pc: u32, m: u32, mask: u32, at: usize) -> Flow {
        match &inst.op {
            Op::Goto { target } => {
                let top = warp.frames.len() - 1;
                if warp.frames[top].groups.len() == 1 {
                    let order = self.cx.functions[warp.frames[top].function as usize].order[*target as usize];
                    warp.frames[top].groups[0] = Group { pc: *target, order, mask, parked: false };
                } else {
                    self.regroup(warp, at, &[(*target, mask)]);
                }
                return Flow::Regroup;
            }
            Op::Bra { target } => return self.branch(warp, at, pc, *target, m, mask),
            Op::Brx { index, targets } => {
                let index = self.src32(warp, index);
                self.undefined(warp, index.undef & m, "branch index");
                self.counters.branches += 1;
                let mut list: Vec<(u32, u32)> = vec![(pc + 1, mask & !m)];
                for l in Lanes(m) {
                    let Some(&target) = targets.get(index.v[l] as usize) else {
                        let (got, n) = (index.v[l], targets.len());
                        self.record(FindingKind::InvalidOperand, warp, l, None, || {
                            format!("branch index {got} of a list of {n}")
                        });
                        self.abort = true;
                        return Flow::Regroup;
                    };
                    list.push((target, 1 << l));
                }
                let guarded = m != 0 && m != mask;
                if guarded || list.windows(2).skip(1).any(|w| w[0].0 != w[1].0) {
                    self.counters.divergent_branches += 1;
                }
                self.regroup(warp, at, &list);
                return Flow::Regroup;
            }
            Op::Ret | Op::Exit => {
                if matches!(inst.op, Op::Exit) || warp.frames.len() == 1 {
                    warp.live &= !m;
                    self.exited(warp, m);
                }
                self.regroup(warp, at, &[(pc + 1, mask & !m)]);
                return Flow::Regroup;
            }
            Op::Trap => {
                if m != 0 {
                    self.record(FindingKind::Trap, warp, m.trailing_zeros() as usize, None, || {
                        "the kernel executes a trap".to_owned()
                    });
                    self.abort = true;
                }
                self.regroup(warp, at, &[(pc + 1, mask & !m)]);
                return Flow::Regroup;
            }
            _ if m == 0 => return Flow::Next,
            Op::Call(call) => return self.call(warp, call, pc, m, mask, at),
            Op::Bar { kind, aligned, id, count, d, p } => {
                let args = BarArgs { kind: *kind, aligned: *aligned, id, count: count.as_ref(), d: *d, p };
                if self.bar(warp, &args, m) {
                    return Flow::Wait;
                }
            }
            Op::BarWarp { mask: named } => {
                // Those who wake join this group if they stand where it does.
                self.stand_at(warp, at, pc + 1);
                match self.bar_warp(warp, named, m) {
                    Meeting::Complete => {}
                    Meeting::WakesOthers => return Flow::Regroup,
                    Meeting::Waits => return Flow::Wait,
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `has_avx2` is set only where the CPU has every feature that the function is compiled for.
            _ if self.has_avx2 => unsafe { self.plain_avx2(warp, inst, m) },
            _ => self.plain(warp, inst, m),
        }
        Flow::Next
    }

    /// `plain`, with its loops over lanes compiled for AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    fn plain_avx2(&mut self, warp: &mut Warp, inst: &Inst, m: u32) {
        self.plain(warp, inst, m);
    }

    /// Instructions that go on to the next one.
    #[inline(always)]
    fn plain(&mut self, warp: &mut Warp, inst: &Inst, m: u32) {
        match &inst.op {
            Op::Int { op, ty, d, a, b, c } => self.int(warp, *op, *ty, *d, [a, b, c], m),
            Op::Float { op, ty, mode, d, a, b, c } => {
                if matches!(
                    op,
                    FloatOp::Add
                        | FloatOp::Sub
                        | FloatOp::Mul
                        | FloatOp::Fma
                        | FloatOp::Div
                        | FloatOp::Min
                        | FloatOp::Max
                ) {
                    let each = if *op == FloatOp::Fma { 2 } else { 1 };
                    let packed = if matches!(ty, Ty::F16x2 | Ty::Bf16x2 | Ty::F32x2) { 2 } else { 1 };
                    self.counters.flops += u64::from(m.count_ones() * each * packed);
                }
                self.float(warp, *op, *ty, *mode, *d, [a, b, c], m);
            }
            Op::Mov { bits, d, a } => {
                let undef = if *bits == 64 {
                    let v = self.src64(warp, a);
                    warp.put64(*d, &v, m);
                    v.undef
                } else {
                    let v = self.src32(warp, a);
                    warp.put32(*d, &v, m);
                    v.undef
                };
                if undef & m != 0 && matches!((a, d), (Src::W64(_), Reg::W64(_)) | (Src::W32(_), Reg::W32(_)))
                {
                    warp.put_halves(*d, warp.undef_halves(a), m);
                }
            }
            Op::Ld { access, dst } => self.load(warp, access, dst, m),
            Op::St { access, src } => self.store(warp, access, src, m),
            Op::Setp { cmp, ty, ftz, d, d2, a, b, combine } => {
                let (holds, undef) = self.compare(warp, *cmp, *ty, *ftz, a, b);
                let (c, undef_c) = match combine {
                    Some((_, p)) => warp.pred(p),
                    None => (0, 0),
                };
                let join = |v: u32| match combine {
                    None => v,
                    Some((BoolOp::And, _)) => v & c,
                    Some((BoolOp::Or, _)) => v | c,
                    Some((BoolOp::Xor, _)) => v ^ c,
                };
                if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
                    let (high, _) = self.compare_high(warp, *cmp, *ty, *ftz, a, b);
                    warp.put_pred(*d, join(holds), undef | undef_c, m);
                    warp.put_pred(*d2, join(high), undef | undef_c, m);
                } else {
                    warp.put_pred(*d, join(holds), undef | undef_c, m);
                    warp.put_pred(*d2, join(!holds), undef | undef_c, m);
                }
            }
            Op::Set { cmp, ty, to, ftz, d, a, b, combine } => {
                let (mut holds, mut undef) = self.compare(warp, *cmp, *ty, *ftz, a, b);
                let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
                let mut high = if packed { self.compare_high(warp, *cmp, *ty, *ftz, a, b).0 } else { 0 };
                if let Some((op, p)) = combine {
                    let (c, undef_c) = warp.pred(p);
                    undef |= undef_c;
                    let combined = |holds: u32| match op {
                        BoolOp::And => holds & c,
                        BoolOp::Or => holds | c,
                        BoolOp::Xor => holds ^ c,
                    };
                    holds = combined(holds);
                    high = if packed { combined(high) } else { 0 };
                }
                let yes: u32 = match to {
                    Ty::F32 => 1.0f32.to_bits(),
                    Ty::F16 | Ty::F16x2 => 0x3c00,
                    Ty::Bf16 | Ty::Bf16x2 => 0x3f80,
                    Ty::U16 | Ty::S16 => 0xffff,
                    _ if packed => 0xffff,
                    _ => !0,
                };
                let mut v = V32 { v: [0; LANES], undef };
                for l in 0..LANES {
                    v.v[l] = if holds >> l & 1 != 0 { yes } else { 0 }
                        | if high >> l & 1 != 0 { yes << 16 } else { 0 };
                }
                warp.put32(*d, &v, m);
            }
            Op::Pred { op, d, a, b } => {
                let ((a, ua), (b, ub)) = (warp.pred(a), warp.pred(b));
                let v = match op {
                    PredOp::And => a & b,
                    PredOp::Or => a | b,
                    PredOp::Xor => a ^ b,
                    PredOp::Not => !a,
                    PredOp::Mov => a,
                };
                // A known operand can decide alone.
                let undef = match op {
                    PredOp::And => (ua | ub) & (ua | a) & (ub | b),
                    PredOp::Or => (ua | ub) & (ua | !a) & (ub | !b),
                    _ => ua | ub,
                };
                warp.put_pred(*d, v, undef, m);
            }
            Op::Selp { bits, d, a, b, p } => {
                let (p, undef) = warp.pred(p);
                if *bits == 64 {
                    let (a, b) = (self.src64(warp, a), self.src64(warp, b));
                    let mut v = a;
                    for l in 0..LANES {
                        v.v[l] = if p >> l & 1 != 0 { a.v[l] } else { b.v[l] };
                    }
                    v.undef = undef | a.undef & p | b.undef & !p;
                    warp.put64(*d, &v, m);
                } else {
                    let (a, b) = (self.src32(warp, a), self.src32(warp, b));
                    let mut v = a;
                    for l in 0..LANES {
                        v.v[l] = if p >> l & 1 != 0 { a.v[l] } else { b.v[l] };
                    }
                    v.undef = undef | a.undef & p | b.undef & !p;
                    warp.put32(*d, &v, m);
                }
            }
            Op::Slct { bits, cond, ftz, d, a, b, c } => {
                let (holds, undef) = self.compare(warp, Cmp::Ge, *cond, *ftz, c, &Src::Imm(0));
                if *bits == 64 {
                    let (a, b) = (self.src64(warp, a), self.src64(warp, b));
                    let v = std::array::from_fn(|l| if holds >> l & 1 != 0 { a.v[l] } else { b.v[l] });
                    warp.put64(*d, &V64 { v, undef: undef | a.undef | b.undef }, m);
                } else {
                    let (a, b) = (self.src32(warp, a), self.src32(warp, b));
                    let v = std::array::from_fn(|l| if holds >> l & 1 != 0 { a.v[l] } else { b.v[l] });
                    warp.put32(*d, &V32 { v, undef: undef | a.undef | b.undef }, m);
                }
            }
            Op::TestP { test, ty, d, a } => self.testp(warp, *test, *ty, *d, a, m),
            Op::Bfi { wide, d, a, b, pos, len } => self.bfi(warp, *wide, *d, [a, b, pos, len], m),
            Op::Carry { op, ty, carry_in, carry_out, d, a, b, c } => {
                self.carry(warp, *op, *ty, (*carry_in, *carry_out), *d, [a, b, c], m);
            }
            Op::Cvt { to, from, mode, d, a } => self.cvt(warp, *to, *from, *mode, *d, a, m),
            Op::CvtPair { to, mode, d, a, b } => self.cvt_pair(warp, *to, *mode, *d, a, b, m),
            Op::Pack { part_bits, d, parts } => {
                let mut v = V64::splat(0);
                let mut halves = [0; 2];
                for (i, part) in parts.iter().enumerate() {
                    let part = self.src64(warp, part);
                    halves[2 * i / parts.len()] |= part.undef;
                    let mask = (1u64 << part_bits) - 1;
                    for l in 0..LANES {
                        v.v[l] |= (part.v[l] & mask) << (i as u32 * part_bits);
                    }
                    v.undef |= part.undef;
                }
                warp.put64(*d, &v, m);
                let fills = part_bits * parts.len() as u32 == if matches!(d, Reg::W64(_)) { 64 } else { 32 };
                if v.undef & m != 0 && fills {
                    warp.put_halves(*d, halves, m);
                }
            }
            Op::Unpack { part_bits, parts, a } => {
                let v = self.src64(warp, a);
                let fills = part_bits * parts.len() as u32 == if matches!(a, Src::W64(_)) { 64 } else { 32 };
                let halves = if fills { warp.undef_halves(a) } else { [v.undef; 2] };
                for (i, part) in parts.iter().enumerate() {
                    let mask = (1u64 << part_bits) - 1;
                    let undef = halves[2 * i / parts.len()];
                    let out = V64 { v: v.v.map(|v| v >> (i as u32 * part_bits) & mask), undef };
                    warp.put64(*part, &out, m);
                }
            }
            Op::Atom { access, op, d, b, c, sync } => self.atom(warp, access, *op, *d, b, c, *sync, m),
            Op::IsSpace { space, d, a } => {
                let a = self.src64(warp, a);
                let holds = mask_of(|l| self.is_in(*space, a.v[l]));
                warp.put_pred(*d, holds, a.undef, m);
            }
            Op::Cvta { space, to_space, d, a } => {
                let a = self.src64(warp, a);
                let base = super::mem::window(*space);
                let v = a.v.map(|v| if *to_space { v.wrapping_sub(base) } else { v.wrapping_add(base) });
                warp.put64(*d, &V64 { v, undef: a.undef }, m);
            }
            Op::CpAsync { bytes, dst, src, src_size, ignore } => {
                self.cp_async(warp, *bytes, dst, src, src_size.as_ref(), ignore.as_ref(), m);
            }
            Op::CpCommit => Lanes(m).for_each(|l| warp.committed[l] += 1),
            Op::CpWait { keep } => self.cp_wait(warp, Some(*keep), m),
            Op::CpWaitAll => self.cp_wait(warp, None, m),
            Op::Ldmatrix { count, trans, d, addr } => self.ldmatrix(warp, *count, *trans, d, addr, m),
            Op::Stmatrix { count, trans, addr, a } => self.stmatrix(warp, *count, *trans, addr, a, m),
            Op::Movmatrix { d, a } => self.movmatrix(warp, *d, a, m),
            Op::Mma(mma) => self.mma(warp, mma, m),
            Op::Shfl { mode, d, p, a, b, c, mask } => {
                self.shfl(warp, *mode, (*d, *p), [a, b, c], mask.as_ref(), m)
            }
            Op::Vote { mode, d, a, mask } => self.vote(warp, *mode, *d, a, mask.as_ref(), m),
            Op::Match { all, bits, d, p, a, mask } => self.match_any(warp, *all, *bits, (*d, *p), a, mask, m),
            Op::Redux { op, signed, d, a, mask } => self.redux(warp, *op, *signed, *d, a, mask, m),
            Op::Elect { d, p, mask } => {
                self.warp_mask(warp, Some(mask), m);
                let leader = m.trailing_zeros();
                warp.put32(*d, &V32::splat(leader), m);
                warp.put_pred(*p, 1 << leader, 0, m);
            }
            Op::ActiveMask { d } => warp.put32(*d, &V32::splat(m), m),
            Op::Fence { gpu } => {
                self.fenced |= gpu;
                warp.acquire();
                warp.release();
            }
            Op::Nop => {}
            // Control flow is handled before.
            Op::Bra { .. }
            | Op::Brx { .. }
            | Op::Call(_)
            | Op::Ret
            | Op::Exit
            | Op::Trap
            | Op::Goto { .. }
            | Op::Bar { .. }
            | Op::BarWarp { .. } => {}
        }
    }

    /// Reports lanes of an undefined operand.
    #[inline(always)]
    pub(crate) fn undefined(&mut self, warp: &Warp, undef: u32, what: &str) {
        if undef != 0 {
            self.record(
                FindingKind::UninitializedRegister,
                warp,
                undef.trailing_zeros() as usize,
                None,
                || format!("{what} comes from a register that was never written"),
            );
        }
    }

    fn call(&mut self, warp: &mut Warp, call: &Call, pc: u32, m: u32, mask: u32, at: usize) -> Flow {
        let lane = m.trailing_zeros() as usize;
        let index = match &call.target {
            CallTarget::Function(index) => *index,
            CallTarget::Indirect(src) => {
                let v = self.src64(warp, src);
                self.undefined(warp, v.undef & m, "the function called");
                let address = v.v[lane];
                let index = address.wrapping_sub(FUNCTION_WINDOW) / 16;
                let known = address >= FUNCTION_WINDOW
                    && address.is_multiple_of(16)
                    && index < self.cx.functions.len() as u64;
                let callee = if known { self.cx.functions.get(index as usize) } else { None };
                let fits = callee.is_some_and(|f| {
                    !f.is_entry
                        && !f.code.is_empty()
                        && f.params.len() == call.args.len()
                        && f.rets.len() == call.rets.len()
                });
                if !fits {
                    self.record(FindingKind::InvalidOperand, warp, lane, Some(address), || {
                        "call of an address that is no function with these parameters".to_owned()
                    });
                    self.abort = true;
                    return Flow::Regroup;
                }
                // Lanes with other targets call again, after these have returned.
                let same = m & mask_of(|l| v.v[l] == address);
                self.regroup(warp, at, &[(pc, m & !same), (pc + 1, mask & !(m & !same))]);
                return self.enter(warp, call, index as u32, same);
            }
            CallTarget::Printf => {
                if let Some(&(offset, size)) = call.rets.first() {
                    let base = warp.frames[warp.frames.len() - 1].local;
                    warp.mark_local(m, base + offset, size, super::shared::WRITTEN);
                    for l in Lanes(m) {
                        let at = l * warp.local_stride + (base + offset) as usize;
                        warp.local[at..at + size as usize].fill(0);
                    }
                }
                return Flow::Next;
            }
            CallTarget::Missing(_) => {
                let _ = self.cx.missing.set((self.function, self.pc));
                self.cx.stop.store(true, Relaxed);
                self.abort = true;
                return Flow::Next;
            }
            CallTarget::AssertFail => {
                self.record(FindingKind::Trap, warp, lane, None, || {
                    "a device-side assertion failed".to_owned()
                });
                self.abort = true;
                return Flow::Next;
            }
        };
        let top = warp.frames.len() - 1;
        warp.frames[top].groups[at].pc = pc + 1;
        self.enter(warp, call, index, m)
    }

    /// Starts a function in the lanes of `m`; their group already stands behind the call.
    fn enter(&mut self, warp: &mut Warp, call: &Call, index: u32, m: u32) -> Flow {
        let callee = &self.cx.functions[index as usize];
        let top = warp.frames.len() - 1;
        let caller = &warp.frames[top];
        let from = caller.local;
        let frame_bytes = self.cx.functions[caller.function as usize].frame_bytes;
        let local = (from + frame_bytes).next_multiple_of(16);
        let registers =
            warp.r32.len() + callee.regs32 as usize + 2 * (warp.r64.len() + callee.regs64 as usize);
        let warps = self.cx.block.iter().product::<u32>().div_ceil(32);
        let register_bytes = 128 * registers as u64 * u64::from(warps);
        let full = local + callee.frame_bytes > self.cx.local_limit || register_bytes > MAX_REGISTER_BYTES;
        if top + 1 >= MAX_FRAMES || full {
            let name = &callee.name;
            self.record(FindingKind::StackOverflow, warp, m.trailing_zeros() as usize, None, || {
                format!(
                    "call of `{name}` at depth {top}, with {local} bytes of local memory and {registers} registers"
                )
            });
            self.abort = true;
            return Flow::Regroup;
        }
        let rets = callee
            .rets
            .iter()
            .zip(&call.rets)
            .map(|(ret, &(to, size))| (local + ret.offset, from + to, size.min(ret.size)))
            .collect();
        warp.push_frame(index, callee, m, rets, local);
        // Large frames take their time to be cleared.
        warp.steps += u64::from(callee.frame_bytes) * u64::from(m.count_ones()) / CLEARED_IN_A_STEP;
        // The manual: calls do not preserve the carry flag.
        warp.undef_carry |= m;
        for (param, &(at, size)) in callee.params.iter().zip(&call.args) {
            warp.copy_local(m, from + at, local + param.offset, size.min(param.size));
        }
        Flow::Regroup
    }

    fn leave_function(&mut self, warp: &mut Warp) {
        let Some(frame) = warp.pop_frame() else {
            return;
        };
        let returned = frame.mask & warp.live;
        warp.undef_carry |= returned;
        for (from, to, size) in frame.rets {
            warp.copy_local(returned, from, to, size);
        }
        let live = warp.live;
        if let Some(top) = warp.frames.last_mut() {
            for group in &mut top.groups {
                group.mask &= live;
            }
            top.groups.retain(|g| g.mask != 0);
        }
    }

    #[inline(always)]
    pub(crate) fn src32(&self, warp: &Warp, src: &Src) -> V32 {
        match *src {
            Src::W32(r) => {
                let at = warp.base32 + r as usize;
                V32 { v: warp.r32[at], undef: warp.undef32[at] }
            }
            Src::Imm(v) => V32::splat(v as u32),
            Src::W64(_) => self.src64(warp, src).narrow(),
            Src::Special(s) => self.special(warp, s),
            Src::Pred(..) => V32::splat(0),
        }
    }

    #[inline(always)]
    pub(crate) fn src64(&self, warp: &Warp, src: &Src) -> V64 {
        match *src {
            Src::W64(r) => {
                let at = warp.base64 + r as usize;
                V64 { v: warp.r64[at], undef: warp.undef64[at] }
            }
            Src::Imm(v) => V64::splat(v),
            Src::W32(r) => {
                let at = warp.base32 + r as usize;
                V64 { v: warp.r32[at].map(u64::from), undef: warp.undef32[at] }
            }
            Src::Special(Special::Clock) => V64::splat(warp.steps),
            Src::Special(s) => V64 { v: self.special(warp, s).v.map(u64::from), undef: 0 },
            Src::Pred(..) => V64::splat(0),
        }
    }

    fn special(&self, warp: &Warp, s: Special) -> V32 {
        let lanes = |f: fn(u32) -> u32| V32 { v: std::array::from_fn(|l| f(l as u32)), undef: 0 };
        V32::splat(match s {
            Special::Tid(a) => {
                return V32 { v: warp.tid[a as usize], undef: 0 };
            }
            Special::LaneId => return lanes(|l| l),
            Special::LaneMaskEq => return lanes(|l| 1 << l),
            Special::LaneMaskLt => return lanes(|l| (1 << l) - 1),
            Special::LaneMaskLe => return lanes(|l| (2u64 << l).wrapping_sub(1) as u32),
            Special::LaneMaskGe => return lanes(|l| !0 << l),
            Special::LaneMaskGt => return lanes(|l| (!0u64 << (l + 1)) as u32),
            Special::Ntid(a) => self.cx.block[a as usize],
            Special::Ctaid(a) => self.ctaid[a as usize],
            Special::Nctaid(a) => self.cx.grid[a as usize],
            Special::WarpId => warp.id,
            Special::NwarpId => warp.clock.len() as u32,
            Special::SmId | Special::GridId | Special::ClockHi | Special::Zero => 0,
            Special::NsmId | Special::One => 1,
            Special::Clock => warp.steps as u32,
            Special::DynamicSmem => self.cx.dynamic_bytes,
            Special::TotalSmem => self.cx.dynamic_bytes + self.cx.static_bytes,
            Special::DynamicBase(offset) => self.cx.dynamic_base.wrapping_add(offset),
            Special::Frame(offset) => warp.frames.last().map_or(0, |f| f.local).wrapping_add(offset),
        })
    }
}

impl Warp {
    /// Copies between two places of local memory, with the state of the bytes.
    fn copy_local(&mut self, mask: u32, from: u32, to: u32, len: u32) {
        for l in Lanes(mask) {
            let base = l * self.local_stride;
            let (from, to, len) = (base + from as usize, base + to as usize, len as usize);
            self.local.copy_within(from..from + len, to);
            self.local_state.copy_within(from..from + len, to);
        }
    }
}
