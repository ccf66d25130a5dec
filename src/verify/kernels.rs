//! Every kernel that the cases reach: planned, written out, and (CUDA) compiled, with no device at all.

use super::case::Case;
use super::{OpVisitor, Verified, each_op};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::Operands;
use crate::op::{self, Caps, Language, Op, Signature, Slot};
use crate::source::{self, Variant};
use crate::view::Memory;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A kernel variant on one device, as the first case that reaches it plans it.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What it is compiled from.
    pub variant: Variant,
    /// The dtype of the case.
    pub dtype: Dtype,
    /// The name of the case.
    pub case: String,
    /// The device it was planned for.
    pub device: String,
    /// The language of that device.
    pub language: Language,
    /// The most dynamic shared memory (WGSL: workgroup memory) that a case plans for it, in bytes.
    pub shared_bytes: u32,
    write: fn(&Variant, Language) -> String,
}

impl Kernel {
    /// Its complete source, as its compiler sees it.
    pub fn source(&self) -> String {
        (self.write)(&self.variant, self.language)
    }

    /// The operands that are given, for tables: `a b out`.
    pub fn operands(&self) -> String {
        let given = self.variant.signature.slots().iter().filter(|s| s.dtype.is_some());
        given.map(|s| s.name).collect::<Vec<_>>().join(" ")
    }

    /// Its constants, for tables: `THREADS=256 DOWN=0`.
    pub fn consts(&self) -> String {
        let all = self.variant.consts.iter();
        all.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }
}

/// The kernel that a device would run a case with; `None` where it cannot.
pub(super) fn planned<T: Verified>(case: &Case<T>, caps: &Caps) -> Option<Variant> {
    let (params, signature) = prepared(&case.op, case.args.duplicate()).ok()?;
    let plan = op::plan(&case.op, &params, &signature, caps).ok()?;
    Some(Variant::new::<T>(&plan, signature))
}

/// Whether what `newer` executes says all about what `this` would execute of a variant: both read the same dialect of PTX, and no
/// line of the source asks which of the two it is compiled for. Those that do convert 16 bits (`common/element.cuh`) or belong
/// to tensor cores, whose kernels are other variants before sm_80.
fn repeats(variant: &Variant, this: Language, newer: Language) -> bool {
    let (Language::Cuda { arch: this }, Language::Cuda { arch: newer }) = (this, newer) else { return false };
    let narrow = |slot: &Slot| matches!(slot.dtype, Some(Dtype::F16 | Dtype::Bf16));
    this < newer && newer < UNTYPED && !variant.signature.slots().iter().any(narrow)
}

/// The first architecture for which NVRTC leaves the type of a register to the instruction.
const UNTYPED: u32 = 100;

/// The kernels that the cases of every op (or of the one called `op`) reach on these devices: per device
/// and variant one, in the order of ops, devices and cases.
///
/// # Errors
/// [`Error::Argument`] when there is no such op; whatever is wrong with a case, except that a device cannot
/// run it.
pub fn reached(devices: &[Caps], op: Option<&str>) -> Result<Vec<Kernel>> {
    let mut collect = Collect { devices, op, names: Vec::new(), kernels: Vec::new(), failure: None };
    each_op(&mut collect);
    match (collect.failure, op) {
        (Some(error), _) => Err(error),
        (None, Some(op)) if !collect.names.contains(&op) => {
            Err(Error::argument("kernels", "op", format!("one of {}", collect.names.join(", ")), op))
        }
        _ => Ok(collect.kernels),
    }
}

struct Collect<'a> {
    devices: &'a [Caps],
    op: Option<&'a str>,
    names: Vec<&'static str>,
    kernels: Vec<Kernel>,
    failure: Option<Error>,
}

impl OpVisitor for Collect<'_> {
    fn visit<T: Verified>(&mut self) {
        self.names.push(T::NAME);
        if self.op.is_none_or(|op| op == T::NAME)
            && let Err(error) = self.collect::<T>()
        {
            self.failure.get_or_insert(error);
        }
    }
}

/// Memory without bytes: planning needs only where things are.
struct Nowhere(u64);

impl Memory for Nowhere {
    fn byte_len(&self) -> u64 {
        1 << 40
    }
    fn place(&self) -> (u64, u64) {
        (self.0, 0)
    }
}

/// What kernels are planned from.
fn prepared<T: Op, I, O>(op: &T, args: T::Args<I, O>) -> Result<(T::Params, Signature)> {
    // Each operand is in a space of its own, so that none overlaps an output.
    let space = Cell::new(0);
    let apart = || Ok(Nowhere(space.replace(space.get() + 1)));
    let args = T::map(args, |_, v| v.try_map(|_| apart()), |_, v| v.try_map(|_| apart()))?;
    op::prepare(op, &args)
}

impl Collect<'_> {
    fn collect<T: Verified>(&mut self) -> Result<()> {
        let mut calls = Vec::new();
        for dtype in Dtype::FLOATS {
            for case in T::cases(dtype) {
                let (params, signature) = prepared(&case.op, case.args)?;
                calls.push((dtype, case.name, case.op, params, signature));
            }
        }
        for caps in self.devices {
            let mut known: HashMap<Variant, usize> = HashMap::new();
            for (dtype, case, op, params, signature) in &calls {
                let plan = match op::plan(op, params, signature, caps) {
                    Err(Error::Unsupported { .. } | Error::Limit { .. }) => continue,
                    plan => plan?,
                };
                // Nothing is launched, so nothing is compiled either.
                if plan.grid.contains(&0) {
                    continue;
                }
                let variant = Variant::new::<T>(&plan, signature.clone());
                let at = *known.entry(variant).or_insert_with_key(|variant| {
                    self.kernels.push(Kernel {
                        variant: variant.clone(),
                        dtype: *dtype,
                        case: case.clone(),
                        device: caps.name.clone(),
                        language: caps.language,
                        shared_bytes: 0,
                        write: |v, language| source::source::<T>(&v.signature, &v.consts, language),
                    });
                    self.kernels.len() - 1
                });
                let kernel = &mut self.kernels[at];
                kernel.shared_bytes = kernel.shared_bytes.max(plan.shared_bytes);
            }
        }
        Ok(())
    }
}

/// Of the kernels that the cases reach on simulated GPUs, those that the tests execute. On the `main` one these are all. What
/// another device runs as well executes there only as often as it takes that any two properties (constants, dtype, operands
/// given) that its kernels combine are combined by some: the other dialect of PTX, or what asks for the architecture, is the
/// same in all of them. Of kernels in f32 not even this differs where both read the same dialect, and none is executed.
#[must_use]
pub fn executed(kernels: Vec<Kernel>, main: &str) -> Vec<Kernel> {
    let of_main: HashMap<&Variant, Language> =
        kernels.iter().filter(|k| k.device == main).map(|k| (&k.variant, k.language)).collect();
    let mut kept = vec![false; kernels.len()];
    let mut shared: Vec<(&str, Vec<usize>)> = Vec::new();
    for (i, kernel) in kernels.iter().enumerate() {
        match of_main.get(&kernel.variant) {
            Some(&language) if kernel.device != main => {
                if repeats(&kernel.variant, kernel.language, language) {
                    continue;
                }
                match shared.iter_mut().find(|(device, _)| *device == kernel.device) {
                    Some((_, all)) => all.push(i),
                    None => shared.push((&kernel.device, vec![i])),
                }
            }
            _ => kept[i] = true,
        }
    }
    let pairs: Vec<HashSet<u64>> = kernels.iter().map(|k| combined(k, 2)).collect();
    for (device, all) in &shared {
        let own =
            kernels.iter().zip(&kept).zip(&pairs).filter(|((k, kept), _)| k.device == *device && **kept);
        let there: HashSet<u64> = own.flat_map(|(_, pairs)| pairs).copied().collect();
        let mut missing: HashSet<u64> = all.iter().flat_map(|&i| &pairs[i]).copied().collect();
        missing.retain(|pair| !there.contains(pair));
        complete(&mut missing, all, &pairs, &mut kept);
    }
    kernels.into_iter().zip(kept).filter_map(|(kernel, kept)| kept.then_some(kernel)).collect()
}

/// Keeps of `all` the fewest that it is easy to find with which no pair is missing.
fn complete(missing: &mut HashSet<u64>, all: &[usize], pairs: &[HashSet<u64>], kept: &mut [bool]) {
    while !missing.is_empty() {
        let gain = |i: &usize| pairs[*i].intersection(missing).count();
        // The first of the best, so that the choice is the same every time.
        let Some(next) = all.iter().rev().copied().max_by_key(gain) else { return };
        kept[next] = true;
        missing.retain(|pair| !pairs[next].contains(pair));
    }
}

/// Leaves out kernels that hardly differ from others: each variant stays on one of its devices, in turn, and each device keeps
/// enough that any two properties (constants, dtype, operands given) that its kernels combine are still combined.
///
/// Where some kernels are `handy`, being compiled half way for another purpose, variants stay on their devices if they can, and
/// other devices keep every property instead of every two.
#[must_use]
pub fn cover(kernels: Vec<Kernel>, handy: impl Fn(&Kernel) -> bool) -> Vec<Kernel> {
    let handy_devices: HashSet<&str> =
        kernels.iter().filter(|k| handy(k)).map(|k| k.device.as_str()).collect();
    let strength =
        |k: &Kernel| if handy_devices.is_empty() || handy_devices.contains(&*k.device) { 2 } else { 1 };
    let pairs: Vec<HashSet<u64>> = kernels.iter().map(|k| combined(k, strength(k))).collect();
    let mut by_variant: HashMap<&Variant, Vec<usize>> = HashMap::new();
    let mut by_device: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut kept = vec![false; kernels.len()];
    for (i, kernel) in kernels.iter().enumerate() {
        by_variant.entry(&kernel.variant).or_default().push(i);
        match by_device.iter_mut().find(|(device, _)| *device == kernel.device) {
            Some((_, all)) => all.push(i),
            None => by_device.push((&kernel.device, vec![i])),
        }
    }
    for (turn, mut of) in kernels.iter().filter_map(|k| by_variant.remove(&k.variant)).enumerate() {
        if of.iter().any(|&i| handy(&kernels[i])) {
            of.retain(|&i| handy(&kernels[i]));
        }
        kept[of[turn % of.len()]] = true;
    }
    for (_, all) in by_device {
        let mut missing: HashSet<u64> = all.iter().flat_map(|&i| &pairs[i]).copied().collect();
        for &i in all.iter().filter(|&&i| kept[i]) {
            missing.retain(|pair| !pairs[i].contains(pair));
        }
        complete(&mut missing, &all, &pairs, &mut kept);
    }
    kernels.into_iter().zip(kept).filter_map(|(kernel, kept)| kept.then_some(kernel)).collect()
}

/// Every property of a kernel, or with a strength of 2 every two, hashed together with the op and the entry point.
fn combined(kernel: &Kernel, strength: usize) -> HashSet<u64> {
    let hash = |value: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        value(&mut hasher);
        hasher.finish()
    };
    let Variant { op, entry, signature, consts } = &kernel.variant;
    let operands = signature.slots().iter().map(|slot| hash(&|h| (slot.name, slot.dtype).hash(h)));
    let constants = consts.iter().map(|constant| hash(&|h| constant.hash(h)));
    let dtype = std::iter::once(hash(&|h| kernel.dtype.hash(h)));
    let properties: Vec<u64> = operands.chain(constants).chain(dtype).collect();
    let mut pairs = HashSet::new();
    for (i, a) in properties.iter().enumerate() {
        for b in properties[i..].iter().take(if strength == 1 { 1 } else { usize::MAX }) {
            pairs.insert(hash(&|h| (op, entry, a, b).hash(h)));
        }
    }
    pairs
}

#[cfg(feature = "cuda")]
pub use compile::{Compiled, Make, compile};

#[cfg(feature = "cuda")]
mod compile {
    use super::Kernel;
    use crate::error::{Error, Result};
    use crate::op::Language;
    use crate::target::cuda::Compiler;
    use crate::target::cuda::nvrtc::{Artifact, Output, Usage, architecture};
    use rayon::prelude::*;

    /// What to make of a kernel.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Make {
        /// Machine code.
        Cubin,
        /// PTX.
        Ptx,
        /// Machine code, and PTX for a simulator that will ask the same cache.
        Both,
    }

    /// A compiled kernel.
    #[derive(Debug, Clone)]
    pub struct Compiled {
        /// CUBIN or PTX, and the compiler's log.
        pub artifact: Artifact,
        /// What it uses; `None` for PTX.
        pub usage: Option<Usage>,
    }

    /// Compiles CUDA kernels on all cores to what `make` says; `done` is called after each. Results are in order.
    ///
    /// The inner errors are [`Error::Compile`], and [`Error::Unsupported`] for a kernel that is not CUDA.
    pub fn compile(
        compiler: &Compiler,
        kernels: &[Kernel],
        make: impl Fn(&Kernel) -> Make + Sync,
        done: impl Fn() + Sync,
    ) -> Vec<Result<Compiled>> {
        let one = |kernel: &Kernel| {
            let Language::Cuda { arch } = kernel.language else {
                return Err(Error::Unsupported {
                    op: kernel.variant.op,
                    what: "a WGSL kernel".into(),
                    target: "NVRTC".into(),
                    instead: "compile it with wgpu".into(),
                });
            };
            let arch = architecture(arch);
            let (op, source, make) = (kernel.variant.op, kernel.source(), make(kernel));
            let artifact = match make {
                Make::Cubin => compiler.compile(op, &source, &arch, Output::Cubin)?,
                Make::Ptx => compiler.compile(op, &source, &arch, Output::Ptx)?,
                Make::Both => compiler.compile_both(op, &source, &arch)?,
            };
            let usage = Usage::parse(&artifact.log, kernel.variant.entry);
            if make != Make::Ptx && usage.is_none() {
                return Err(Error::Compile {
                    op: kernel.variant.op,
                    language: "CUDA",
                    target: format!("sm_{arch}"),
                    log: format!(
                        "no resource usage of `{}` in the log:\n{}",
                        kernel.variant.entry, artifact.log
                    ),
                });
            }
            Ok(Compiled { artifact, usage })
        };
        // Long compilations come in runs; single items keep the cores evenly busy to the end.
        kernels
            .par_iter()
            .with_max_len(1)
            .map(|kernel| {
                let result = one(kernel);
                done();
                result
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::presets;

    /// What [`repeats`] takes for granted: the architecture is asked for nowhere else.
    #[test]
    fn only_conversions_and_tensor_cores_ask_for_the_architecture() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        for path in [folder.to_owned(), format!("{folder}/common")] {
            for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
                let asks = entry.file_type().unwrap().is_file()
                    && std::fs::read_to_string(entry.path()).unwrap().contains("__CUDA_ARCH__");
                assert!(
                    !asks || ["element.cuh", "mma.cuh"].map(Into::into).contains(&entry.file_name()),
                    "{entry:?}"
                );
            }
        }
    }

    #[test]
    fn every_device_reaches_kernels_and_each_once() {
        let all = reached(&presets::cuda(), None).unwrap();
        for caps in presets::cuda() {
            let here: Vec<_> = all.iter().filter(|k| k.device == caps.name).collect();
            let unique: HashSet<_> = here.iter().map(|k| &k.variant).collect();
            assert!(here.len() > 10 && here.len() == unique.len(), "{}: {}", caps.name, here.len());
            assert!(here.iter().all(|k| k.shared_bytes <= caps.shared_bytes));
        }
        let one = reached(&presets::wgsl(), Some("resample")).unwrap();
        assert!(one.iter().all(|k| k.variant.op == "resample" && k.source().contains("@compute")));
        let error = reached(&presets::cuda(), Some("sort")).unwrap_err();
        assert!(error.to_string().contains("resample"), "{error}");
    }

    #[test]
    fn a_cover_keeps_every_variant_and_every_pair() {
        let all = reached(&presets::cuda(), None).unwrap();
        let some = cover(all.clone(), |_| false);
        assert!(some.len() < all.len());
        let variants = |of: &[Kernel]| of.iter().map(|k| k.variant.clone()).collect::<HashSet<_>>();
        assert_eq!(variants(&all), variants(&some));
        let pairs = |of: &[Kernel]| {
            let of_one =
                |k: &Kernel| combined(k, 2).into_iter().map(|pair| (k.device.clone(), pair)).collect();
            of.iter().flat_map(|k| -> Vec<_> { of_one(k) }).collect::<HashSet<_>>()
        };
        assert_eq!(pairs(&all), pairs(&some));
    }

    #[test]
    fn what_is_executed_is_all_on_one_device_and_every_pair_on_the_others() {
        let devices = presets::SIMULATED.map(presets::cuda_for);
        let (all, main) = (reached(&devices, None).unwrap(), &devices[1].name);
        let some = executed(all.clone(), main);
        assert!(some.len() < all.len() * 3 / 4, "{} of {}", some.len(), all.len());
        let on = |of: &[Kernel], device: &str| -> HashSet<Variant> {
            of.iter().filter(|k| k.device == device).map(|k| k.variant.clone()).collect()
        };
        assert_eq!(on(&some, main), on(&all, main));
        for caps in &devices {
            // What says nothing new counts as executed.
            let of = |kernels: &[Kernel]| -> HashSet<u64> {
                let there = kernels.iter().filter(|k| k.device == caps.name);
                let new = there.filter(|k| !repeats(&k.variant, k.language, devices[1].language));
                new.flat_map(|k| combined(k, 2)).collect()
            };
            assert_eq!(of(&some), of(&all), "{}", caps.name);
            let own = on(&all, &caps.name).difference(&on(&all, main)).cloned().collect::<HashSet<_>>();
            assert!(own.is_subset(&on(&some, &caps.name)), "{}", caps.name);
        }
    }

    #[test]
    fn a_cover_prefers_what_is_handy() {
        let all = reached(&presets::cuda(), None).unwrap();
        let (some, even) = (cover(all.clone(), |k| k.device == "sm_80"), cover(all.clone(), |_| false));
        assert!(some.len() < even.len());
        let on = |of: &[Kernel], device: &str| of.iter().filter(|k| k.device == device).count();
        assert_eq!(on(&some, "sm_80"), on(&all, "sm_80"), "every variant that sm_80 has");
        let variants = |of: &[Kernel]| of.iter().map(|k| k.variant.clone()).collect::<HashSet<_>>();
        assert_eq!(variants(&all), variants(&some));
        let settings = |of: &[Kernel]| {
            let of_one = |k: &Kernel| combined(k, 1).into_iter().map(|one| (k.device.clone(), one)).collect();
            of.iter().flat_map(|k| -> Vec<_> { of_one(k) }).collect::<HashSet<_>>()
        };
        assert_eq!(settings(&all), settings(&some));
    }
}
