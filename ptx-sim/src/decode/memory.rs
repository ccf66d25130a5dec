//! Loads, stores, atomics, asynchronous copies and matrix instructions.

use super::{Ins, Place};
use crate::error::Result;
use crate::ir::*;
use crate::parser::Operand;

impl<'a> Ins<'_, '_, 'a> {
    pub(super) fn space_or_generic(&mut self) -> Result<Space> {
        if self.has("param::func") {
            return self.unsupported(".param::func");
        }
        Ok(self
            .one_of(&[
                ("global", Space::Global),
                ("shared", Space::Shared),
                ("shared::cta", Space::Shared),
                ("local", Space::Local),
                ("const", Space::Const),
                ("param", Space::Param),
                ("param::entry", Space::Param),
            ])
            .unwrap_or(Space::Generic))
    }

    /// Cache, scope and ordering hints that do not change what a single access does.
    fn hints(&mut self) {
        const HINTS: &[&str] = &[
            "ca",
            "cg",
            "cs",
            "lu",
            "cv",
            "wb",
            "wt",
            "nc",
            "weak",
            "volatile",
            "relaxed",
            "acquire",
            "release",
            "acq_rel",
            "cta",
            "cluster",
            "gpu",
            "sys",
            "mmio",
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L1::evict_first",
            "L1::evict_last",
            "L1::no_allocate",
            "L2::64B",
            "L2::128B",
            "L2::256B",
            "L2::evict_first",
            "L2::evict_last",
            "L2::evict_normal",
        ];
        for hint in HINTS {
            self.has(hint);
        }
    }

    /// Scope and order of an atomic, or of a load or store that is one in all but name.
    fn sync(&self) -> Sync {
        let has = |names: &[&str]| self.mods.iter().any(|m| names.contains(m));
        Sync {
            wide: !has(&["cta"]),
            acquire: has(&["acquire", "acq_rel"]),
            release: has(&["release", "acq_rel"]),
        }
    }

    fn addr(&mut self, i: usize, space: Space) -> Result<(Addr, Space)> {
        let (base, offset) = match self.operand(i)? {
            Operand::Address { extra: true, .. } => return self.unsupported("this address form"),
            Operand::Address { base, offset, .. } => (&**base, *offset),
            other => return self.bad(format!("expected an address, got {other:?}")),
        };
        let mut space = space;
        let base = match base {
            Operand::Int(v) => Src::Imm(*v),
            Operand::Word(w) => {
                let src = self.name(w, 0)?;
                if matches!(src, Src::Pred(..)) {
                    return self.bad("a predicate as an address");
                }
                let is_reg = matches!(src, Src::W32(_) | Src::W64(_));
                if space == Space::Param && !self.cx.is_entry
                    || matches!(self.cx.place(w, self.stmt.scope), Some(Place::Frame(_))) && !is_reg
                {
                    // Parameters of calls, and variables of the frame.
                    space = Space::Local;
                }
                if space == Space::Generic && !is_reg {
                    space = match self.cx.place(w, self.stmt.scope) {
                        Some(Place::Shared(_) | Place::DynamicShared) => Space::Shared,
                        Some(Place::EntryParam(_)) => Space::Param,
                        _ => space,
                    };
                }
                src
            }
            other => return self.bad(format!("address {other:?}")),
        };
        Ok((Addr { base, offset }, space))
    }

    /// Notes how finely the race checks must look.
    fn note_cell(&mut self, space: Space, bytes: u32) {
        let out = &mut self.cx.out;
        if matches!(space, Space::Shared | Space::Generic) {
            out.shared_cell = out.shared_cell.min(bytes);
        }
        if matches!(space, Space::Global | Space::Generic) {
            out.global_cell = out.global_cell.min(bytes);
        }
    }

    pub(super) fn memory(&mut self) -> Result<Op> {
        match self.mods[0] {
            "ld" | "ldu" | "st" => self.load_store(),
            "atom" | "red" => self.atomic(),
            "cp" => self.cp(),
            "ldmatrix" | "stmatrix" => self.matrix(),
            "movmatrix" => {
                for m in ["sync", "aligned", "m8n8", "trans", "b16"] {
                    if !self.has(m) {
                        return self.bad(format!(".{m} is needed"));
                    }
                }
                self.count(2..=2)?;
                Ok(Op::Movmatrix { d: self.dst(0)?, a: self.src(1, Ty::B32)? })
            }
            "mma" => self.mma(),
            // Not a hint: what it discards may not be read.
            "discard" => self.unsupported("this instruction is not implemented"),
            // Hints to the caches: no effect on what is computed.
            _ => {
                self.space_or_generic()?;
                self.hints();
                for m in ["L1", "L2"] {
                    self.has(m);
                }
                Ok(Op::Nop)
            }
        }
    }

    fn load_store(&mut self) -> Result<Op> {
        let is_store = self.mods[0] == "st";
        let space = self.space_or_generic()?;
        let is_strong = |m: &&str| matches!(*m, "relaxed" | "acquire" | "release" | "mmio");
        let sync = self.mods.iter().any(is_strong).then(|| self.sync());
        self.hints();
        let lanes = self.one_of(&[("v2", 2usize), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        if self.has("L2::cache_hint") {
            return self.unsupported("a cache policy");
        }
        let ty = self.ty()?;
        if !matches!(ty.bytes(), 1 | 2 | 4 | 8) || ty.bytes() as usize * lanes > 32 {
            return self.unsupported(format!("{lanes} x {ty:?}"));
        }
        self.count(2..=2)?;
        let (addr, space) = self.addr(usize::from(!is_store), space)?;
        let access = Access { space, ty, addr, sync };
        self.note_cell(space, ty.bytes());
        let n;
        let op = if is_store {
            if matches!(space, Space::Const | Space::Param) {
                return self.bad("store to read-only memory");
            }
            let src = self.vector_src(1, ty)?;
            n = src.len();
            Op::St { access, src }
        } else {
            let dst = self.vector_dst(0)?;
            n = dst.len();
            Op::Ld { access, dst }
        };
        if n != lanes { self.bad(format!("{n} elements, wanted {lanes}")) } else { Ok(op) }
    }

    fn atomic(&mut self) -> Result<Op> {
        let is_red = self.mods[0] == "red";
        if self.mods.iter().any(|m| matches!(*m, "async" | "v2" | "v4" | "v8")) {
            return self.unsupported("vector or asynchronous atomics");
        }
        let space = self.space_or_generic()?;
        let sync = self.sync();
        self.hints();
        let op = match self.one_of(&[
            ("add", AtomOp::Add),
            ("min", AtomOp::Min),
            ("max", AtomOp::Max),
            ("and", AtomOp::And),
            ("or", AtomOp::Or),
            ("xor", AtomOp::Xor),
            ("exch", AtomOp::Exch),
            ("cas", AtomOp::Cas),
            ("inc", AtomOp::Inc),
            ("dec", AtomOp::Dec),
        ]) {
            Some(op) => op,
            None => return self.unsupported("this atomic operation"),
        };
        let noftz = self.has("noftz");
        let ty = self.ty()?;
        use Ty::*;
        let fits = match op {
            AtomOp::Add => matches!(ty, U32 | S32 | U64 | S64 | F32 | F64 | F16 | Bf16 | F16x2 | Bf16x2),
            AtomOp::Min | AtomOp::Max => matches!(ty, U32 | S32 | U64 | S64),
            AtomOp::Inc | AtomOp::Dec => ty == U32,
            AtomOp::Cas => matches!(ty, B16 | B32 | B64 | U32 | S32 | U64),
            _ => matches!(ty, B32 | B64 | U32 | S32 | U64),
        };
        if !fits
            || is_red && matches!(op, AtomOp::Exch | AtomOp::Cas)
            || noftz != matches!(ty, F16 | Bf16 | F16x2 | Bf16x2)
            || !matches!(space, Space::Global | Space::Shared | Space::Generic)
        {
            return self.unsupported(format!("this operation on {ty:?}"));
        }
        let d = if is_red { Reg::Sink } else { self.dst(0)? };
        let first = usize::from(!is_red);
        let operands = first + 2 + usize::from(op == AtomOp::Cas);
        self.count(operands..=operands)?;
        let (addr, space) = self.addr(first, space)?;
        self.note_cell(space, ty.bytes());
        let b = self.src(first + 1, ty)?;
        let c = if op == AtomOp::Cas { self.src(first + 2, ty)? } else { Src::Imm(0) };
        Ok(Op::Atom { access: Access { space, ty, addr, sync: Some(sync) }, op, d, b, c, sync })
    }

    fn cp(&mut self) -> Result<Op> {
        if !self.has("async") {
            return self.unsupported("only cp.async is implemented");
        }
        if self.has("commit_group") {
            self.count(0..=0)?;
            return Ok(Op::CpCommit);
        }
        if self.has("wait_all") {
            self.count(0..=0)?;
            return Ok(Op::CpWaitAll);
        }
        if self.has("wait_group") {
            self.count(1..=1)?;
            return match self.src(0, Ty::U32)? {
                Src::Imm(keep) => Ok(Op::CpWait { keep: keep.min(u64::from(u32::MAX)) as u32 }),
                _ => self.bad("the number of groups must be a constant"),
            };
        }
        let all = self.has("ca");
        if !all && !self.has("cg") {
            return self.unsupported("this form of cp.async");
        }
        let in_order = self.mods.windows(2).any(|w| matches!(w, ["shared" | "shared::cta", "global"]));
        if !(in_order && (self.has("shared") || self.has("shared::cta")) && self.has("global")) {
            return self.unsupported("only from global to shared memory");
        }
        for hint in ["L2::64B", "L2::128B", "L2::256B"] {
            self.has(hint);
        }
        self.count(3..=4)?;
        let (dst, _) = self.addr(0, Space::Shared)?;
        let (src, _) = self.addr(1, Space::Global)?;
        let bytes = match self.src(2, Ty::U32)? {
            Src::Imm(16) => 16,
            Src::Imm(b @ (4 | 8)) if all => b as u32,
            _ => return self.bad("the size must be 4, 8 or 16, and 16 for .cg"),
        };
        let (mut src_size, mut ignore) = (None, None);
        if let Some(Operand::Word(w)) = self.stmt.operands.get(3) {
            match self.name(w, 0)? {
                Src::Pred(p, n) => ignore = Some(Src::Pred(p, n)),
                _ => src_size = Some(self.src(3, Ty::U32)?),
            }
        } else if let Some(Operand::Not(_)) = self.stmt.operands.get(3) {
            ignore = Some(self.pred_src(3)?);
        } else if self.stmt.operands.len() > 3 {
            src_size = Some(self.src(3, Ty::U32)?);
        }
        self.note_cell(Space::Shared, bytes);
        Ok(Op::CpAsync { bytes, dst, src, src_size, ignore })
    }

    fn matrix(&mut self) -> Result<Op> {
        let is_load = self.mods[0] == "ldmatrix";
        if !(self.has("sync") && self.has("aligned") && self.has("m8n8")) {
            return self.unsupported("only .sync.aligned.m8n8");
        }
        let count = self.one_of(&[("x1", 1u8), ("x2", 2), ("x4", 4)]);
        let trans = self.has("trans");
        let space = self.space_or_generic()?;
        if !matches!(space, Space::Shared | Space::Generic) || !self.has("b16") {
            return self.unsupported("only .b16 in shared memory");
        }
        let Some(count) = count else {
            return self.bad("one of .x1, .x2, .x4 is needed");
        };
        self.count(2..=2)?;
        let (addr, space) = self.addr(usize::from(is_load), space)?;
        if space == Space::Generic {
            return self.unsupported("a generic address");
        }
        let op = if is_load {
            Op::Ldmatrix { count, trans, d: self.vector_dst(0)?, addr }
        } else {
            Op::Stmatrix { count, trans, addr, a: self.vector_src(1, Ty::B32)? }
        };
        let n = match &op {
            Op::Ldmatrix { d, .. } => d.len(),
            Op::Stmatrix { a, .. } => a.len(),
            _ => 0,
        };
        if n != usize::from(count) { self.bad(format!("{n} registers, wanted {count}")) } else { Ok(op) }
    }

    fn mma(&mut self) -> Result<Op> {
        if !(self.has("sync") && self.has("aligned")) {
            return self.unsupported("only .sync.aligned");
        }
        let shape = self.one_of(&[
            ("m16n8k4", (16u8, 8u8, 4u8)),
            ("m16n8k8", (16, 8, 8)),
            ("m16n8k16", (16, 8, 16)),
            ("m16n8k32", (16, 8, 32)),
            ("m8n8k4", (8, 8, 4)),
            ("m8n8k16", (8, 8, 16)),
        ]);
        let Some((m, n, k)) = shape else {
            return self.unsupported("this shape");
        };
        let in_order = self.mods.windows(2).any(|w| w == ["row", "col"]);
        if !(in_order && self.has("row") && self.has("col")) {
            return self.unsupported("only .row.col");
        }
        let satfinite = self.has("satfinite");
        // Four types in order: the modifiers repeat, so they are taken one at a time.
        let mut types = Vec::new();
        for (i, name) in self.mods.iter().enumerate() {
            let ty = match *name {
                "f16" => MmaTy::F16,
                "bf16" => MmaTy::Bf16,
                "tf32" => MmaTy::Tf32,
                "f32" => MmaTy::F32,
                "f64" => MmaTy::F64,
                "s8" => MmaTy::S8,
                "u8" => MmaTy::U8,
                "s32" => MmaTy::S32,
                _ => continue,
            };
            types.push(ty);
            self.used |= 1 << i;
        }
        let [d_ty, a_ty, b_ty, c_ty] = types[..] else {
            return self.unsupported("these types");
        };
        use MmaTy::*;
        let fits = d_ty == c_ty
            && match (a_ty, b_ty, d_ty) {
                (F16, F16, F16 | F32) | (Bf16, Bf16, F32) => (m, n) == (16, 8) && matches!(k, 8 | 16),
                (Tf32, Tf32, F32) => (m, n) == (16, 8) && matches!(k, 4 | 8),
                (S8 | U8, S8 | U8, S32) => (m == 16 && matches!(k, 16 | 32)) || (m == 8 && k == 16),
                (F64, F64, F64) => (m == 8 && k == 4) || (m == 16 && matches!(k, 4 | 8 | 16)),
                _ => false,
            };
        if !fits || satfinite && d_ty != S32 {
            return self.unsupported("this combination of shape and types");
        }
        self.count(4..=4)?;
        let wide = |ty: MmaTy| if ty == F64 { Ty::F64 } else { Ty::B32 };
        let mma = Mma {
            m,
            n,
            k,
            a_ty,
            b_ty,
            cd_ty: d_ty,
            satfinite,
            d: self.vector_dst(0)?,
            a: self.vector_src(1, wide(a_ty))?,
            b: self.vector_src(2, wide(b_ty))?,
            c: self.vector_src(3, wide(d_ty))?,
        };
        let per_reg = |ty: MmaTy| match ty {
            S8 | U8 => 4,
            F16 | Bf16 => 2,
            _ => 1,
        };
        let (m, n, k) = (usize::from(m), usize::from(n), usize::from(k));
        let want = |elements: usize, ty: MmaTy| elements / 32 / per_reg(ty);
        for (name, got, wanted) in [
            ("d", mma.d.len(), want(m * n, d_ty)),
            ("a", mma.a.len(), want(m * k, a_ty)),
            ("b", mma.b.len(), want(k * n, b_ty)),
            ("c", mma.c.len(), want(m * n, d_ty)),
        ] {
            if got != wanted {
                return self.bad(format!("{got} registers for {name}, wanted {wanted}"));
            }
        }
        Ok(Op::Mma(Box::new(mma)))
    }
}
