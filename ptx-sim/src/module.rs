//! A parsed module, and launching its kernels.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use crate::counters::Counters;
use crate::decode::{self, GAP, ModuleScope, Place, SharedLayout, Signature, barely_aligned};
use crate::error::{Error, Finding, Result, SourceLine};
use crate::exec::LaunchCx;
use crate::exec::block::{Rng, Worker};
use crate::exec::findings::Findings;
use crate::exec::global::{GENERATIONS, MAX_BLOCKS, Releases};
use crate::ir::*;
use crate::lexer::error;
use crate::memory::{FUNCTION_WINDOW, Gpu};
use crate::parser::{self, ModuleAst, VarDecl};

/// Variables of modules lie from here on, past all windows, every module at its own place.
const MODULE_BASE: u64 = 1 << 48;
const MODULE_STRIDE: u64 = 1 << 36;
const MAX_MODULE_BYTES: u64 = 256 << 20;
static NEXT_MODULE: AtomicU64 = AtomicU64::new(0);

/// Static shared memory, and all shared memory, that a block may have.
const MAX_STATIC_SHARED: u32 = 48 << 10;
const MAX_SHARED: u32 = 227 << 10;
/// Local memory of a thread, and of a block.
const MAX_LOCAL: u32 = 512 << 10;
const MAX_LOCAL_BYTES: u32 = 256 << 20;
/// Registers of all warps of a block, in bytes.
pub(crate) const MAX_REGISTER_BYTES: u64 = 1 << 30;

/// The order in which warps and blocks run. A correct kernel gives the same results under each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// A warp runs until it blocks, or for 2^16 instructions; then the lowest that can run. Blocks in ascending
    /// order.
    #[default]
    FirstWarpFirst,
    /// A warp runs until it blocks, or for 2^16 instructions; then the highest that can run. Blocks in
    /// descending order.
    LastWarpFirst,
    /// Warps take turns of random length in random order, and blocks come in random order, repeatably.
    Random(u64),
}

/// How to launch a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// The raw bytes of each kernel parameter, in order.
    pub params: &'a [&'a [u8]],
    /// Order of warps and blocks.
    pub schedule: Schedule,
    /// Host threads; 0 for one per core.
    pub host_threads: usize,
    /// Instructions that one warp may run before it counts as a runaway.
    pub step_limit: u64,
    /// Distinct findings after which the launch stops.
    pub max_findings: usize,
}

impl Default for Launch<'_> {
    fn default() -> Self {
        Self {
            grid: [1; 3],
            block: [1; 3],
            shared_bytes: 0,
            params: &[],
            schedule: Schedule::FirstWarpFirst,
            host_threads: 0,
            step_limit: 1 << 25,
            max_findings: 32,
        }
    }
}

/// What a clean launch reports.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// What was executed and moved.
    pub counters: Counters,
}

/// A kernel of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Bytes of each parameter.
    pub param_sizes: Vec<u32>,
    /// Line of the PTX text where it starts.
    pub line: u32,
}

/// PTX, parsed and decoded: can be launched any number of times, from several threads, on several [`Gpu`]s.
#[derive(Debug)]
pub struct Module {
    id: u64,
    target: String,
    functions: Vec<Function>,
    variables: Vec<(Variable, u64)>,
    files: HashMap<u32, String>,
    shared: SharedBits,
}

#[derive(Debug, Default)]
struct SharedBits {
    /// Variables at module scope and in device functions: every kernel has them.
    common: Vec<(u32, u32)>,
    common_end: u32,
    common_bytes: u32,
    /// What dynamic shared memory is declared to be aligned to.
    dynamic_align: u32,
    /// Of each kernel: variables, end, bytes.
    own: HashMap<u32, OwnShared>,
}

/// Offset and size of a kernel's own shared variables, where they end, and their bytes.
type OwnShared = (Vec<(u32, u32)>, u32, u32);

impl Module {
    /// Parses and decodes PTX text.
    ///
    /// # Errors
    /// [`Error::Parse`] and [`Error::Unsupported`] with the line of the text, [`Error::Limit`] for a text that
    /// asks for too much.
    pub fn parse(ptx: &str) -> Result<Self> {
        let ast = parser::parse(ptx)?;
        Builder::new(&ast)?.build()
    }

    /// The `.target` of the text: `sm_80`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The kernels that can be launched.
    pub fn kernels(&self) -> impl Iterator<Item = Kernel> + '_ {
        self.functions.iter().filter(|f| f.is_entry).map(|f| Kernel {
            name: f.name.clone(),
            param_sizes: f.params.iter().map(|p| p.size).collect(),
            line: f.line,
        })
    }

    /// The address of a `.global` or `.const` variable on a GPU, and its size.
    ///
    /// # Errors
    /// [`Error::Launch`] if there is no such variable.
    pub fn symbol(&self, gpu: &mut Gpu, name: &str) -> Result<(u64, u64)> {
        self.load(gpu)?;
        let found = self.variables.iter().find(|(v, _)| v.name == name);
        found.map(|(v, at)| (*at, u64::from(v.size))).ok_or_else(|| Error::Launch {
            kernel: name.to_owned(),
            message: "no .global or .const variable has this name".to_owned(),
        })
    }

    /// Gives the module's variables their memory and initial values, once for each GPU.
    fn load(&self, gpu: &mut Gpu) -> Result<()> {
        if gpu.modules.contains(&self.id) {
            return Ok(());
        }
        let bytes = self.variables.iter().map(|(v, _)| u64::from(v.size)).sum();
        if !gpu.has_room(bytes) {
            return Err(Error::Limit(format!("no room for {bytes} bytes of module variables")));
        }
        gpu.modules.insert(self.id);
        for (variable, at) in &self.variables {
            gpu.insert(*at, u64::from(variable.size));
            let mut bytes = variable.init.clone();
            // Without an initializer, module variables are zero.
            bytes.resize(variable.size as usize, 0);
            gpu.write(*at, &bytes)?;
            if let Ok(i) = gpu.allocs.binary_search_by_key(at, |a| a.base) {
                gpu.allocs[i].read_only = variable.space == Space::Const;
            }
        }
        Ok(())
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Error::Launch`] if the launch does not fit the kernel, [`Error::Limit`] if it needs too much memory:
    /// then nothing has run. [`Error::Unsupported`] if it comes to a call of a function that the module only declares,
    /// or asks for clusters. [`Error::Findings`] if the checks found mistakes: then the kernel has run as far
    /// as it could.
    pub fn launch(&self, gpu: &mut Gpu, kernel: &str, launch: &Launch<'_>) -> Result<Report> {
        let fail = |message: String| Err(Error::Launch { kernel: kernel.to_owned(), message });
        let Some(index) = self.functions.iter().position(|f| f.is_entry && f.name == kernel) else {
            let known: Vec<String> = self.kernels().map(|k| k.name).collect();
            return fail(format!("no such kernel; there are {}", known.join(", ")));
        };
        let function = &self.functions[index];
        let params = match pack_params(function, launch.params) {
            Ok(params) => params,
            Err(message) => return fail(message),
        };
        let threads = launch.block.iter().try_fold(1u32, |a, &b| a.checked_mul(b)).unwrap_or(u32::MAX);
        let blocks =
            launch.grid.iter().try_fold(1u64, |a, &b| a.checked_mul(u64::from(b))).unwrap_or(u64::MAX);
        if threads == 0 || threads > 1024 || launch.block[2] > 64 {
            return fail(format!("block of {:?} threads: 1 to 1024 in all, z at most 64", launch.block));
        }
        if blocks == 0 || launch.grid[1] > 65535 || launch.grid[2] > 65535 || launch.grid[0] > 0x7fff_ffff {
            return fail(format!("grid of {:?} blocks", launch.grid));
        }
        if blocks > MAX_BLOCKS {
            return Err(Error::Limit(format!("{blocks} blocks, at most {MAX_BLOCKS} are run")));
        }
        if let Some(wanted) = function.required_block
            && wanted != launch.block
        {
            return fail(format!("the kernel requires blocks of {wanted:?} threads, got {:?}", launch.block));
        }
        if let Some(most) = function.max_threads
            && threads > most
        {
            return fail(format!("the kernel allows {most} threads in a block, got {threads}"));
        }
        if function.cluster.iter().any(|&n| n != 1) {
            return Err(Error::Unsupported {
                line: function.line,
                instruction: ".reqnctapercluster".to_owned(),
                reason: format!("clusters of {:?} blocks", function.cluster),
            });
        }
        let empty = (Vec::new(), self.shared.common_end, 0);
        let (own, end, own_bytes) = self.shared.own.get(&(index as u32)).unwrap_or(&empty);
        let static_bytes = self.shared.common_bytes + own_bytes;
        if static_bytes > MAX_STATIC_SHARED || static_bytes + launch.shared_bytes.min(1 << 20) > MAX_SHARED {
            return fail(format!(
                "{static_bytes} bytes of static and {} of dynamic shared memory; at most {MAX_STATIC_SHARED} static, {MAX_SHARED} in all",
                launch.shared_bytes
            ));
        }
        let warps = threads.div_ceil(32);
        let register_bytes =
            u64::from(warps) * 128 * (u64::from(function.regs32) + 2 * u64::from(function.regs64));
        if register_bytes > MAX_REGISTER_BYTES {
            return Err(Error::Limit(format!("{register_bytes} bytes of registers in a block")));
        }
        let local_limit = (MAX_LOCAL_BYTES / threads.next_multiple_of(32)).min(MAX_LOCAL);
        if function.frame_bytes > local_limit {
            let bytes = function.frame_bytes;
            return Err(Error::Limit(format!(
                "{bytes} bytes of local memory a thread, at most {local_limit}"
            )));
        }
        let align = self.shared.dynamic_align;
        let dynamic_base = barely_aligned(end.next_multiple_of(GAP.max(align)), align);
        let mut shared_vars = self.shared.common.clone();
        shared_vars.extend_from_slice(own);
        shared_vars.push((dynamic_base, launch.shared_bytes));
        self.load(gpu)?;
        gpu.generation += 1;
        if gpu.generation > GENERATIONS {
            gpu.generation = 1;
            for alloc in &mut gpu.allocs {
                alloc.shadow.iter_mut().for_each(|page| *page = OnceLock::new());
            }
        }
        let reached = self.reached(index as u32);
        let cells = |f: fn(&Function) -> u32| {
            reached.iter().map(|&i| f(&self.functions[i as usize])).min().unwrap_or(4)
        };
        let stop = AtomicBool::new(false);
        let releases = Releases::default();
        let missing = OnceLock::new();
        let cx = LaunchCx {
            functions: &self.functions,
            kernel: index as u32,
            gpu,
            grid: launch.grid,
            block: launch.block,
            params: &params,
            dynamic_base,
            dynamic_bytes: launch.shared_bytes,
            static_bytes,
            shared_vars: &shared_vars,
            shared_end: dynamic_base + launch.shared_bytes,
            shared_cell: cells(|f| f.shared_cell),
            global_cell: cells(|f| f.global_cell),
            local_limit,
            step_limit: launch.step_limit,
            max_findings: launch.max_findings.max(1),
            schedule: launch.schedule,
            stop: &stop,
            uses_fences: reached.iter().any(|&i| {
                let code = &self.functions[i as usize].code;
                code.iter().any(|inst| match &inst.op {
                    Op::Fence { .. } => true,
                    Op::Ld { access, .. } | Op::St { access, .. } | Op::Atom { access, .. } => {
                        access.sync.is_some_and(|s| s.acquire || s.release)
                    }
                    _ => false,
                })
            }),
            releases: &releases,
            missing: &missing,
        };
        let (counters, findings) = run(&cx, blocks, launch.host_threads);
        if !findings.is_empty() {
            return Err(Error::Findings(self.describe(kernel, launch, findings)));
        }
        if let Some(&(function, pc)) = missing.get() {
            let inst = &self.functions[function as usize].code[pc as usize];
            let name = match &inst.op {
                Op::Call(call) => match &call.target {
                    CallTarget::Missing(name) => name.as_str(),
                    _ => "",
                },
                _ => "",
            };
            return Err(Error::Unsupported {
                line: inst.line,
                instruction: "call".to_owned(),
                reason: format!("`{name}` is declared, and has no body in this module"),
            });
        }
        Ok(Report { counters })
    }

    /// The kernel and every function it may call.
    fn reached(&self, kernel: u32) -> Vec<u32> {
        let mut list = vec![kernel];
        let mut known = HashSet::from([kernel]);
        let mut at = 0;
        while at < list.len() {
            let function = &self.functions[list[at] as usize];
            if function.calls_indirect {
                return (0..self.functions.len() as u32).collect();
            }
            for &callee in &function.calls {
                if known.insert(callee) {
                    list.push(callee);
                }
            }
            at += 1;
        }
        list
    }

    fn describe(&self, kernel: &str, launch: &Launch<'_>, findings: Findings) -> Vec<Finding> {
        let [bx, by, _] = launch.block;
        let [gx, gy, _] = launch.grid.map(u64::from);
        findings
            .sorted()
            .into_iter()
            .map(|raw| {
                let inst = &self.functions[raw.function as usize].code[raw.pc as usize];
                let (b, t) = (raw.block, raw.thread);
                Finding {
                    kind: raw.kind,
                    kernel: kernel.to_owned(),
                    ptx_line: inst.line,
                    source: self
                        .files
                        .get(&inst.loc.0)
                        .map(|f| SourceLine { file: f.clone(), line: inst.loc.1 }),
                    block: [(b % gx) as u32, (b / gx % gy) as u32, (b / (gx * gy)) as u32],
                    thread: [t % bx, t / bx % by, t / (bx * by)],
                    address: raw.address,
                    message: raw.message,
                    count: raw.count,
                }
            })
            .collect()
    }
}

/// Lays parameters out as the kernel declares them.
fn pack_params(function: &Function, params: &[&[u8]]) -> Result<Vec<u8>, String> {
    if params.len() != function.params.len() {
        return Err(format!("{} parameters, wanted {}", params.len(), function.params.len()));
    }
    let mut out = vec![0; function.param_bytes as usize];
    for (i, (param, bytes)) in function.params.iter().zip(params).enumerate() {
        if bytes.len() != param.size as usize {
            return Err(format!(
                "parameter {i} (`{}`) has {} bytes, wanted {}",
                param.name,
                bytes.len(),
                param.size
            ));
        }
        let at = param.offset as usize;
        out[at..at + bytes.len()].copy_from_slice(bytes);
    }
    Ok(out)
}

/// Runs all blocks, on as many host threads as there is use for.
fn run(cx: &LaunchCx<'_>, blocks: u64, host_threads: usize) -> (Counters, Findings) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = if host_threads == 0 { cores } else { host_threads };
    let workers = wanted.min(usize::try_from(blocks).unwrap_or(usize::MAX)).clamp(1, 256);
    let next = AtomicU64::new(0);
    let shuffle = match cx.schedule {
        Schedule::Random(seed) => Some(Shuffle::new(blocks, seed)),
        _ => None,
    };
    let total = Mutex::new((Counters::default(), Findings::default()));
    let work = || {
        let mut worker = Worker::new(cx);
        loop {
            let i = next.fetch_add(1, Relaxed);
            if i >= blocks || cx.stop.load(Relaxed) {
                break;
            }
            worker.run_block(match (&cx.schedule, &shuffle) {
                (_, Some(shuffle)) => shuffle.at(i),
                (Schedule::LastWarpFirst, _) => blocks - 1 - i,
                _ => i,
            });
        }
        if let Ok(mut total) = total.lock() {
            total.0 += &worker.env.counters;
            total.1.merge(worker.env.findings);
        }
    };
    if workers == 1 {
        work();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(work);
            }
        });
    }
    total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A permutation of block numbers without a table: a random start and a stride prime to their number.
struct Shuffle {
    n: u64,
    start: u64,
    stride: u64,
}

impl Shuffle {
    fn new(n: u64, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let gcd = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let start = rng.below(n);
        let mut stride = 1 + rng.below(n);
        while gcd(stride, n) != 1 {
            stride += 1;
        }
        Self { n, start, stride }
    }

    fn at(&self, i: u64) -> u64 {
        ((u128::from(self.start) + u128::from(i) * u128::from(self.stride)) % u128::from(self.n)) as u64
    }
}

struct Builder<'a> {
    ast: &'a ModuleAst<'a>,
    id: u64,
    next: u64,
    variables: Vec<(Variable, u64)>,
    variable_bytes: u64,
    relocations: Vec<Relocation>,
}

/// An address in the initial value of a variable.
struct Relocation {
    variable: usize,
    offset: u32,
    width: u32,
    symbol: String,
    addend: i64,
    line: u32,
}

impl<'a> Builder<'a> {
    fn new(ast: &'a ModuleAst<'a>) -> Result<Self> {
        let id = NEXT_MODULE.fetch_add(1, Relaxed);
        // 2^26 places; later modules reuse the first, which matters only to a GPU that both run on.
        let next = MODULE_BASE + id % (1 << 26) * MODULE_STRIDE;
        Ok(Self { ast, id, next, variables: Vec::new(), variable_bytes: 0, relocations: Vec::new() })
    }

    fn place_variable(&mut self, decl: &VarDecl<'_>) -> Result<u64> {
        let at = self.next.next_multiple_of(256);
        self.next = at + u64::from(decl.size) + 4096;
        self.variable_bytes += u64::from(decl.size);
        if self.variable_bytes > MAX_MODULE_BYTES {
            return Err(Error::Limit(format!("more than {MAX_MODULE_BYTES} bytes of module variables")));
        }
        self.variables.push((
            Variable {
                name: decl.name.to_owned(),
                space: decl.space,
                size: decl.size,
                init: decl.init.clone(),
            },
            at,
        ));
        for (offset, width, symbol, addend) in &decl.relocations {
            let (variable, line) = (self.variables.len() - 1, decl.line);
            let (offset, width, symbol, addend) = (*offset, *width, symbol.clone(), *addend);
            self.relocations.push(Relocation { variable, offset, width, symbol, addend, line });
        }
        Ok(at)
    }

    /// Puts addresses into the initial values that name them.
    fn relocate(&mut self, symbols: &HashMap<&str, Place>) -> Result<()> {
        let mut own: HashMap<String, u64> = HashMap::new();
        if !self.relocations.is_empty() {
            for (variable, at) in &self.variables {
                own.entry(variable.name.clone()).or_insert(*at);
            }
        }
        for r in std::mem::take(&mut self.relocations) {
            let address = match symbols.get(r.symbol.as_str()) {
                Some(Place::Absolute(at)) => Some(*at),
                Some(Place::Function(i)) => Some(FUNCTION_WINDOW + u64::from(*i) * 16),
                // Not the address of any function, but one that a table may hold: `__cxa_pure_virtual`.
                Some(Place::Missing) => Some(FUNCTION_WINDOW - 16),
                Some(_) => None,
                // Of a function's own scope.
                None => own.get(&r.symbol).copied(),
            };
            let Some(address) = address else {
                let message =
                    format!("initial value `{}` is no variable or function of this module", r.symbol);
                return Err(error(r.line, message));
            };
            if r.width != 8 {
                return Err(error(r.line, format!("the address of `{}` needs 8 bytes", r.symbol)));
            }
            let value = address.wrapping_add(r.addend as u64);
            let at = r.offset as usize;
            self.variables[r.variable].0.init[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    fn build(mut self) -> Result<Module> {
        let ast = self.ast;
        // A function may be declared before it is defined: the definition counts.
        let mut defined: Vec<&parser::FunctionAst<'_>> = Vec::new();
        let mut symbols: HashMap<&str, Place> = HashMap::new();
        for function in ast.functions.iter().filter(|f| f.body.is_some()) {
            if symbols.insert(function.name, Place::Function(defined.len() as u32)).is_some() {
                return Err(error(function.line, format!("`{}` is defined twice", function.name)));
            }
            defined.push(function);
        }
        for function in ast.functions.iter().filter(|f| f.body.is_none()) {
            match function.name {
                "vprintf" => _ = symbols.insert("vprintf", Place::Printf),
                "__assertfail" => _ = symbols.insert("__assertfail", Place::AssertFail),
                name => _ = symbols.entry(name).or_insert(Place::Missing),
            }
        }
        for (alias, name) in &ast.aliases {
            if let Some(&place) = symbols.get(name) {
                symbols.insert(alias, place);
            }
        }
        let dynamic = ast.vars.iter().filter(|v| v.space == Space::Shared && v.is_dynamic);
        let dynamic_align = dynamic.map(|v| v.align).max().unwrap_or(GAP);
        let mut common = SharedLayout { end: 0, bytes: 0, vars: Vec::new() };
        let with_definition: HashSet<&str> =
            ast.vars.iter().filter(|v| !v.is_extern).map(|v| v.name).collect();
        for decl in &ast.vars {
            if decl.is_extern && !(decl.space == Space::Shared && decl.is_dynamic) {
                if with_definition.contains(decl.name) {
                    continue;
                }
                let message = format!("`{}` is .extern and not defined in this module", decl.name);
                return Err(error(decl.line, message));
            }
            let place = match decl.space {
                Space::Shared if decl.is_dynamic => Place::DynamicShared,
                Space::Shared => {
                    let offset = common.place(decl).ok_or_else(|| error(1, "too much shared memory"))?;
                    Place::Shared(offset)
                }
                _ => Place::Absolute(self.place_variable(decl)?),
            };
            if symbols.insert(decl.name, place).is_some() && !decl.is_dynamic {
                return Err(error(decl.line, format!("`{}` is defined twice", decl.name)));
            }
        }
        let frames =
            defined.iter().map(|f| Signature { rets: f.rets.len(), params: f.params.len() }).collect();
        let scope = ModuleScope { symbols, frames };
        let mut absolute = |decl: &VarDecl<'a>| self.place_variable(decl);
        let mut functions: Vec<Option<Function>> = defined.iter().map(|_| None).collect();
        let mut own = HashMap::new();
        // Device functions first: their shared variables belong to every kernel.
        for is_entry in [false, true] {
            for (i, function) in defined.iter().enumerate().filter(|(_, f)| f.is_entry == is_entry) {
                let Some(body) = &function.body else { continue };
                if !is_entry {
                    functions[i] =
                        Some(decode::function(&scope, function, body, &mut common, &mut absolute)?);
                    continue;
                }
                let mut layout = SharedLayout { end: common.end, bytes: 0, vars: Vec::new() };
                functions[i] = Some(decode::function(&scope, function, body, &mut layout, &mut absolute)?);
                let vars = layout.vars.iter().map(|v| (v.offset, v.size)).collect();
                own.insert(i as u32, (vars, layout.end, layout.bytes));
            }
        }
        self.relocate(&scope.symbols)?;
        let shared = SharedBits {
            common: common.vars.iter().map(|v| (v.offset, v.size)).collect(),
            common_end: common.end,
            dynamic_align,
            common_bytes: common.bytes,
            own,
        };
        Ok(Module {
            id: self.id,
            target: ast.target.to_owned(),
            functions: functions.into_iter().flatten().collect(),
            variables: self.variables,
            files: ast.files.iter().map(|(&i, &f)| (i, f.to_owned())).collect(),
            shared,
        })
    }
}
