//! Control flow, barriers and the exchange between lanes.

use super::{Ins, Place};
use crate::error::Result;
use crate::ir::*;
use crate::parser::Operand;

impl<'a> Ins<'_, '_, 'a> {
    pub(super) fn control(&mut self) -> Result<Op> {
        match self.mods[0] {
            "bra" => {
                self.has("uni");
                self.count(1..=1)?;
                let name = self.word(0)?;
                Ok(Op::Bra { target: self.label(name)? })
            }
            "brx" => {
                if !self.has("idx") {
                    return self.bad(".idx is needed");
                }
                self.has("uni");
                self.count(2..=2)?;
                let index = self.src(0, Ty::U32)?;
                let list = self.word(1)?;
                let mut at = Some(self.stmt.scope);
                while let Some(id) = at {
                    let scope = &self.cx.body.scopes[id as usize];
                    if let Some(names) = scope.branch_targets.get(list) {
                        let targets = names.iter().map(|n| self.label(n)).collect::<Result<_>>()?;
                        return Ok(Op::Brx { index, targets });
                    }
                    at = scope.parent;
                }
                self.bad(format!("`{list}` is not a list of targets"))
            }
            "call" => self.call(),
            "ret" => {
                self.has("uni");
                Ok(Op::Ret)
            }
            "exit" => Ok(Op::Exit),
            "trap" | "brkpt" => Ok(Op::Trap),
            "nanosleep" => {
                self.ty()?;
                self.src(0, Ty::U32)?;
                Ok(Op::Nop)
            }
            // Hints to the scheduler.
            "pmevent" => {
                self.has("mask");
                Ok(Op::Nop)
            }
            "griddepcontrol" => {
                if !(self.has("wait") || self.has("launch_dependents")) {
                    return self.unsupported("this form");
                }
                Ok(Op::Nop)
            }
            "setmaxnreg" => {
                for m in ["inc", "dec", "sync", "aligned", "u32"] {
                    self.has(m);
                }
                Ok(Op::Nop)
            }
            "membar" | "fence" => {
                let cta = self.has("cta");
                for m in ["gl", "sys", "gpu", "cluster", "sc", "acq_rel", "acquire", "release"] {
                    self.has(m);
                }
                self.count(0..=0)?;
                Ok(Op::Fence { gpu: !cta })
            }
            "bar" | "barrier" => self.bar(),
            "shfl" => self.shfl(),
            "vote" => {
                let sync = self.has("sync");
                let Some(mode) = self.one_of(&[
                    ("all", VoteMode::All),
                    ("any", VoteMode::Any),
                    ("uni", VoteMode::Uni),
                    ("ballot", VoteMode::Ballot),
                ]) else {
                    return self.bad("no mode given");
                };
                self.ty()?;
                self.count(if sync { 3..=3 } else { 2..=2 })?;
                let operand = self.operand(0)?;
                let d = if mode == VoteMode::Ballot { self.dst(0)? } else { self.pred_dst(operand)? };
                let a = self.pred_src(1)?;
                let mask = if sync { Some(self.src(2, Ty::U32)?) } else { None };
                Ok(Op::Vote { mode, d, a, mask })
            }
            "match" => {
                let Some(all) = self.one_of(&[("any", false), ("all", true)]) else {
                    return self.bad("no mode given");
                };
                self.has("sync");
                let ty = self.ty()?;
                self.count(3..=3)?;
                let (d, p) = self.dst_pair(0)?;
                let d = self.dst_of(d)?;
                let p = match p {
                    Some(p) => self.pred_dst(p)?,
                    None => Reg::Sink,
                };
                Ok(Op::Match { all, bits: ty.bits(), d, p, a: self.src(1, ty)?, mask: self.src(2, Ty::U32)? })
            }
            "redux" => {
                self.has("sync");
                let Some(op) = self.one_of(&[
                    ("add", ReduxOp::Add),
                    ("min", ReduxOp::Min),
                    ("max", ReduxOp::Max),
                    ("and", ReduxOp::And),
                    ("or", ReduxOp::Or),
                    ("xor", ReduxOp::Xor),
                ]) else {
                    return self.bad("no operation given");
                };
                let ty = self.ty()?;
                if !matches!(ty, Ty::U32 | Ty::S32 | Ty::B32) {
                    return self.unsupported(format!("type {ty:?}"));
                }
                self.count(3..=3)?;
                let (d, a) = (self.dst(0)?, self.src(1, ty)?);
                Ok(Op::Redux { op, signed: ty == Ty::S32, d, a, mask: self.src(2, Ty::U32)? })
            }
            "elect" => {
                self.has("sync");
                self.count(2..=2)?;
                let (Operand::Pair(..), (d, Some(p))) = (self.operand(0)?, self.dst_pair(0)?) else {
                    return self.bad("the destination must be d|p");
                };
                let d = self.any_dst(d)?;
                Ok(Op::Elect { d, p: self.pred_dst(p)?, mask: self.src(1, Ty::U32)? })
            }
            "activemask" => {
                self.ty()?;
                self.count(1..=1)?;
                Ok(Op::ActiveMask { d: self.dst(0)? })
            }
            _ => self.unsupported("this instruction is not implemented"),
        }
    }

    fn bar(&mut self) -> Result<Op> {
        let is_bar = self.mods[0] == "bar";
        if self.has("warp") {
            self.has("sync");
            self.count(1..=1)?;
            return Ok(Op::BarWarp { mask: self.src(0, Ty::U32)? });
        }
        self.has("cta");
        let aligned = self.has("aligned") | is_bar;
        if self.has("cluster") {
            return self.unsupported("cluster barriers");
        }
        let kind = if self.has("sync") {
            BarKind::Sync
        } else if self.has("arrive") {
            BarKind::Arrive
        } else if self.has("red") {
            match self.one_of(&[("popc", BarKind::RedPopc), ("and", BarKind::RedAnd), ("or", BarKind::RedOr)])
            {
                Some(kind) => kind,
                None => return self.bad("no reduction given"),
            }
        } else {
            return self.bad("no kind of barrier given");
        };
        let mut d = Reg::Sink;
        let mut p = Src::Imm(0);
        let mut at = 0;
        let red = !matches!(kind, BarKind::Sync | BarKind::Arrive);
        if red {
            self.ty()?;
            let operand = self.operand(0)?;
            d = if kind == BarKind::RedPopc { self.dst(0)? } else { self.pred_dst(operand)? };
            at = 1;
        }
        let id = self.src(at, Ty::U32)?;
        at += 1;
        let rest = self.stmt.operands.len() - at;
        if rest > 1 + usize::from(red) || (red && rest == 0) {
            return self.bad("number of operands");
        }
        let has_count = rest > usize::from(red);
        let count = if has_count { Some(self.src(at, Ty::U32)?) } else { None };
        if red {
            p = self.pred_src(at + usize::from(has_count))?;
        }
        if kind == BarKind::Arrive && count.is_none() {
            return self.bad("arrive needs a thread count");
        }
        Ok(Op::Bar { kind, aligned, id, count, d, p })
    }

    fn shfl(&mut self) -> Result<Op> {
        let sync = self.has("sync");
        let Some(mode) = self.one_of(&[
            ("up", ShflMode::Up),
            ("down", ShflMode::Down),
            ("bfly", ShflMode::Bfly),
            ("idx", ShflMode::Idx),
        ]) else {
            return self.bad("no mode given");
        };
        let ty = self.ty()?;
        if ty.bytes() != 4 {
            return self.unsupported(format!("type {ty:?}"));
        }
        self.count(if sync { 5..=5 } else { 4..=4 })?;
        let (d, p) = self.dst_pair(0)?;
        let d = self.dst_of(d)?;
        let p = match p {
            Some(p) => self.pred_dst(p)?,
            None => Reg::Sink,
        };
        let (a, b, c) = (self.src(1, ty)?, self.src(2, Ty::U32)?, self.src(3, Ty::U32)?);
        let mask = if sync { Some(self.src(4, Ty::U32)?) } else { None };
        Ok(Op::Shfl { mode, d, p, a, b, c, mask })
    }

    fn call(&mut self) -> Result<Op> {
        self.has("uni");
        let operands = &self.stmt.operands;
        let mut at = 0;
        let mut list = |this: &Self| -> Result<Option<Vec<(u32, u32)>>> {
            let Some(Operand::Tuple(names)) = operands.get(at) else {
                return Ok(None);
            };
            at += 1;
            names
                .iter()
                .map(|o| match o {
                    Operand::Word(w) => match this.cx.frame_var(w, this.stmt.scope) {
                        Some(var) => Ok(var),
                        None => this.bad(format!("`{w}` is not a .param of this scope")),
                    },
                    _ => this.bad("call parameters must be .param variables"),
                })
                .collect::<Result<Vec<_>>>()
                .map(Some)
        };
        let rets = list(self)?.unwrap_or_default();
        let target_at = usize::from(matches!(operands.first(), Some(Operand::Tuple(_))));
        let target = self.word(target_at)?;
        let args = match operands.get(target_at + 1) {
            Some(Operand::Tuple(names)) => names
                .iter()
                .map(|o| match o {
                    Operand::Word(w) => match self.cx.frame_var(w, self.stmt.scope) {
                        Some(var) => Ok(var),
                        None => self.bad(format!("`{w}` is not a .param of this scope")),
                    },
                    _ => self.bad("call parameters must be .param variables"),
                })
                .collect::<Result<Vec<_>>>()?,
            _ => Vec::new(),
        };
        let target = match self.cx.reg(target, self.stmt.scope, self.stmt.line)? {
            Some(Reg::W64(r)) => {
                self.cx.out.calls_indirect = true;
                CallTarget::Indirect(Src::W64(r))
            }
            Some(_) => return self.bad("call through a register that holds no address"),
            None => match self.cx.place(target, self.stmt.scope) {
                Some(Place::Function(index)) => {
                    let signature = &self.cx.module.frames[index as usize];
                    if signature.rets != rets.len() || signature.params != args.len() {
                        return self.bad(format!(
                            "`{target}` takes {} arguments, got {}",
                            signature.params,
                            args.len()
                        ));
                    }
                    self.cx.out.calls.push(index);
                    CallTarget::Function(index)
                }
                Some(Place::Printf) => CallTarget::Printf,
                Some(Place::AssertFail) => CallTarget::AssertFail,
                // It matters only if a kernel comes to it: the destructor of a class with virtual ones calls `free`.
                Some(Place::Missing) => CallTarget::Missing(target.to_owned()),
                _ => return self.unsupported(format!("`{target}` is not a function with a body")),
            },
        };
        Ok(Op::Call(Box::new(Call { target, rets, args })))
    }
}
