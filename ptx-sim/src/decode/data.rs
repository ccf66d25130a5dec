//! Moves and conversions.

use super::Ins;
use crate::error::Result;
use crate::ir::*;
use crate::parser::Operand;

impl Ins<'_, '_, '_> {
    pub(super) fn data(&mut self) -> Result<Op> {
        match self.mods[0] {
            "mov" => self.mov(),
            "cvt" => self.cvt(),
            "cvta" => {
                let to_space = self.has("to");
                let space = self.space_or_generic()?;
                if space == Space::Generic {
                    return self.bad("no space given");
                }
                let ty = self.ty()?;
                if ty.bytes() != 8 && ty.bytes() != 4 {
                    return self.unsupported(format!("type {ty:?}"));
                }
                self.count(2..=2)?;
                Ok(Op::Cvta { space, to_space, d: self.dst(0)?, a: self.src(1, ty)? })
            }
            _ => {
                let space = self.space_or_generic()?;
                if space == Space::Generic {
                    return self.bad("no space given");
                }
                self.count(2..=2)?;
                let operand = self.operand(0)?;
                Ok(Op::IsSpace { space, d: self.pred_dst(operand)?, a: self.src(1, Ty::U64)? })
            }
        }
    }

    fn mov(&mut self) -> Result<Op> {
        self.count(2..=2)?;
        let ty = self.ty()?;
        if ty == Ty::Pred {
            let operand = self.operand(0)?;
            let d = self.pred_dst(operand)?;
            return Ok(Op::Pred { op: PredOp::Mov, d, a: self.pred_src(1)?, b: Src::Imm(0) });
        }
        let bits = ty.bits();
        if bits > 64 {
            return self.unsupported("128-bit moves");
        }
        let part = |n: usize| {
            u32::try_from(n).ok().filter(|n| *n > 1 && bits % n == 0 && bits / n >= 8).map(|n| bits / n)
        };
        match (self.operand(0)?, self.operand(1)?) {
            (Operand::Vector(parts), _) => {
                let Some(part_bits) = part(parts.len()) else {
                    return self.bad("number of parts");
                };
                Ok(Op::Unpack { part_bits, parts: self.vector_dst(0)?, a: self.src(1, ty)? })
            }
            (_, Operand::Vector(parts)) => {
                let Some(part_bits) = part(parts.len()) else {
                    return self.bad("number of parts");
                };
                let part_ty = if part_bits == 32 { Ty::B32 } else { Ty::B16 };
                Ok(Op::Pack { part_bits, d: self.dst(0)?, parts: self.vector_src(1, part_ty)? })
            }
            _ => Ok(Op::Mov { bits, d: self.dst(0)?, a: self.src(1, ty)? }),
        }
    }

    fn cvt(&mut self) -> Result<Op> {
        use Ty::*;
        if self.has("pack") {
            return self.unsupported("cvt.pack");
        }
        let (round, integral) = match self.one_of(&[
            ("rni", (Round::Nearest, true)),
            ("rzi", (Round::Zero, true)),
            ("rmi", (Round::Down, true)),
            ("rpi", (Round::Up, true)),
            ("rna", (Round::Away, false)),
            ("rn", (Round::Nearest, false)),
            ("rz", (Round::Zero, false)),
            ("rm", (Round::Down, false)),
            ("rp", (Round::Up, false)),
        ]) {
            Some((round, integral)) => (Some(round), integral),
            None => (None, false),
        };
        let mode = CvtMode {
            round: round.unwrap_or(Round::Nearest),
            integral,
            ftz: self.has("ftz"),
            satfinite: self.has("satfinite"),
            relu: self.has("relu"),
            sat: self.has("sat"),
        };
        let to = self.ty()?;
        let from = self.ty()?;
        if matches!(to, E4m3x2 | E5m2x2) || matches!(from, E4m3x2 | E5m2x2) {
            return self.unsupported("8-bit floats");
        }
        let scalar = |ty: Ty| ty.is_int() || matches!(ty, F16 | Bf16 | F32 | F64);
        let halves = matches!(to, F16x2 | Bf16x2);
        // What a wider format, or the same, holds exactly; f16 and bf16 hold less than each other.
        let exact = to == from || to.is_float() && from.is_float() && to.bytes() > from.bytes();
        let needs = match (from.is_float(), to.is_float() || halves) {
            (false, false) => None,
            (true, false) => Some(true),
            (true, true) if exact => integral.then_some(true).filter(|_| to == from),
            _ => Some(false),
        };
        if needs.is_some() && round.is_none() {
            return self.bad("a rounding mode is needed");
        }
        if needs != round.map(|_| integral) || round == Some(Round::Away) && to != Tf32 {
            return self.unsupported("this rounding mode for these types");
        }
        // A modifier that would be dropped without a word is refused.
        let short = from == F32 && (halves || matches!(to, F16 | Bf16 | Tf32));
        if mode.ftz && (halves || to == Tf32 || !(to == F32 || from == F32))
            || (mode.relu || mode.satfinite) && !short
            || mode.sat && (halves || matches!(to, Bf16 | Tf32))
        {
            return self.unsupported("a modifier that this form does not have");
        }
        match (to, from) {
            (F16x2 | Bf16x2, F32) => {
                self.count(3..=3)?;
                Ok(Op::CvtPair { to, mode, d: self.dst(0)?, a: self.src(1, F32)?, b: self.src(2, F32)? })
            }
            (Tf32, F32) => {
                self.count(2..=2)?;
                Ok(Op::Cvt { to, from, mode, d: self.dst(0)?, a: self.src(1, F32)? })
            }
            _ if scalar(to) && scalar(from) => {
                self.count(2..=2)?;
                Ok(Op::Cvt { to, from, mode, d: self.dst(0)?, a: self.src(1, from)? })
            }
            _ => self.unsupported(format!("conversion from {from:?} to {to:?}")),
        }
    }
}
