//! Integer, logic and bit-field instructions.

use super::Ins;
use crate::error::Result;
use crate::ir::*;

const UNUSED: Src = Src::Imm(0);

impl Ins<'_, '_, '_> {
    fn int_ty(&mut self, allowed: &[Ty]) -> Result<Ty> {
        let ty = self.ty()?;
        if allowed.contains(&ty) { Ok(ty) } else { self.unsupported(format!("type {ty:?}")) }
    }

    pub(super) fn integer(&mut self) -> Result<Op> {
        use Ty::*;
        const ARITH: &[Ty] = &[U16, S16, U32, S32, U64, S64];
        let base = self.mods[0];
        match base {
            "add" | "sub" | "addc" | "subc" => {
                let carry_out = self.has("cc");
                let carry_in = base.ends_with('c');
                if carry_in || carry_out {
                    let ty = self.int_ty(&[U32, S32, U64, S64])?;
                    let op = if base.starts_with("add") { CarryOp::Add } else { CarryOp::Sub };
                    self.count(3..=3)?;
                    let (d, a, b) = (self.dst(0)?, self.src(1, ty)?, self.src(2, ty)?);
                    return Ok(Op::Carry { op, ty, carry_in, carry_out, d, a, b, c: UNUSED });
                }
                let sat = self.has("sat");
                let ty = self.int_ty(&[U16, S16, U32, S32, U64, S64, U16x2, S16x2])?;
                let op = match (base, ty, sat) {
                    ("add", U16x2 | S16x2, false) => IntOp::Add16x2,
                    (_, U16x2 | S16x2, _) => return self.unsupported("packed 16-bit subtraction"),
                    ("add", S32, true) => IntOp::AddSat,
                    ("sub", S32, true) => IntOp::SubSat,
                    (_, _, true) => return self.unsupported("saturation of this type"),
                    ("add", ..) => IntOp::Add,
                    _ => IntOp::Sub,
                };
                self.int2(op, ty)
            }
            "mul" => {
                let mode =
                    self.one_of(&[("lo", IntOp::MulLo), ("hi", IntOp::MulHi), ("wide", IntOp::MulWide)]);
                let ty =
                    self.int_ty(if mode == Some(IntOp::MulWide) { &[U16, S16, U32, S32] } else { ARITH })?;
                match mode {
                    Some(op) => self.int2(op, ty),
                    None => self.bad("one of .lo, .hi, .wide is needed"),
                }
            }
            "mad" | "madc" => {
                let carry_out = self.has("cc");
                let carry_in = base == "madc";
                let mode = self.one_of(&[("lo", 0), ("hi", 1), ("wide", 2)]);
                let sat = self.has("sat");
                let ty = self.int_ty(if mode == Some(2) { &[U16, S16, U32, S32] } else { ARITH })?;
                self.count(4..=4)?;
                let wide = if mode == Some(2) { if ty.bytes() == 2 { U32 } else { U64 } } else { ty };
                let (d, a, b, c) = (self.dst(0)?, self.src(1, ty)?, self.src(2, ty)?, self.src(3, wide)?);
                if carry_in || carry_out {
                    let op = match mode {
                        Some(0) => CarryOp::MadLo,
                        Some(1) => CarryOp::MadHi,
                        _ => return self.unsupported("carry with .wide"),
                    };
                    if ty.bytes() == 2 {
                        return self.unsupported("carry of 16-bit values");
                    }
                    return Ok(Op::Carry { op, ty, carry_in, carry_out, d, a, b, c });
                }
                let op = match (mode, sat) {
                    (Some(0), false) => IntOp::MadLo,
                    (Some(1), false) => IntOp::MadHi,
                    (Some(1), true) if ty == S32 => IntOp::MadHiSat,
                    (Some(2), false) => IntOp::MadWide,
                    _ => {
                        return self.bad("one of .lo, .hi, .wide is needed, .sat only with .hi.s32");
                    }
                };
                Ok(Op::Int { op, ty, d, a, b, c })
            }
            "mul24" | "mad24" => {
                let hi = match self.one_of(&[("lo", false), ("hi", true)]) {
                    Some(hi) => hi,
                    None => return self.bad("one of .lo, .hi is needed"),
                };
                let ty = self.int_ty(&[U32, S32])?;
                match (base, hi) {
                    ("mul24", false) => self.int2(IntOp::Mul24Lo, ty),
                    ("mul24", true) => self.int2(IntOp::Mul24Hi, ty),
                    (_, false) => self.int3(IntOp::Mad24Lo, ty),
                    (_, true) => self.int3(IntOp::Mad24Hi, ty),
                }
            }
            "sad" => {
                let ty = self.int_ty(ARITH)?;
                self.int3(IntOp::Sad, ty)
            }
            "div" | "rem" => {
                let ty = self.int_ty(ARITH)?;
                self.int2(if base == "div" { IntOp::Div } else { IntOp::Rem }, ty)
            }
            "abs" | "neg" => {
                let ty = self.int_ty(&[S16, S32, S64])?;
                self.int1(if base == "abs" { IntOp::Abs } else { IntOp::Neg }, ty)
            }
            "min" | "max" => {
                let relu = self.has("relu");
                let ty = self.int_ty(&[U16, S16, U32, S32, U64, S64, U16x2, S16x2])?;
                if relu && !matches!(ty, S32 | S16x2) {
                    return self.unsupported(".relu of this type");
                }
                let packed = matches!(ty, U16x2 | S16x2);
                self.int2(
                    match (base, packed) {
                        ("min", false) if relu => IntOp::MinRelu,
                        ("max", false) if relu => IntOp::MaxRelu,
                        ("min", false) => IntOp::Min,
                        ("max", false) => IntOp::Max,
                        ("min", true) => IntOp::Min16x2(relu),
                        _ => IntOp::Max16x2(relu),
                    },
                    ty,
                )
            }
            "popc" | "clz" => {
                let ty = self.int_ty(&[B32, B64])?;
                self.int1(if base == "popc" { IntOp::Popc } else { IntOp::Clz }, ty)
            }
            "brev" => {
                let ty = self.int_ty(&[B32, B64])?;
                self.int1(IntOp::Brev, ty)
            }
            "bfind" => {
                let shift = self.has("shiftamt");
                let ty = self.int_ty(&[U32, S32, U64, S64])?;
                self.int1(if shift { IntOp::BfindShift } else { IntOp::Bfind }, ty)
            }
            "fns" => {
                self.int_ty(&[B32])?;
                self.int3(IntOp::Fns, B32)
            }
            "bfe" => {
                let ty = self.int_ty(&[U32, S32, U64, S64])?;
                self.count(4..=4)?;
                let (d, a) = (self.dst(0)?, self.src(1, ty)?);
                Ok(Op::Int { op: IntOp::Bfe, ty, d, a, b: self.src(2, U32)?, c: self.src(3, U32)? })
            }
            "bfi" => {
                let ty = self.int_ty(&[B32, B64])?;
                self.count(5..=5)?;
                Ok(Op::Bfi {
                    wide: ty == B64,
                    d: self.dst(0)?,
                    a: self.src(1, ty)?,
                    b: self.src(2, ty)?,
                    pos: self.src(3, U32)?,
                    len: self.src(4, U32)?,
                })
            }
            "szext" | "bmsk" => {
                let wrap = match self.one_of(&[("clamp", false), ("wrap", true)]) {
                    Some(wrap) => wrap,
                    None => return self.bad("one of .clamp, .wrap is needed"),
                };
                if base == "szext" {
                    let ty = self.int_ty(&[U32, S32])?;
                    self.int2(IntOp::Szext(wrap), ty)
                } else {
                    let ty = self.int_ty(&[B32])?;
                    self.int2(IntOp::Bmsk(wrap), ty)
                }
            }
            "and" | "or" | "xor" | "not" => {
                let ty = self.int_ty(&[Pred, B16, B32, B64])?;
                if ty == Pred {
                    let n = if base == "not" { 2 } else { 3 };
                    self.count(n..=n)?;
                    let operand = self.operand(0)?;
                    let d = self.pred_dst(operand)?;
                    let a = self.pred_src(1)?;
                    let b = if base == "not" { UNUSED } else { self.pred_src(2)? };
                    let op = match base {
                        "and" => PredOp::And,
                        "or" => PredOp::Or,
                        "xor" => PredOp::Xor,
                        _ => PredOp::Not,
                    };
                    return Ok(Op::Pred { op, d, a, b });
                }
                match base {
                    "and" => self.int2(IntOp::And, ty),
                    "or" => self.int2(IntOp::Or, ty),
                    "xor" => self.int2(IntOp::Xor, ty),
                    _ => self.int1(IntOp::Not, ty),
                }
            }
            "cnot" => {
                let ty = self.int_ty(&[B16, B32, B64])?;
                self.int1(IntOp::Cnot, ty)
            }
            "lop3" => {
                if self.mods.iter().any(|m| matches!(*m, "and" | "or")) {
                    return self.unsupported("lop3 with a predicate");
                }
                self.int_ty(&[B32])?;
                self.count(5..=5)?;
                let table = match self.src(4, U32)? {
                    Src::Imm(v) => v as u8,
                    _ => return self.bad("the table must be a constant"),
                };
                Ok(Op::Int {
                    op: IntOp::Lop3(table),
                    ty: B32,
                    d: self.dst(0)?,
                    a: self.src(1, B32)?,
                    b: self.src(2, B32)?,
                    c: self.src(3, B32)?,
                })
            }
            "shf" => {
                let left = self.one_of(&[("l", true), ("r", false)]);
                let wrap = self.one_of(&[("clamp", false), ("wrap", true)]);
                self.int_ty(&[B32])?;
                match (left, wrap) {
                    (Some(true), Some(wrap)) => self.int3(IntOp::ShfL(wrap), B32),
                    (Some(false), Some(wrap)) => self.int3(IntOp::ShfR(wrap), B32),
                    _ => self.bad("a direction and one of .clamp, .wrap are needed"),
                }
            }
            "shl" => {
                let ty = self.int_ty(&[B16, B32, B64])?;
                self.shift(IntOp::Shl, ty)
            }
            "shr" => {
                let ty = self.int_ty(&[B16, B32, B64, U16, U32, U64, S16, S32, S64])?;
                self.shift(IntOp::Shr, ty)
            }
            "prmt" => {
                self.int_ty(&[B32])?;
                let mode = self
                    .one_of(&[("f4e", 1), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)])
                    .unwrap_or(0);
                self.int3(IntOp::Prmt(mode), B32)
            }
            "dp4a" | "dp2a" => {
                let hi =
                    if base == "dp2a" { self.one_of(&[("lo", false), ("hi", true)]) } else { Some(false) };
                let Some(hi) = hi else {
                    return self.bad("one of .lo, .hi is needed");
                };
                let a = self.int_ty(&[U32, S32])?.signed();
                let b = self.int_ty(&[U32, S32])?.signed();
                let op = if base == "dp4a" { IntOp::Dp4a(a, b) } else { IntOp::Dp2a(a, b, hi) };
                self.int3(op, if a || b { S32 } else { U32 })
            }
            _ => self.unsupported("this instruction is not implemented"),
        }
    }

    fn int1(&mut self, op: IntOp, ty: Ty) -> Result<Op> {
        self.count(2..=2)?;
        Ok(Op::Int { op, ty, d: self.dst(0)?, a: self.src(1, ty)?, b: UNUSED, c: UNUSED })
    }

    fn int2(&mut self, op: IntOp, ty: Ty) -> Result<Op> {
        self.count(3..=3)?;
        Ok(Op::Int { op, ty, d: self.dst(0)?, a: self.src(1, ty)?, b: self.src(2, ty)?, c: UNUSED })
    }

    fn int3(&mut self, op: IntOp, ty: Ty) -> Result<Op> {
        self.count(4..=4)?;
        Ok(Op::Int { op, ty, d: self.dst(0)?, a: self.src(1, ty)?, b: self.src(2, ty)?, c: self.src(3, ty)? })
    }

    fn shift(&mut self, op: IntOp, ty: Ty) -> Result<Op> {
        self.count(3..=3)?;
        Ok(Op::Int { op, ty, d: self.dst(0)?, a: self.src(1, ty)?, b: self.src(2, Ty::U32)?, c: UNUSED })
    }
}
