//! Floating-point arithmetic, comparisons and selections.

use super::Ins;
use crate::error::Result;
use crate::ir::*;

const UNUSED: Src = Src::Imm(0);

const ROUND: &[(&str, Round)] =
    &[("rn", Round::Nearest), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];

impl Ins<'_, '_, '_> {
    pub(super) fn float(&mut self) -> Result<Op> {
        use Ty::*;
        let base = self.mods[0];
        if base == "testp" {
            return self.testp();
        }
        let round = self.one_of(ROUND);
        let (approx, full) = (self.has("approx"), self.has("full"));
        let mode = FloatMode {
            round: round.unwrap_or(Round::Nearest),
            ftz: self.has("ftz"),
            sat: self.has("sat"),
            relu: self.has("relu"),
            nan: self.has("NaN"),
            xorsign: self.has("xorsign"),
            approx,
        };
        if mode.xorsign && !self.has("abs") {
            return self.bad(".xorsign needs .abs");
        }
        let ty = self.ty()?;
        let (f16, bf16) = (matches!(ty, F16 | F16x2), matches!(ty, Bf16 | Bf16x2));
        let half = f16 || bf16;
        let (op, operands) = match base {
            "add" => (FloatOp::Add, 2),
            "sub" => (FloatOp::Sub, 2),
            "mul" => (FloatOp::Mul, 2),
            "fma" | "mad" => (FloatOp::Fma, 3),
            "div" => (FloatOp::Div, 2),
            "rcp" => (FloatOp::Rcp, 1),
            "sqrt" => (FloatOp::Sqrt, 1),
            "rsqrt" => (FloatOp::Rsqrt, 1),
            "sin" => (FloatOp::Sin, 1),
            "cos" => (FloatOp::Cos, 1),
            "lg2" => (FloatOp::Lg2, 1),
            "ex2" => (FloatOp::Ex2, 1),
            "tanh" => (FloatOp::Tanh, 1),
            "abs" => (FloatOp::Abs, 1),
            "neg" => (FloatOp::Neg, 1),
            "min" => (FloatOp::Min, 2),
            "max" => (FloatOp::Max, 2),
            "copysign" => (FloatOp::CopySign, 2),
            _ => return self.unsupported("this instruction is not implemented"),
        };
        let fits = match op {
            FloatOp::Div => matches!(ty, F32 | F64) && (round.is_some() || ((approx || full) && ty == F32)),
            FloatOp::Rcp | FloatOp::Sqrt if round.is_some() => matches!(ty, F32 | F64),
            FloatOp::Rcp => approx && (ty == F32 || ty == F64 && mode.ftz),
            FloatOp::Sqrt => approx && ty == F32,
            FloatOp::Rsqrt => matches!(ty, F32 | F64) && approx,
            FloatOp::Sin | FloatOp::Cos | FloatOp::Lg2 => ty == F32 && approx,
            FloatOp::Ex2 => approx && (ty == F32 || f16 && !mode.ftz || bf16 && mode.ftz),
            FloatOp::Tanh => approx && (ty == F32 || half),
            FloatOp::Fma => round.is_some() && (base == "fma" || matches!(ty, F32 | F64)),
            FloatOp::CopySign => matches!(ty, F32 | F64),
            FloatOp::Min | FloatOp::Max | FloatOp::Abs | FloatOp::Neg => ty != F32x2,
            FloatOp::Add | FloatOp::Sub | FloatOp::Mul => true,
        };
        if !fits || matches!(ty, Tf32) || !(ty.is_float() || half || ty == F32x2) {
            return self.unsupported(format!("this form for type {ty:?}"));
        }
        if half && !matches!(mode.round, Round::Nearest) {
            return self.unsupported("a rounding mode for half precision");
        }
        // A modifier that would be dropped without a word is refused.
        let sum = matches!(op, FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Fma);
        let quotient = matches!(op, FloatOp::Div | FloatOp::Rcp | FloatOp::Sqrt);
        let extreme = matches!(op, FloatOp::Min | FloatOp::Max);
        let flushes = match op {
            FloatOp::CopySign | FloatOp::Tanh => false,
            FloatOp::Ex2 => true,
            FloatOp::Rcp | FloatOp::Rsqrt if approx => true,
            _ => f16 || matches!(ty, F32 | F32x2),
        };
        let ways = usize::from(round.is_some()) + usize::from(approx) + usize::from(full);
        if ways > 1
            || round.is_some() && !(sum || quotient)
            || approx && (sum || extreme || matches!(op, FloatOp::Abs | FloatOp::Neg | FloatOp::CopySign))
            || full && op != FloatOp::Div
            || mode.ftz && !flushes
            || mode.sat && !(sum && (f16 || ty == F32) && !mode.relu)
            || mode.relu && !(op == FloatOp::Fma && half)
            || (mode.nan || mode.xorsign) && !(extreme && ty != F64)
        {
            return self.unsupported("a modifier that this form does not have");
        }
        self.count(operands + 1..=operands + 1)?;
        let d = self.dst(0)?;
        let a = self.src(1, ty)?;
        let b = if operands > 1 { self.src(2, ty)? } else { UNUSED };
        let c = if operands > 2 { self.src(3, ty)? } else { UNUSED };
        Ok(Op::Float { op, ty, mode, d, a, b, c })
    }

    fn testp(&mut self) -> Result<Op> {
        let test = match self.one_of(&[
            ("finite", TestP::Finite),
            ("infinite", TestP::Infinite),
            ("number", TestP::Number),
            ("notanumber", TestP::NotANumber),
            ("normal", TestP::Normal),
            ("subnormal", TestP::Subnormal),
        ]) {
            Some(test) => test,
            None => return self.bad("no test given"),
        };
        let ty = self.ty()?;
        if !matches!(ty, Ty::F32 | Ty::F64) {
            return self.unsupported(format!("type {ty:?}"));
        }
        self.count(2..=2)?;
        let operand = self.operand(0)?;
        Ok(Op::TestP { test, ty, d: self.pred_dst(operand)?, a: self.src(1, ty)? })
    }

    fn cmp(&mut self) -> Result<Cmp> {
        const CMP: &[(&str, Cmp)] = &[
            ("eq", Cmp::Eq),
            ("ne", Cmp::Ne),
            ("lt", Cmp::Lt),
            ("le", Cmp::Le),
            ("gt", Cmp::Gt),
            ("ge", Cmp::Ge),
            ("lo", Cmp::Lt),
            ("ls", Cmp::Le),
            ("hi", Cmp::Gt),
            ("hs", Cmp::Ge),
            ("equ", Cmp::Equ),
            ("neu", Cmp::Neu),
            ("ltu", Cmp::Ltu),
            ("leu", Cmp::Leu),
            ("gtu", Cmp::Gtu),
            ("geu", Cmp::Geu),
            ("num", Cmp::Num),
            ("nan", Cmp::Nan),
        ];
        match self.one_of(CMP) {
            Some(cmp) => Ok(cmp),
            None => self.bad("no comparison given"),
        }
    }

    pub(super) fn compare(&mut self) -> Result<Op> {
        use Ty::*;
        match self.mods[0] {
            "setp" | "set" => {
                let is_set = self.mods[0] == "set";
                let cmp = self.cmp()?;
                let bool_op = self.one_of(&[("and", BoolOp::And), ("or", BoolOp::Or), ("xor", BoolOp::Xor)]);
                let ftz = self.has("ftz");
                let to = if is_set { self.ty()? } else { Pred };
                let ty = self.ty()?;
                let packed = matches!(ty, F16x2 | Bf16x2);
                let named = |names: &[&str]| self.mods.iter().any(|m| names.contains(m));
                let of_unsigned = named(&["lo", "ls", "hi", "hs"]);
                let of_floats = named(&["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]);
                let of_bits = matches!(ty, B16 | B32 | B64) && !matches!(cmp, Cmp::Eq | Cmp::Ne);
                if of_unsigned && !matches!(ty, U16 | U32 | U64) || of_floats && ty.is_int() || of_bits {
                    return self.bad(format!("no such comparison of {ty:?}"));
                }
                if !(ty.is_int() && ty.bytes() > 1 || matches!(ty, F16 | Bf16 | F32 | F64 | F16x2 | Bf16x2)) {
                    return self.unsupported(format!("type {ty:?}"));
                }
                let fits = match to {
                    U32 | S32 => true,
                    F32 | B32 | F16 | Bf16 => !packed,
                    U16 | S16 => matches!(ty, F16 | Bf16),
                    _ => packed && to == ty,
                };
                if is_set && !fits {
                    return self.unsupported(format!("result type {to:?}"));
                }
                if ftz && !matches!(ty, F32 | F16 | F16x2) {
                    return self.unsupported(format!("flushing of {ty:?}"));
                }
                self.count(if bool_op.is_some() { 4..=4 } else { 3..=3 })?;
                let a = self.src(1, ty)?;
                let b = self.src(2, ty)?;
                let combine = match bool_op {
                    Some(op) => Some((op, self.pred_src(3)?)),
                    None => None,
                };
                if is_set {
                    return Ok(Op::Set { cmp, ty, to, ftz, d: self.dst(0)?, a, b, combine });
                }
                let (d, d2) = self.dst_pair(0)?;
                let d = self.pred_dst(d)?;
                let d2 = match d2 {
                    Some(d2) => self.pred_dst(d2)?,
                    None => Reg::Sink,
                };
                Ok(Op::Setp { cmp, ty, ftz, d, d2, a, b, combine })
            }
            "selp" => {
                let ty = self.ty()?;
                if !matches!(ty.bytes(), 2 | 4 | 8) {
                    return self.unsupported(format!("type {ty:?}"));
                }
                self.count(4..=4)?;
                let (d, a, b) = (self.dst(0)?, self.src(1, ty)?, self.src(2, ty)?);
                Ok(Op::Selp { bits: ty.bits(), d, a, b, p: self.pred_src(3)? })
            }
            _ => {
                let ftz = self.has("ftz");
                let ty = self.ty()?;
                let cond = self.ty()?;
                if !matches!(cond, S32 | F32) || !matches!(ty.bytes(), 2 | 4 | 8) || ftz && cond != F32 {
                    return self.unsupported("these types");
                }
                self.count(4..=4)?;
                let (d, a, b) = (self.dst(0)?, self.src(1, ty)?, self.src(2, ty)?);
                Ok(Op::Slct { bits: ty.bits(), cond, ftz, d, a, b, c: self.src(3, cond)? })
            }
        }
    }
}
