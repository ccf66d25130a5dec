//! Statements to [`Inst`]s: names become indices, modifiers become fields, and whatever is not understood
//! completely becomes an error.

mod data;
mod float;
mod int;
mod memory;
mod sync;

use std::collections::{HashMap, HashSet};

use crate::cfg;
use crate::counters::Class;
use crate::error::{Error, Result};
use crate::ir::*;
use crate::lexer::error;
use crate::parser::{Body, FunctionAst, Operand, Stmt, VarDecl};

/// Space left between variables, so that running over the end of one is seen.
pub(crate) const GAP: u32 = 128;
const MAX_FRAME: u32 = 512 << 10;
/// Where shared variables end at most, with the gaps between them.
const MAX_SHARED_END: u32 = 2 << 20;
const MAX_CODE: usize = 4 << 20;

/// Past a multiple of [`GAP`], an offset that is aligned as declared and not better: what needs more is seen. Within a variable
/// the banks are as far apart as anywhere.
pub(crate) fn barely_aligned(offset: u32, align: u32) -> u32 {
    if align < GAP { offset + align } else { offset }
}

/// A shared variable in its place.
#[derive(Debug, Clone)]
pub(crate) struct SharedVar {
    pub(crate) offset: u32,
    pub(crate) size: u32,
}

/// Where a symbol lives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Frame(u32),
    Shared(u32),
    DynamicShared,
    /// Global or constant memory: an absolute address.
    Absolute(u64),
    EntryParam(u32),
    Function(u32),
    Printf,
    AssertFail,
    /// A function that is declared and not defined.
    Missing,
}

/// What every function of a module can name.
pub(crate) struct ModuleScope<'a> {
    pub(crate) symbols: HashMap<&'a str, Place>,
    /// Formal sizes (returns, arguments) by function index.
    pub(crate) frames: Vec<Signature>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Signature {
    pub(crate) rets: usize,
    pub(crate) params: usize,
}

/// Static shared variables that functions declare in their own scope are appended here.
pub(crate) struct SharedLayout {
    pub(crate) end: u32,
    pub(crate) bytes: u32,
    pub(crate) vars: Vec<SharedVar>,
}

impl SharedLayout {
    pub(crate) fn place(&mut self, decl: &VarDecl<'_>) -> Option<u32> {
        let offset = barely_aligned(self.end.checked_next_multiple_of(decl.align.max(GAP))?, decl.align);
        self.end = offset.checked_add(decl.size)?.checked_add(GAP).filter(|end| *end <= MAX_SHARED_END)?;
        self.bytes = self.bytes.checked_next_multiple_of(decl.align)?.checked_add(decl.size)?;
        self.vars.push(SharedVar { offset, size: decl.size });
        Some(offset)
    }
}

pub(crate) struct Decoder<'m, 'a> {
    module: &'m ModuleScope<'a>,
    body: &'a Body<'a>,
    is_entry: bool,
    regs: HashMap<(u32, &'a str), Reg>,
    /// By scope and name.
    places: HashMap<(u32, &'a str), Place>,
    function_places: HashMap<&'a str, Place>,
    sizes: HashMap<(u32, &'a str), u32>,
    out: Function,
}

/// One statement while it is decoded.
pub(crate) struct Ins<'d, 'm, 'a> {
    cx: &'d mut Decoder<'m, 'a>,
    stmt: &'a Stmt<'a>,
    mods: Vec<&'a str>,
    used: u64,
}

/// Decodes one function. `absolute` gives the place of `.global` and `.const` variables of function scope.
pub(crate) fn function<'a>(
    module: &ModuleScope<'a>,
    ast: &'a FunctionAst<'a>,
    body: &'a Body<'a>,
    shared: &mut SharedLayout,
    absolute: &mut dyn FnMut(&VarDecl<'a>) -> Result<u64>,
) -> Result<Function> {
    let mut cx = Decoder {
        module,
        body,
        is_entry: ast.is_entry,
        regs: HashMap::new(),
        places: HashMap::new(),
        function_places: HashMap::new(),
        sizes: HashMap::new(),
        out: Function {
            name: ast.name.to_owned(),
            is_entry: ast.is_entry,
            line: ast.line,
            required_block: ast.required_block,
            max_threads: ast.max_threads,
            cluster: ast.cluster,
            shared_cell: 4,
            global_cell: 4,
            ..Function::default()
        },
    };
    cx.layout(ast, shared, absolute)?;
    cx.code()?;
    Ok(cx.out)
}

impl<'a> Decoder<'_, 'a> {
    fn frame(&mut self, decl: &VarDecl<'_>, line: u32) -> Result<u32> {
        let out = &mut self.out;
        let offset = out.frame_bytes.next_multiple_of(decl.align.max(16));
        let offset = if decl.align < 16 { offset + decl.align } else { offset };
        out.frame_bytes = offset.saturating_add(decl.size).saturating_add(16);
        out.frame_vars.push((offset, decl.size));
        if out.frame_bytes > MAX_FRAME {
            return Err(error(line, format!("local memory of more than {MAX_FRAME} bytes")));
        }
        Ok(offset)
    }

    fn layout(
        &mut self,
        ast: &FunctionAst<'a>,
        shared: &mut SharedLayout,
        absolute: &mut dyn FnMut(&VarDecl<'a>) -> Result<u64>,
    ) -> Result<()> {
        for decl in &ast.params {
            let offset = if self.is_entry {
                let offset = self.out.param_bytes.next_multiple_of(decl.align);
                self.out.param_bytes = offset.saturating_add(decl.size);
                if self.out.param_bytes > 32764 {
                    return Err(error(ast.line, "more than 32764 bytes of kernel parameters"));
                }
                self.function_places.insert(decl.name, Place::EntryParam(offset));
                offset
            } else {
                let offset = self.frame(decl, ast.line)?;
                self.function_places.insert(decl.name, Place::Frame(offset));
                offset
            };
            self.out.params.push(Param { name: decl.name.to_owned(), offset, size: decl.size });
        }
        for decl in &ast.rets {
            let offset = self.frame(decl, ast.line)?;
            self.function_places.insert(decl.name, Place::Frame(offset));
            self.out.rets.push(Param { name: decl.name.to_owned(), offset, size: decl.size });
        }
        for (id, scope) in self.body.scopes.iter().enumerate() {
            for name in &scope.var_order {
                let decl = &scope.vars[name];
                let place = match decl.space {
                    Space::Shared if decl.is_dynamic => Place::DynamicShared,
                    Space::Shared => Place::Shared(
                        shared.place(decl).ok_or_else(|| error(ast.line, "too much shared memory"))?,
                    ),
                    Space::Global | Space::Const => Place::Absolute(absolute(decl)?),
                    _ => Place::Frame(self.frame(decl, ast.line)?),
                };
                self.places.insert((id as u32, name), place);
                self.sizes.insert((id as u32, name), decl.size);
            }
        }
        Ok(())
    }

    /// Decodes all statements, splits them into blocks, and turns statement numbers into code addresses.
    fn code(&mut self) -> Result<()> {
        let body = self.body;
        if body.stmts.len() > MAX_CODE {
            return Err(error(self.out.line, format!("more than {MAX_CODE} instructions in a function")));
        }
        let mut raw = Vec::with_capacity(body.stmts.len() + 1);
        let mut targets = 0;
        for stmt in &body.stmts {
            let inst = Ins::new(self, stmt)?.decode()?;
            if let Op::Brx { targets: these, .. } = &inst.op {
                targets += these.len();
                if targets > MAX_CODE {
                    return Err(error(stmt.line, format!("more than {MAX_CODE} targets of branches")));
                }
            }
            raw.push(inst);
        }
        compared_loads(&mut raw);
        let n = raw.len() as u32;
        raw.push(Inst {
            op: Op::Ret,
            guard: None,
            class: Class::Control,
            line: body.stmts.last().map_or(self.out.line, |s| s.line),
            loc: (0, 0),
        });
        let mut leader = vec![false; raw.len() + 1];
        leader[0] = true;
        for (i, inst) in raw.iter().enumerate() {
            match &inst.op {
                Op::Bra { target } => leader[*target as usize] = true,
                Op::Brx { targets, .. } => targets.iter().for_each(|t| leader[*t as usize] = true),
                _ => {}
            }
            if matches!(&inst.op, Op::Call(call) if cfg::is_indirect(call)) {
                leader[i] = true;
            }
            if cfg::ends_block(&inst.op) {
                leader[i + 1] = true;
            }
        }
        // New address of every statement, and the jump that joins a block to the next.
        let mut code: Vec<Inst> = Vec::with_capacity(raw.len() * 9 / 8);
        let mut address = vec![0u32; raw.len() + 1];
        let mut leaders = Vec::new();
        for (i, inst) in raw.into_iter().enumerate() {
            if leader[i] {
                if let Some(last) = code.last()
                    && !cfg::ends_block(&last.op)
                {
                    let (line, loc) = (last.line, last.loc);
                    code.push(Inst {
                        op: Op::Goto { target: i as u32 },
                        guard: None,
                        class: Class::Control,
                        line,
                        loc,
                    });
                }
                leaders.push(code.len() as u32);
            }
            address[i] = code.len() as u32;
            code.push(inst);
        }
        debug_assert!(code.len() > n as usize);
        for inst in &mut code {
            match &mut inst.op {
                Op::Bra { target } | Op::Goto { target } => *target = address[*target as usize],
                Op::Brx { targets, .. } => targets.iter_mut().for_each(|t| *t = address[*t as usize]),
                _ => {}
            }
        }
        self.out.order = cfg::rank(&code, &leaders);
        self.out.code = code;
        Ok(())
    }

    fn new_reg(&mut self, ty: Ty, line: u32) -> Result<Reg> {
        let next = |count: &mut u32| {
            *count += 1;
            *count - 1
        };
        Ok(match ty {
            Ty::Pred => Reg::Pred(next(&mut self.out.preds)),
            Ty::B128 => return Err(error(line, "128-bit registers are not supported")),
            _ if ty.bytes() == 8 => Reg::W64(next(&mut self.out.regs64)),
            _ => Reg::W32(next(&mut self.out.regs32)),
        })
    }

    /// A register by name, from the innermost scope that declares it.
    fn reg(&mut self, name: &'a str, scope: u32, line: u32) -> Result<Option<Reg>> {
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(name.len() - digits);
        let number: Option<u32> =
            if number.len() > 1 && number.starts_with('0') { None } else { number.parse().ok() };
        let mut at = Some(scope);
        while let Some(id) = at {
            if let Some(&reg) = self.regs.get(&(id, name)) {
                return Ok(Some(reg));
            }
            let s = &self.body.scopes[id as usize];
            let ty = match (s.regs.get(name), number.and_then(|n| Some((n, s.regs.get(prefix)?)))) {
                (Some((ty, None)), _) => Some(*ty),
                (_, Some((n, (ty, Some(count))))) if n < *count => Some(*ty),
                _ => None,
            };
            if let Some(ty) = ty {
                let reg = self.new_reg(ty, line)?;
                self.regs.insert((id, name), reg);
                return Ok(Some(reg));
            }
            at = s.parent;
        }
        Ok(None)
    }

    fn place(&self, name: &'a str, scope: u32) -> Option<Place> {
        let mut at = Some(scope);
        while let Some(id) = at {
            if let Some(&place) = self.places.get(&(id, name)) {
                return Some(place);
            }
            at = self.body.scopes[id as usize].parent;
        }
        self.function_places.get(name).or_else(|| self.module.symbols.get(name)).copied()
    }

    /// Offset and size of a call parameter in the frame.
    fn frame_var(&self, name: &'a str, scope: u32) -> Option<(u32, u32)> {
        let mut at = Some(scope);
        while let Some(id) = at {
            if let Some(&Place::Frame(offset)) = self.places.get(&(id, name)) {
                return Some((offset, self.sizes[&(id, name)]));
            }
            at = self.body.scopes[id as usize].parent;
        }
        None
    }
}

impl<'d, 'm, 'a> Ins<'d, 'm, 'a> {
    fn new(cx: &'d mut Decoder<'m, 'a>, stmt: &'a Stmt<'a>) -> Result<Self> {
        let mods: Vec<&str> = stmt.opcode.split('.').collect();
        if mods.len() > 32 {
            return Err(error(stmt.line, "too many modifiers"));
        }
        Ok(Self { cx, stmt, mods, used: 1 })
    }

    fn unsupported<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Error::Unsupported {
            line: self.stmt.line,
            instruction: self.stmt.opcode.to_owned(),
            reason: reason.into(),
        })
    }

    fn bad<T>(&self, message: impl AsRef<str>) -> Result<T> {
        Err(error(self.stmt.line, format!("`{}`: {}", self.stmt.opcode, message.as_ref())))
    }

    /// Takes a modifier, if it is there.
    fn has(&mut self, name: &str) -> bool {
        for (i, m) in self.mods.iter().enumerate() {
            if self.used >> i & 1 == 0 && *m == name {
                self.used |= 1 << i;
                return true;
            }
        }
        false
    }

    /// Takes the first modifier of a list.
    fn one_of<T: Copy>(&mut self, names: &[(&str, T)]) -> Option<T> {
        names.iter().find(|(name, _)| self.has(name)).map(|(_, value)| *value)
    }

    /// Takes the next type.
    fn ty(&mut self) -> Result<Ty> {
        for (i, m) in self.mods.iter().enumerate() {
            if self.used >> i & 1 == 0
                && let Some(ty) = Ty::parse(m)
            {
                self.used |= 1 << i;
                return Ok(ty);
            }
        }
        self.bad("no type given")
    }

    /// All modifiers must have been understood.
    fn done(&self) -> Result<()> {
        for (i, m) in self.mods.iter().enumerate() {
            if self.used >> i & 1 == 0 {
                return self.unsupported(format!("modifier `.{m}`"));
            }
        }
        Ok(())
    }

    fn count(&self, range: std::ops::RangeInclusive<usize>) -> Result<()> {
        let n = self.stmt.operands.len();
        if range.contains(&n) { Ok(()) } else { self.bad(format!("{n} operands, wanted {range:?}")) }
    }

    fn operand(&self, i: usize) -> Result<&'a Operand<'a>> {
        match self.stmt.operands.get(i) {
            Some(operand) => Ok(operand),
            None => self.bad(format!("operand {} is missing", i + 1)),
        }
    }

    fn word(&self, i: usize) -> Result<&'a str> {
        match self.operand(i)? {
            Operand::Word(w) => Ok(w),
            other => self.bad(format!("expected a name, got {other:?}")),
        }
    }

    /// A destination that is not a predicate.
    fn dst(&mut self, i: usize) -> Result<Reg> {
        let operand = self.operand(i)?;
        self.dst_of(operand)
    }

    fn dst_of(&mut self, operand: &'a Operand<'a>) -> Result<Reg> {
        match self.any_dst(operand)? {
            Reg::Pred(_) => self.bad("the destination is a predicate"),
            reg => Ok(reg),
        }
    }

    fn any_dst(&mut self, operand: &'a Operand<'a>) -> Result<Reg> {
        match operand {
            Operand::Word("_") => Ok(Reg::Sink),
            Operand::Word(w) => match self.cx.reg(w, self.stmt.scope, self.stmt.line)? {
                Some(reg) => Ok(reg),
                None => self.bad(format!("`{w}` is not a declared register")),
            },
            other => self.bad(format!("expected a register, got {other:?}")),
        }
    }

    fn pred_dst(&mut self, operand: &'a Operand<'a>) -> Result<Reg> {
        match self.any_dst(operand)? {
            reg @ (Reg::Pred(_) | Reg::Sink) => Ok(reg),
            _ => self.bad("the destination must be a predicate"),
        }
    }

    /// `d` or `d|p`.
    fn dst_pair(&self, i: usize) -> Result<(&'a Operand<'a>, Option<&'a Operand<'a>>)> {
        Ok(match self.operand(i)? {
            Operand::Pair(a, b) => (a, Some(b)),
            other => (other, None),
        })
    }

    fn vector_dst(&mut self, i: usize) -> Result<Vec<Reg>> {
        match self.operand(i)? {
            Operand::Vector(list) => list.iter().map(|o| self.dst_of(o)).collect(),
            other => Ok(vec![self.dst_of(other)?]),
        }
    }

    fn vector_src(&mut self, i: usize, ty: Ty) -> Result<Vec<Src>> {
        match self.operand(i)? {
            Operand::Vector(list) => list.iter().map(|o| self.src_of(o, ty)).collect(),
            other => Ok(vec![self.src_of(other, ty)?]),
        }
    }

    /// A source that is not a predicate; float literals take the type's width.
    fn src(&mut self, i: usize, ty: Ty) -> Result<Src> {
        let operand = self.operand(i)?;
        self.src_of(operand, ty)
    }

    fn src_of(&mut self, operand: &'a Operand<'a>, ty: Ty) -> Result<Src> {
        Ok(match operand {
            Operand::Int(v) => match ty {
                Ty::F32 => Src::Imm(u64::from((*v as i64 as f32).to_bits())),
                Ty::F64 => Src::Imm((*v as i64 as f64).to_bits()),
                _ => Src::Imm(*v),
            },
            Operand::F32(v) if ty.bytes() == 8 => Src::Imm(f64::from(f32::from_bits(*v)).to_bits()),
            Operand::F32(v) => Src::Imm(u64::from(*v)),
            Operand::F64(v) if ty.bytes() == 8 => Src::Imm(*v),
            Operand::F64(v) => Src::Imm(u64::from((f64::from_bits(*v) as f32).to_bits())),
            Operand::Word(w) => match self.name(w, 0)? {
                Src::Pred(..) => return self.bad(format!("`{w}` is a predicate")),
                src => src,
            },
            Operand::Sum(w, addend) => self.name(w, *addend)?,
            other => return self.bad(format!("operand {other:?} is not supported here")),
        })
    }

    /// A register, special register or symbol.
    fn name(&mut self, w: &'a str, addend: i64) -> Result<Src> {
        if let Some(reg) = self.cx.reg(w, self.stmt.scope, self.stmt.line)? {
            if addend != 0 {
                return self.bad("sum of a register and a constant outside of an address");
            }
            return Ok(match reg {
                Reg::W32(r) => Src::W32(r),
                Reg::W64(r) => Src::W64(r),
                Reg::Pred(p) => Src::Pred(p, false),
                Reg::Sink => return self.bad("`_` as a source"),
            });
        }
        if let Some(special) = special(w) {
            return Ok(Src::Special(special));
        }
        if w == "WARP_SZ" {
            return Ok(Src::Imm(32));
        }
        let add = |v: u64| Src::Imm(v.wrapping_add(addend as u64));
        Ok(match self.cx.place(w, self.stmt.scope) {
            Some(Place::Frame(offset)) => Src::Special(Special::Frame(offset.wrapping_add(addend as u32))),
            Some(Place::Shared(offset)) => add(u64::from(offset)),
            Some(Place::DynamicShared) => Src::Special(Special::DynamicBase(addend as u32)),
            Some(Place::Absolute(address)) => add(address),
            Some(Place::EntryParam(offset)) => add(u64::from(offset)),
            Some(Place::Function(index)) => add(crate::memory::FUNCTION_WINDOW + u64::from(index) * 16),
            Some(Place::Printf | Place::AssertFail | Place::Missing) => {
                return self.bad(format!("address of `{w}`, which has no body here"));
            }
            None => return self.bad(format!("`{w}` is not declared")),
        })
    }

    fn pred_src(&mut self, i: usize) -> Result<Src> {
        let operand = self.operand(i)?;
        let (w, negate) = match operand {
            Operand::Word(w) => (w, false),
            Operand::Not(w) => (w, true),
            Operand::Int(v) => return Ok(Src::Imm(*v & 1)),
            other => return self.bad(format!("expected a predicate, got {other:?}")),
        };
        match self.cx.reg(w, self.stmt.scope, self.stmt.line)? {
            Some(Reg::Pred(p)) => Ok(Src::Pred(p, negate)),
            _ => self.bad(format!("`{w}` is not a declared predicate")),
        }
    }

    fn label(&self, name: &str) -> Result<u32> {
        let mut at = Some(self.stmt.scope);
        while let Some(id) = at {
            let scope = &self.cx.body.scopes[id as usize];
            if let Some(&target) = scope.labels.get(name) {
                return Ok(target);
            }
            at = scope.parent;
        }
        self.bad(format!("label `{name}` is not defined"))
    }

    fn decode(mut self) -> Result<Inst> {
        let guard = match self.stmt.guard {
            None => None,
            Some((name, negate)) => match self.cx.reg(name, self.stmt.scope, self.stmt.line)? {
                Some(Reg::Pred(pred)) => Some(Guard { pred, negate }),
                _ => return self.bad(format!("guard `{name}` is not a declared predicate")),
            },
        };
        let op = self.op()?;
        self.done()?;
        let class = class(&op);
        Ok(Inst { op, guard, class, line: self.stmt.line, loc: self.stmt.loc })
    }

    fn op(&mut self) -> Result<Op> {
        match self.mods[0] {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "abs" | "neg" | "min" | "max" => {
                self.arithmetic()
            }
            "rem" | "sad" | "mul24" | "mad24" | "popc" | "clz" | "bfind" | "fns" | "brev" | "bfe" | "bfi"
            | "szext" | "bmsk" | "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shf" | "shl" | "shr"
            | "prmt" | "dp4a" | "dp2a" | "addc" | "subc" | "madc" => self.integer(),
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign" | "testp" => {
                self.float()
            }
            "setp" | "set" | "selp" | "slct" => self.compare(),
            "mov" | "cvt" | "cvta" | "isspacep" => self.data(),
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "ldmatrix" | "stmatrix" | "movmatrix" | "mma"
            | "prefetch" | "prefetchu" | "discard" | "applypriority" => self.memory(),
            "shfl" | "vote" | "match" | "redux" | "elect" | "activemask" | "bar" | "barrier" | "membar"
            | "fence" | "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep"
            | "pmevent" | "griddepcontrol" | "setmaxnreg" => self.control(),
            _ => self.unsupported("this instruction is not implemented"),
        }
    }

    /// Opcodes that are integer or floating point by their type.
    fn arithmetic(&mut self) -> Result<Op> {
        let is_float = self.mods.iter().any(|m| {
            matches!(Ty::parse(m), Some(t) if t.is_float() || matches!(t, Ty::F16x2 | Ty::Bf16x2 | Ty::F32x2))
        });
        if is_float { self.float() } else { self.integer() }
    }
}

/// A loop around `atom.cas` may start from a plain load: what that reads is compared before it counts.
fn compared_loads(code: &mut [Inst]) {
    let place = |access: &Access| match access.addr.base {
        Src::W64(r) => Some((false, r, access.addr.offset, access.ty.bytes())),
        Src::W32(r) => Some((true, r, access.addr.offset, access.ty.bytes())),
        _ => None,
    };
    let compared: HashSet<_> = code
        .iter()
        .filter_map(|inst| match &inst.op {
            Op::Atom { access, op: AtomOp::Cas, .. } => place(access),
            _ => None,
        })
        .collect();
    if compared.is_empty() {
        return;
    }
    for inst in code {
        if let Op::Ld { access, dst } = &mut inst.op
            && dst.len() == 1
            && place(access).is_some_and(|place| compared.contains(&place))
        {
            access.sync.get_or_insert(Sync { wide: true, acquire: false, release: false });
        }
    }
}

fn axis(s: &str) -> Option<u8> {
    Some(match s {
        "x" => 0,
        "y" => 1,
        "z" => 2,
        _ => return None,
    })
}

fn special(w: &str) -> Option<Special> {
    let name = w.strip_prefix('%')?;
    let (base, suffix) = name.split_once('.').unwrap_or((name, ""));
    if suffix.is_empty() {
        return Some(match base {
            "laneid" => Special::LaneId,
            "warpid" => Special::WarpId,
            "nwarpid" => Special::NwarpId,
            "smid" => Special::SmId,
            "nsmid" => Special::NsmId,
            "gridid" => Special::GridId,
            "lanemask_eq" => Special::LaneMaskEq,
            "lanemask_le" => Special::LaneMaskLe,
            "lanemask_lt" => Special::LaneMaskLt,
            "lanemask_ge" => Special::LaneMaskGe,
            "lanemask_gt" => Special::LaneMaskGt,
            "clock" | "clock64" | "globaltimer" | "globaltimer_lo" => Special::Clock,
            "clock_hi" | "globaltimer_hi" => Special::ClockHi,
            "dynamic_smem_size" => Special::DynamicSmem,
            "total_smem_size" => Special::TotalSmem,
            "cluster_ctarank" | "is_explicit_cluster" => Special::Zero,
            "cluster_nctarank" => Special::One,
            _ => return None,
        });
    }
    let axis = axis(suffix)?;
    Some(match base {
        "tid" => Special::Tid(axis),
        "ntid" => Special::Ntid(axis),
        "ctaid" | "clusterid" => Special::Ctaid(axis),
        "nctaid" | "nclusterid" => Special::Nctaid(axis),
        "cluster_ctaid" => Special::Zero,
        "cluster_nctaid" => Special::One,
        _ => return None,
    })
}

fn class(op: &Op) -> Class {
    let of = |ty: Ty| match ty {
        Ty::F32 | Ty::F32x2 => Class::Float32,
        Ty::F64 => Class::Float64,
        Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => Class::Half,
        _ => Class::Integer,
    };
    match op {
        Op::Int { .. } | Op::Bfi { .. } | Op::Carry { .. } | Op::Pred { .. } | Op::Selp { .. } => {
            Class::Integer
        }
        Op::Float { op, ty, mode, .. } => match op {
            FloatOp::Rsqrt | FloatOp::Sin | FloatOp::Cos | FloatOp::Lg2 | FloatOp::Ex2 | FloatOp::Tanh => {
                Class::Special
            }
            FloatOp::Rcp | FloatOp::Sqrt if mode.approx => Class::Special,
            _ => of(*ty),
        },
        Op::TestP { ty, .. } | Op::Setp { ty, .. } | Op::Set { ty, .. } | Op::Slct { cond: ty, .. } => {
            of(*ty)
        }
        Op::Cvt { .. } | Op::CvtPair { .. } => Class::Convert,
        Op::Mov { .. }
        | Op::Pack { .. }
        | Op::Unpack { .. }
        | Op::Cvta { .. }
        | Op::IsSpace { .. }
        | Op::Nop => Class::Move,
        Op::Ld { access, .. } | Op::St { access, .. } => match access.space {
            Space::Global => Class::Global,
            Space::Shared => Class::Shared,
            Space::Local => Class::Local,
            Space::Const | Space::Param => Class::Constant,
            Space::Generic => Class::Generic,
        },
        Op::Ldmatrix { .. } | Op::Stmatrix { .. } => Class::Shared,
        Op::Atom { .. } => Class::Atomic,
        Op::CpAsync { .. } | Op::CpCommit | Op::CpWait { .. } | Op::CpWaitAll => Class::Async,
        Op::Mma(_) => Class::Tensor,
        Op::Shfl { .. }
        | Op::Vote { .. }
        | Op::Match { .. }
        | Op::Redux { .. }
        | Op::Elect { .. }
        | Op::ActiveMask { .. }
        | Op::Movmatrix { .. } => Class::Warp,
        Op::Bar { .. } | Op::BarWarp { .. } | Op::Fence { .. } => Class::Barrier,
        Op::Bra { .. } | Op::Brx { .. } | Op::Call(_) | Op::Ret | Op::Exit | Op::Trap | Op::Goto { .. } => {
            Class::Control
        }
    }
}
