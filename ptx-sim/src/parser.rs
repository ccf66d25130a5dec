//! Tokens to statements: scopes, declarations, labels, instructions. Types and opcodes are left to `decode`.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::ir::{Space, Ty};
use crate::lexer::{Tok, Token, error, lex};

/// PTX text longer than this is refused.
const MAX_TEXT: usize = 64 << 20;
const MAX_SCOPES: usize = 1 << 18;
const MAX_NESTING: usize = 256;
const MAX_VARIABLE: u64 = 1 << 28;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand<'a> {
    Word(&'a str),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `!%p`
    Not(&'a str),
    /// `symbol+4`
    Sum(&'a str, i64),
    Vector(Vec<Self>),
    Address {
        base: Box<Self>,
        offset: i64,
        extra: bool,
    },
    /// `%r1|%p1`
    Pair(Box<Self>, Box<Self>),
    Tuple(Vec<Self>),
}

#[derive(Debug)]
pub(crate) struct Stmt<'a> {
    pub(crate) line: u32,
    pub(crate) loc: (u32, u32),
    pub(crate) scope: u32,
    /// Name and negation.
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) opcode: &'a str,
    pub(crate) operands: Vec<Operand<'a>>,
}

#[derive(Debug, Clone)]
pub(crate) struct VarDecl<'a> {
    pub(crate) space: Space,
    pub(crate) name: &'a str,
    pub(crate) line: u32,
    pub(crate) align: u32,
    pub(crate) size: u32,
    /// Declared here and defined elsewhere.
    pub(crate) is_extern: bool,
    /// `extern .shared x[]`: the dynamic shared memory.
    pub(crate) is_dynamic: bool,
    pub(crate) init: Vec<u8>,
    pub(crate) relocations: Vec<(u32, u32, String, i64)>,
    pub(crate) is_initialized: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Scope<'a> {
    pub(crate) parent: Option<u32>,
    /// Type, and the count of a `%r<count>` declaration.
    pub(crate) regs: HashMap<&'a str, (Ty, Option<u32>)>,
    pub(crate) vars: HashMap<&'a str, VarDecl<'a>>,
    /// In order of declaration.
    pub(crate) var_order: Vec<&'a str>,
    /// Statement index.
    pub(crate) labels: HashMap<&'a str, u32>,
    pub(crate) branch_targets: HashMap<&'a str, Vec<&'a str>>,
}

#[derive(Debug)]
pub(crate) struct FunctionAst<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: u32,
    pub(crate) is_entry: bool,
    pub(crate) rets: Vec<VarDecl<'a>>,
    pub(crate) params: Vec<VarDecl<'a>>,
    pub(crate) required_block: Option<[u32; 3]>,
    pub(crate) max_threads: Option<u32>,
    pub(crate) cluster: [u32; 3],
    /// None for a declaration only.
    pub(crate) body: Option<Body<'a>>,
}

#[derive(Debug, Default)]
pub(crate) struct Body<'a> {
    pub(crate) scopes: Vec<Scope<'a>>,
    pub(crate) stmts: Vec<Stmt<'a>>,
}

#[derive(Debug, Default)]
pub(crate) struct ModuleAst<'a> {
    pub(crate) functions: Vec<FunctionAst<'a>>,
    pub(crate) vars: Vec<VarDecl<'a>>,
    pub(crate) files: HashMap<u32, &'a str>,
    pub(crate) aliases: Vec<(&'a str, &'a str)>,
    pub(crate) target: &'a str,
}

struct Parser<'a> {
    toks: Vec<Token<'a>>,
    pos: usize,
    loc: (u32, u32),
}

pub(crate) fn parse(text: &str) -> Result<ModuleAst<'_>> {
    if text.len() > MAX_TEXT {
        return Err(Error::Limit(format!("PTX text of {} bytes, at most {MAX_TEXT} are read", text.len())));
    }
    Parser { toks: lex(text)?, pos: 0, loc: (0, 0) }.module()
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.toks.get(self.pos).or(self.toks.last()).map_or(1, |t| t.line)
    }

    fn peek(&self) -> Option<Tok<'a>> {
        self.toks.get(self.pos).map(|t| t.tok)
    }

    fn peek_at(&self, ahead: usize) -> Option<Tok<'a>> {
        self.toks.get(self.pos + ahead).map(|t| t.tok)
    }

    fn next(&mut self) -> Result<Tok<'a>> {
        let tok = self.peek().ok_or_else(|| error(self.line(), "unexpected end of the text"))?;
        self.pos += 1;
        Ok(tok)
    }

    fn fail<T>(&self, wanted: &str) -> Result<T> {
        let got = match self.peek() {
            None => "the end of the text".to_owned(),
            Some(Tok::Word(w)) => format!("`{w}`"),
            Some(Tok::Punct(p)) => format!("`{}`", p as char),
            Some(other) => format!("{other:?}"),
        };
        Err(error(self.line(), format!("expected {wanted}, got {got}")))
    }

    fn eat(&mut self, p: u8) -> bool {
        let hit = self.peek() == Some(Tok::Punct(p));
        self.pos += usize::from(hit);
        hit
    }

    fn expect(&mut self, p: u8) -> Result<()> {
        if self.eat(p) { Ok(()) } else { self.fail(&format!("`{}`", p as char)) }
    }

    fn word(&mut self, wanted: &str) -> Result<&'a str> {
        match self.peek() {
            Some(Tok::Word(w)) => {
                self.pos += 1;
                Ok(w)
            }
            _ => self.fail(wanted),
        }
    }

    fn int(&mut self) -> Result<u64> {
        let negative = self.eat(b'-');
        match self.peek() {
            Some(Tok::Int(v)) => {
                self.pos += 1;
                Ok(if negative { v.wrapping_neg() } else { v })
            }
            _ => self.fail("an integer"),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        let line = self.line();
        u32::try_from(self.int()?).map_err(|_| error(line, "integer does not fit 32 bits"))
    }

    fn module(mut self) -> Result<ModuleAst<'a>> {
        let mut module = ModuleAst::default();
        while let Some(tok) = self.peek() {
            let Tok::Word(word) = tok else {
                return self.fail("a directive");
            };
            match word {
                ".version" => {
                    self.pos += 1;
                    match self.next()? {
                        Tok::Int(_) | Tok::F64(_) => {}
                        _ => return self.fail("a version number"),
                    }
                }
                ".target" => {
                    self.pos += 1;
                    module.target = self.word("a target")?;
                    while self.eat(b',') {
                        self.word("a target option")?;
                    }
                }
                ".address_size" => {
                    self.pos += 1;
                    if self.int()? != 64 {
                        return Err(error(self.line(), "only 64-bit addresses are supported"));
                    }
                }
                ".file" => {
                    self.pos += 1;
                    let index = self.u32()?;
                    let Tok::Str(name) = self.next()? else {
                        return self.fail("a file name");
                    };
                    module.files.insert(index, name);
                    while self.eat(b',') {
                        self.int()?;
                    }
                }
                ".section" => {
                    self.pos += 1;
                    self.word("a section name")?;
                    self.expect(b'{')?;
                    while !self.eat(b'}') {
                        self.next()?;
                    }
                }
                ".alias" => {
                    self.pos += 1;
                    let alias = self.word("an alias")?;
                    self.expect(b',')?;
                    module.aliases.push((alias, self.word("a function")?));
                    self.expect(b';')?;
                }
                ".pragma" => self.skip_statement()?,
                _ => self.linked(&mut module)?,
            }
        }
        Ok(module)
    }

    fn skip_statement(&mut self) -> Result<()> {
        while self.next()? != Tok::Punct(b';') {}
        Ok(())
    }

    /// A function or variable, with its linkage.
    fn linked(&mut self, module: &mut ModuleAst<'a>) -> Result<()> {
        let mut is_extern = false;
        loop {
            let line = self.line();
            match self.word("a directive")? {
                ".visible" | ".weak" | ".common" => {}
                ".extern" => is_extern = true,
                ".entry" => {
                    let function = self.function(true, line)?;
                    module.functions.push(function);
                    return Ok(());
                }
                ".func" => {
                    let function = self.function(false, line)?;
                    module.functions.push(function);
                    return Ok(());
                }
                ".global" => return self.variables(Space::Global, is_extern, &mut module.vars),
                ".const" => return self.variables(Space::Const, is_extern, &mut module.vars),
                ".shared" => return self.variables(Space::Shared, is_extern, &mut module.vars),
                other => return Err(error(line, format!("unknown directive `{other}`"))),
            }
        }
    }

    fn variables(&mut self, space: Space, is_extern: bool, out: &mut Vec<VarDecl<'a>>) -> Result<()> {
        loop {
            let decl = self.variable(space, is_extern)?;
            out.push(decl);
            if !self.eat(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    /// What follows the state space: `.align 4 .b8 name[16] = {...}`.
    fn variable(&mut self, space: Space, is_extern: bool) -> Result<VarDecl<'a>> {
        let (mut align, mut vector, mut ty, mut is_pointer) = (None, 1u64, None, false);
        while let Some(Tok::Word(w)) = self.peek() {
            if !w.starts_with('.') {
                break;
            }
            let line = self.line();
            self.pos += 1;
            // `.align.16`-like joins do not occur, but `.param.b32` style joins do not either: one modifier a word.
            match &w[1..] {
                // Behind `.ptr` it is the alignment of what the parameter points to, not its own.
                "align" if is_pointer => _ = self.u32()?,
                "align" => align = Some(self.u32()?),
                "ptr" => is_pointer = true,
                "global" | "const" | "shared" | "local" | "managed" | "unified" => {}
                "attribute" => {
                    self.expect(b'(')?;
                    while !self.eat(b')') {
                        self.next()?;
                    }
                }
                "v2" => vector = 2,
                "v4" => vector = 4,
                "texref" | "samplerref" | "surfref" => {
                    return Err(Error::Unsupported {
                        line,
                        instruction: w.to_owned(),
                        reason: "textures".to_owned(),
                    });
                }
                other => match Ty::parse(other) {
                    Some(t) if t != Ty::Pred => ty = Some(t),
                    _ => return Err(error(line, format!("unknown type or attribute `.{other}`"))),
                },
            }
        }
        let line = self.line();
        let ty = ty.ok_or_else(|| error(line, "a variable without a type"))?;
        let name = self.word("a variable name")?;
        let element = u64::from(ty.bytes()) * vector;
        let (mut size, mut is_dynamic) = (element, false);
        let mut is_array = false;
        while self.eat(b'[') {
            is_array = true;
            if self.eat(b']') {
                is_dynamic = true;
                continue;
            }
            size = size.saturating_mul(self.int()?);
            self.expect(b']')?;
        }
        if size > MAX_VARIABLE {
            return Err(error(line, format!("variable `{name}` is larger than {MAX_VARIABLE} bytes")));
        }
        let align = align.unwrap_or(element as u32);
        if !align.is_power_of_two() || align > 4096 {
            return Err(error(line, format!("alignment {align} of `{name}`")));
        }
        let mut decl = VarDecl {
            space,
            name,
            line,
            align,
            size: size as u32,
            is_extern,
            is_dynamic: is_dynamic && is_extern,
            init: Vec::new(),
            relocations: Vec::new(),
            is_initialized: false,
        };
        if self.eat(b'=') {
            decl.is_initialized = true;
            if !matches!(space, Space::Global | Space::Const) {
                return Err(error(
                    line,
                    format!("`{name}`: only .global and .const variables have initial values"),
                ));
            }
            self.initializer(ty, &mut decl, 0)?;
            if is_dynamic {
                decl.size = decl.init.len() as u32;
            }
            if decl.init.len() > decl.size as usize {
                return Err(error(line, format!("initializer of `{name}` is larger than the variable")));
            }
        } else if is_dynamic && !is_extern && !is_array {
            return Err(error(line, "array without a size"));
        }
        if decl.is_dynamic || (is_dynamic && !decl.is_initialized) {
            decl.size = 0;
        }
        Ok(decl)
    }

    fn initializer(&mut self, ty: Ty, decl: &mut VarDecl<'a>, depth: usize) -> Result<()> {
        if depth > 8 {
            return self.fail("an initializer that nests less");
        }
        if self.eat(b'{') {
            while !self.eat(b'}') {
                self.initializer(ty, decl, depth + 1)?;
                if !self.eat(b',') {
                    self.expect(b'}')?;
                    break;
                }
            }
            return Ok(());
        }
        let bytes = ty.bytes() as usize;
        let line = self.line();
        let at = decl.init.len() as u32;
        let value = match self.peek() {
            Some(Tok::Int(_) | Tok::Punct(b'-')) => self.int()?,
            Some(Tok::F32(v)) => {
                self.pos += 1;
                if ty == Ty::F64 { f64::from(f32::from_bits(v)).to_bits() } else { u64::from(v) }
            }
            Some(Tok::F64(v)) => {
                self.pos += 1;
                if ty == Ty::F32 { u64::from((f64::from_bits(v) as f32).to_bits()) } else { v }
            }
            Some(Tok::Word(w)) => {
                self.pos += 1;
                let symbol = if self.eat(b'(') {
                    let inner = self.word("a symbol")?;
                    self.expect(b')')?;
                    inner
                } else {
                    w
                };
                let addend = self.addend()?;
                decl.relocations.push((at, ty.bytes(), symbol.to_owned(), addend));
                0
            }
            _ => return self.fail("an initial value"),
        };
        if bytes > 8 {
            return Err(error(line, "initial values of this type are not supported"));
        }
        decl.init.extend_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }

    /// `+4`, `+-4`, `-4` or nothing.
    fn addend(&mut self) -> Result<i64> {
        if self.eat(b'+') || self.peek() == Some(Tok::Punct(b'-')) { Ok(self.int()? as i64) } else { Ok(0) }
    }

    fn params(&mut self) -> Result<Vec<VarDecl<'a>>> {
        let mut out = Vec::new();
        if !self.eat(b'(') {
            return Ok(out);
        }
        while !self.eat(b')') {
            let line = self.line();
            match self.word("`.param`")? {
                ".param" => out.push(self.variable(Space::Param, true)?),
                other => {
                    return Err(error(line, format!("parameters in `{other}` are not supported")));
                }
            }
            if !self.eat(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(out)
    }

    fn function(&mut self, is_entry: bool, line: u32) -> Result<FunctionAst<'a>> {
        if matches!(self.peek(), Some(Tok::Word(".attribute"))) {
            self.pos += 1;
            while !self.eat(b')') {
                self.next()?;
            }
        }
        let rets = if is_entry { Vec::new() } else { self.params()? };
        let name = self.word("a function name")?;
        let params = self.params()?;
        let mut function = FunctionAst {
            name,
            line,
            is_entry,
            rets,
            params,
            required_block: None,
            max_threads: None,
            cluster: [1; 3],
            body: None,
        };
        loop {
            match self.peek() {
                Some(Tok::Punct(b';')) => {
                    self.pos += 1;
                    return Ok(function);
                }
                Some(Tok::Punct(b'{')) => break,
                Some(Tok::Word(w)) => {
                    self.pos += 1;
                    match w {
                        ".maxntid" | ".reqntid" | ".reqnctapercluster" => {
                            let mut dims = [1; 3];
                            for (i, dim) in dims.iter_mut().enumerate() {
                                if i > 0 && !self.eat(b',') {
                                    break;
                                }
                                *dim = self.u32()?;
                            }
                            match w {
                                ".maxntid" => {
                                    function.max_threads =
                                        dims.iter().try_fold(1u32, |a, d| a.checked_mul(*d));
                                }
                                ".reqntid" => function.required_block = Some(dims),
                                _ => function.cluster = dims,
                            }
                        }
                        ".minnctapersm" | ".maxnreg" | ".maxnctapersm" | ".maxclusterrank" => {
                            self.int()?;
                        }
                        ".noreturn" | ".explicitcluster" => {}
                        ".pragma" => self.skip_statement()?,
                        other => {
                            return Err(error(self.line(), format!("unknown directive `{other}`")));
                        }
                    }
                }
                _ => return self.fail("a function body"),
            }
        }
        function.body = Some(self.body()?);
        Ok(function)
    }

    fn body(&mut self) -> Result<Body<'a>> {
        let mut body = Body::default();
        let mut stack: Vec<u32> = Vec::new();
        self.loc = (0, 0);
        loop {
            let line = self.line();
            let Some(tok) = self.peek() else {
                return self.fail("`}`");
            };
            match tok {
                Tok::Punct(b'{') => {
                    self.pos += 1;
                    if stack.len() > MAX_NESTING || body.scopes.len() > MAX_SCOPES {
                        return Err(error(line, "scopes nest too deep, or are too many"));
                    }
                    body.scopes.push(Scope { parent: stack.last().copied(), ..Scope::default() });
                    stack.push(body.scopes.len() as u32 - 1);
                }
                Tok::Punct(b'}') => {
                    self.pos += 1;
                    stack.pop();
                    if stack.is_empty() {
                        return Ok(body);
                    }
                }
                Tok::Punct(b';') => self.pos += 1,
                Tok::Punct(b'@') => {
                    self.pos += 1;
                    let negate = self.eat(b'!');
                    let pred = self.word("a predicate")?;
                    let stmt = self.instruction(Some((pred, negate)), *stack.last().unwrap_or(&0))?;
                    body.stmts.push(stmt);
                }
                Tok::Word(word) => {
                    let scope = *stack.last().unwrap_or(&0);
                    if self.peek_at(1) == Some(Tok::Punct(b':')) {
                        self.pos += 2;
                        self.label(word, line, scope, &mut body)?;
                    } else if word.starts_with('.') {
                        self.pos += 1;
                        self.directive(word, line, &mut body.scopes[scope as usize])?;
                    } else {
                        let stmt = self.instruction(None, scope)?;
                        body.stmts.push(stmt);
                    }
                }
                _ => return self.fail("a statement"),
            }
        }
    }

    fn label(&mut self, name: &'a str, line: u32, scope: u32, body: &mut Body<'a>) -> Result<()> {
        let at = body.stmts.len() as u32;
        let scope = &mut body.scopes[scope as usize];
        match self.peek() {
            Some(Tok::Word(".branchtargets")) => {
                self.pos += 1;
                let mut targets = vec![self.word("a label")?];
                while self.eat(b',') {
                    targets.push(self.word("a label")?);
                }
                self.expect(b';')?;
                scope.branch_targets.insert(name, targets);
                return Ok(());
            }
            Some(Tok::Word(".callprototype" | ".calltargets")) => return self.skip_statement(),
            _ => {}
        }
        if scope.labels.insert(name, at).is_some() {
            return Err(error(line, format!("label `{name}` occurs twice")));
        }
        Ok(())
    }

    fn directive(&mut self, word: &'a str, line: u32, scope: &mut Scope<'a>) -> Result<()> {
        match word {
            ".loc" => {
                self.loc = (self.u32()?, self.u32()?);
                self.int()?;
                while self.eat(b',') {
                    match self.word("`function_name` or `inlined_at`")? {
                        "function_name" => {
                            self.word("a label")?;
                            self.addend()?;
                        }
                        "inlined_at" => {
                            self.int()?;
                            self.int()?;
                            self.int()?;
                        }
                        other => {
                            return Err(error(line, format!("unknown part `{other}` of .loc")));
                        }
                    }
                }
                Ok(())
            }
            ".reg" => {
                let line = self.line();
                let mut ty = None;
                while let Some(Tok::Word(w)) = self.peek() {
                    if !w.starts_with('.') {
                        break;
                    }
                    self.pos += 1;
                    ty = Some(
                        Ty::parse(&w[1..])
                            .ok_or_else(|| error(line, format!("unknown register type `{w}`")))?,
                    );
                }
                let ty = ty.ok_or_else(|| error(line, "registers without a type"))?;
                loop {
                    let name = self.word("a register name")?;
                    let count = if self.eat(b'<') {
                        let count = self.u32()?;
                        self.expect(b'>')?;
                        Some(count)
                    } else {
                        None
                    };
                    scope.regs.insert(name, (ty, count));
                    if !self.eat(b',') {
                        break;
                    }
                }
                self.expect(b';')
            }
            ".local" | ".shared" | ".param" | ".global" | ".const" => {
                let space = match word {
                    ".local" => Space::Local,
                    ".shared" => Space::Shared,
                    ".param" => Space::Param,
                    ".global" => Space::Global,
                    _ => Space::Const,
                };
                let mut decls = Vec::new();
                self.variables(space, false, &mut decls)?;
                for decl in decls {
                    scope.var_order.push(decl.name);
                    scope.vars.insert(decl.name, decl);
                }
                Ok(())
            }
            ".extern" if self.peek() == Some(Tok::Word(".shared")) => {
                self.pos += 1;
                let mut decls = Vec::new();
                self.variables(Space::Shared, true, &mut decls)?;
                for decl in decls {
                    scope.var_order.push(decl.name);
                    scope.vars.insert(decl.name, decl);
                }
                Ok(())
            }
            ".pragma" => self.skip_statement(),
            _ => Err(error(line, format!("unknown directive `{word}`"))),
        }
    }

    fn instruction(&mut self, guard: Option<(&'a str, bool)>, scope: u32) -> Result<Stmt<'a>> {
        let line = self.line();
        let opcode = self.word("an instruction")?;
        let mut operands = Vec::new();
        if !self.eat(b';') {
            loop {
                operands.push(self.operand(0)?);
                if !self.eat(b',') {
                    break;
                }
            }
            self.expect(b';')?;
        }
        Ok(Stmt { line, loc: self.loc, scope, guard, opcode, operands })
    }

    fn list(&mut self, close: u8, depth: usize) -> Result<Vec<Operand<'a>>> {
        let mut out = Vec::new();
        while !self.eat(close) {
            out.push(self.operand(depth + 1)?);
            if !self.eat(b',') {
                self.expect(close)?;
                break;
            }
        }
        Ok(out)
    }

    fn operand(&mut self, depth: usize) -> Result<Operand<'a>> {
        if depth > 4 {
            return self.fail("an operand that nests less");
        }
        let first = match self.peek() {
            Some(Tok::Word(w)) => {
                self.pos += 1;
                if depth == 0 && self.peek() == Some(Tok::Punct(b'+')) {
                    Operand::Sum(w, self.addend()?)
                } else {
                    Operand::Word(w)
                }
            }
            Some(Tok::F32(v)) => {
                self.pos += 1;
                Operand::F32(v)
            }
            Some(Tok::F64(v)) => {
                self.pos += 1;
                Operand::F64(v)
            }
            Some(Tok::Int(_) | Tok::Punct(b'-')) => Operand::Int(self.int()?),
            Some(Tok::Punct(b'!')) => {
                self.pos += 1;
                Operand::Not(self.word("a predicate")?)
            }
            Some(Tok::Punct(b'{')) => {
                self.pos += 1;
                Operand::Vector(self.list(b'}', depth)?)
            }
            Some(Tok::Punct(b'(')) => {
                self.pos += 1;
                Operand::Tuple(self.list(b')', depth)?)
            }
            Some(Tok::Punct(b'[')) => {
                self.pos += 1;
                let base = Box::new(self.operand(depth + 1)?);
                let offset = self.addend()?;
                let mut extra = false;
                while !self.eat(b']') {
                    extra = true;
                    self.next()?;
                }
                return Ok(Operand::Address { base, offset, extra });
            }
            _ => return self.fail("an operand"),
        };
        if self.eat(b'|') {
            let second = self.operand(depth + 1)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }
}
