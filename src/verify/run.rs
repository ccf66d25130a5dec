//! Runs cases on devices and reports.

use super::case::{Case, Verified};
use super::judge::{Prepared, Rounding, in_bounds};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Operands, Side};
use crate::target::cpu::Cpu;
use crate::tensor::{Device, Storage};
use crate::view::View;
use crate::{Isa, verify};
#[cfg(feature = "ptx-sim")]
use crate::{op::Language, source::Variant, target::presets::SIMULATED_WHOLE, verify::kernels};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;
#[cfg(feature = "ptx-sim")]
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

/// Which cases to run.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The dtypes.
    pub dtypes: Vec<Dtype>,
    /// Only the case of this name or, where there is none, those whose name contains it.
    pub case: Option<String>,
    /// Random cases per op and dtype, besides the listed ones.
    pub fuzz: usize,
    /// The seed of the random cases.
    pub seed: u64,
    /// Stop at the first failure. Cases then run in a random order, which finds it sooner than lists do, whose
    /// neighbours are alike; random cases come first, since each of them does many things at once.
    pub fail_fast: bool,
    /// Leave out what another of the devices executes as well: bf16 on all adapters but the first, since no WGSL knows of it,
    /// and on simulated GPUs what [`executed`](super::kernels::executed) leaves to the one that executes everything.
    pub unrepeated: bool,
    /// Cases at once. What simulators count is told apart only of one at a time.
    pub at_once: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            dtypes: Dtype::FLOATS.to_vec(),
            case: None,
            fuzz: 0,
            seed: 0,
            fail_fast: false,
            unrepeated: false,
            at_once: 1,
        }
    }
}

/// What became of one case on one device at one dtype.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The op.
    pub op: &'static str,
    /// The case's name; `--case` with it runs it alone.
    pub case: String,
    /// The face: `cpu`, `wgpu`, ...
    pub face: &'static str,
    /// The device in words.
    pub device: String,
    /// The dtype of the operands.
    pub dtype: &'static str,
    /// Pass, fail or skip.
    #[serde(flatten)]
    pub status: Status,
    /// The largest error as a fraction of its bound.
    pub worst: f64,
    /// Index of the element where that is.
    pub at: Vec<usize>,
}

/// Pass, fail or skip, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "status", content = "why", rename_all = "lowercase")]
pub enum Status {
    /// Every element within its bound, every fence standing.
    Pass,
    /// What is wrong.
    Fail(String),
    /// Why it could not run here.
    Skip(String),
}

/// Runs the selected cases of one op on every device; `each` sees every outcome, in the order of the cases.
pub fn verify<T: Verified>(devices: &[Device], selection: &Selection, each: &mut dyn FnMut(Outcome)) {
    let of = |&dtype: &Dtype| selection.cases::<T>(dtype).into_iter().map(move |case| (dtype, case));
    let mut cases: Vec<_> = selection.dtypes.iter().flat_map(of).collect();
    if selection.fail_fast {
        cases.shuffle(&mut ChaCha8Rng::seed_from_u64(selection.seed));
        cases.sort_by_key(|(_, case)| !case.name.starts_with(RANDOM));
    }
    let shared = selection.unrepeated.then(|| Shared::new::<T>(devices));
    let of_case =
        |i: usize| cases.get(i).map(|(dtype, case)| verify_case(case, *dtype, devices, shared.as_ref()));
    in_order(selection.at_once, of_case, |outcomes| {
        let failed = outcomes.iter().any(|outcome| matches!(outcome.status, Status::Fail(_)));
        outcomes.into_iter().for_each(&mut *each);
        !(failed && selection.fail_fast)
    });
}

/// Computes `of(0)`, `of(1)`, .. until there is none, so many `at_once`, and shows them to `each` in order, until it has seen enough.
fn in_order<R: Send>(
    at_once: usize,
    of: impl Fn(usize) -> Option<R> + Sync,
    mut each: impl FnMut(R) -> bool,
) {
    if at_once <= 1 {
        let mut all = (0..).map_while(of);
        while all.next().is_some_and(&mut each) {}
        return;
    }
    let (next, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (done, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            let done = done.clone();
            let (of, next, enough) = (&of, &next, &enough);
            scope.spawn(move || {
                // Whoever panics ends it for all: nobody waits for its turn.
                let panicked = OnPanic(enough);
                while !enough.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(result) = of(i) else { break };
                    // Nobody listens any more: the other side has seen enough.
                    if done.send((i, result)).is_err() {
                        break;
                    }
                }
                drop(panicked);
            });
        }
        drop(done);
        let (mut early, mut turn) = (BTreeMap::new(), 0);
        for (i, result) in results {
            early.insert(i, result);
            while let Some(result) = early.remove(&turn) {
                turn += 1;
                if !each(result) {
                    enough.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    });
}

/// Sets what it holds when the thread panics.
struct OnPanic<'a>(&'a AtomicBool);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// How the names of random cases begin.
const RANDOM: &str = "fuzz=";

impl Selection {
    /// The selected cases of one dtype: the listed ones, then the random ones.
    fn cases<T: Verified>(&self, dtype: Dtype) -> Vec<Case<T>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let random = (0..self.fuzz).map(move |i| {
            let mut case = T::random(&mut rng, dtype);
            case.name = format!("{RANDOM}{i} seed={} {}", self.seed, case.name);
            case
        });
        let mut all: Vec<Case<T>> = T::cases(dtype).into_iter().chain(random).collect();
        if let Some(wanted) = &self.case {
            let named = all.iter().any(|case| case.name == *wanted);
            all.retain(|case| if named { case.name == *wanted } else { case.name.contains(wanted.as_str()) });
        }
        all
    }
}

/// One case on all devices, side by side: most of them are programs, which seldom fill every core.
fn verify_case<T: Verified>(
    case: &Case<T>,
    dtype: Dtype,
    devices: &[Device],
    shared: Option<&Shared>,
) -> Vec<Outcome> {
    let (prepared, name) = (&Prepared::new(case), &case.name);
    let on = &|device: &Device, repeated: Option<String>| {
        let (status, worst, at) = match repeated {
            Some(other) => (Status::Skip(format!("left to {other}")), 0.0, Vec::new()),
            None => judged(device, prepared),
        };
        Outcome {
            op: T::NAME,
            case: name.clone(),
            face: device.face(),
            device: device.name(),
            dtype: dtype.name(),
            status,
            worst,
            at,
        }
    };
    std::thread::scope(|scope| {
        let repeated = |device| shared.and_then(|shared| shared.by(case, dtype, device));
        let all = devices.iter().map(|device| (device, repeated(device)));
        let running: Vec<_> = all.map(|(device, by)| scope.spawn(move || on(device, by))).collect();
        let joined = running.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|outcome| outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// What became of a case on a device, its largest error, and where that is.
fn judged<T: Verified>(device: &Device, prepared: &Prepared<T>) -> (Status, f64, Vec<usize>) {
    let rounding = if device.face() == "wgpu" { Rounding::Wgsl } else { Rounding::Exact };
    match execute(device, prepared) {
        Err(error @ (Error::Unsupported { .. } | Error::Limit { .. })) if device.face() != "cpu" => {
            (Status::Skip(error.to_string()), 0.0, Vec::new())
        }
        Err(error) => (Status::Fail(error.to_string()), f64::NAN, Vec::new()),
        Ok(outputs) => {
            let verdict = prepared.judge(&outputs, rounding);
            (verdict.fault.map_or(Status::Pass, Status::Fail), verdict.worst, verdict.at)
        }
    }
}

/// What devices leave to others: see [`Selection::unrepeated`].
struct Shared<'a> {
    devices: &'a [Device],
    /// The kernels of each simulated GPU that it executes for this op; `None` where there is no other that executes all.
    #[cfg(feature = "ptx-sim")]
    executed: Option<HashSet<(String, Variant)>>,
}

impl<'a> Shared<'a> {
    fn new<T: Verified>(devices: &'a [Device]) -> Self {
        #[cfg(feature = "ptx-sim")]
        {
            let simulated: Vec<Caps> =
                devices.iter().filter_map(simulator).map(|s| s.caps().clone()).collect();
            let executed = simulated.iter().find(|caps| caps.language == WHOLE).map(|whole| {
                let reached = kernels::reached(&simulated, Some(T::NAME)).unwrap_or_default();
                kernels::executed(reached, &whole.name).into_iter().map(|k| (k.device, k.variant)).collect()
            });
            Self { devices, executed }
        }
        #[cfg(not(feature = "ptx-sim"))]
        {
            let _ = T::NAME;
            Self { devices }
        }
    }

    /// The device to which this one leaves a case.
    fn by<T: Verified>(&self, case: &Case<T>, dtype: Dtype, device: &Device) -> Option<String> {
        #[cfg(feature = "ptx-sim")]
        if let Some(this) = simulator(device) {
            let executed = self.executed.as_ref()?;
            let variant = kernels::planned(case, this.caps())?;
            let whole = |d: &&Device| simulator(d).is_some_and(|s| s.caps().language == WHOLE);
            let other = self.devices.iter().find(whole)?;
            let same = kernels::planned(case, simulator(other)?.caps()).as_ref() == Some(&variant);
            if std::ptr::eq(other, device) {
                return None;
            }
            return (same && !executed.contains(&(this.caps().name.clone(), variant))).then(|| other.name());
        }
        let first = self.devices.iter().find(|d| d.face() == device.face())?;
        let later = device.face() == "wgpu" && !std::ptr::eq(first, device);
        if !later || dtype != Dtype::Bf16 {
            return None;
        }
        // Where the first cannot, the others show whether they can.
        verify::kernels::planned(case, wgpu_caps(first)?)?;
        Some(first.name())
    }
}

fn wgpu_caps(device: &Device) -> Option<&Caps> {
    match device {
        #[cfg(feature = "wgpu")]
        Device::Wgpu(queue) => Some(queue.wgpu().caps()),
        _ => None,
    }
}

/// The language of the simulated GPU that executes every case.
#[cfg(feature = "ptx-sim")]
const WHOLE: Language = Language::Cuda { arch: SIMULATED_WHOLE };

#[cfg(feature = "ptx-sim")]
fn simulator(device: &Device) -> Option<&crate::target::ptx_sim::PtxSim> {
    match device {
        Device::PtxSim(simulator) => Some(simulator),
        _ => None,
    }
}

/// Uploads the memory images, runs the op, and brings the outputs' memory back.
///
/// # Errors
/// Whatever the device finds wrong.
pub fn execute<T: Verified>(device: &Device, prepared: &Prepared<T>) -> Result<Vec<Vec<u8>>> {
    let upload = |view: &View<Vec<u8>>| {
        let mut storage = device.alloc(view.memory().len())?;
        device.write(&mut storage, view.memory())?;
        Ok(storage)
    };
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for operand in prepared.args.each() {
        match operand.side {
            Side::Input(None) | Side::Output(None) => {}
            Side::Input(Some(view)) => {
                #[cfg_attr(not(feature = "ptx-sim"), expect(unused_mut, reason = "only simulators forget"))]
                let mut storage = upload(view)?;
                #[cfg(feature = "ptx-sim")]
                for bytes in super::judge::gaps(view) {
                    device.forget(&mut storage, bytes)?;
                }
                inputs.push(storage);
            }
            Side::Output(Some(view)) => outputs.push(upload(view)?),
        }
    }
    let (mut input, mut output) = (inputs.iter(), outputs.iter_mut());
    let gone = "one storage was made per operand";
    let args = T::map(
        prepared.args.duplicate(),
        |_, v| v.try_map(|_| Ok(input.next().expect(gone))),
        |_, v| v.try_map(|_| Ok(output.next().expect(gone))),
    )?;
    device.run(&prepared.op, args)?;
    let download = |storage: &Storage| {
        let mut bytes = vec![0; storage.byte_len()];
        device.read(storage, &mut bytes)?;
        Ok(bytes)
    };
    outputs.iter().map(download).collect()
}

/// Every device that this machine offers to tests: the CPU with each of its instruction sets, the first adapter of wgpu
/// (choose it with `VK_ICD_FILENAMES` and `WGPU_BACKEND`) or the first `ADVECT_ADAPTERS`, the first CUDA device, and the
/// simulated ones. `ADVECT_FACES=cpu,wgpu` leaves out all other faces.
///
/// # Errors
/// When the CPU's threads cannot be started; [`Error::Unavailable`] when there are fewer adapters than `ADVECT_ADAPTERS`.
pub fn devices() -> Result<Vec<Device>> {
    let mut all = Vec::new();
    if chosen("cpu") {
        for isa in Isa::available().into_iter().rev() {
            all.push(Device::Cpu(Cpu::with(2, isa)?));
        }
    }
    #[cfg(feature = "wgpu")]
    if chosen("wgpu") {
        all.extend(folding(adapter_count())?);
    }
    #[cfg(feature = "cuda")]
    if chosen("cuda") {
        all.extend(Device::cuda(0));
    }
    #[cfg(feature = "ptx-sim")]
    if chosen("ptx-sim") {
        match simulators() {
            Err(Error::Unavailable { .. }) => {}
            found => all.extend(found?),
        }
    }
    Ok(all)
}

/// The first adapter of wgpu, if any, or the first `count`, opened with so few workgroups along an axis that grids are
/// folded, with some workgroups past the last: as they come, that takes calls of more than 65535 workgroups.
#[cfg(feature = "wgpu")]
fn folding(count: Option<usize>) -> Result<Vec<Device>> {
    use crate::target::wgpu::{Queue, Wgpu, adapters, open_with};
    let found = adapters();
    if let Some(count) = count.filter(|&count| count > found.len()) {
        return Err(Error::Unavailable {
            target: "wgpu",
            why: format!("there are {} adapters, and ADVECT_ADAPTERS asks for {count}", found.len()),
            remedy: "see WGPU_BACKEND and VK_ICD_FILENAMES".into(),
        });
    }
    let open = |adapter: &wgpu::Adapter| {
        let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 50, ..adapter.limits() };
        let (device, queue) = open_with(adapter, limits)?;
        Ok(Device::Wgpu(Queue::new((Wgpu::from_device(device), queue))))
    };
    found.iter().take(count.unwrap_or(1)).map(open).collect()
}

/// The number in `ADVECT_ADAPTERS`, when it is set.
///
/// # Panics
/// When it is no number: what is misspelt must not be a check left out.
#[cfg(feature = "wgpu")]
fn adapter_count() -> Option<usize> {
    let text = std::env::var("ADVECT_ADAPTERS").ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("ADVECT_ADAPTERS: what number is {text}?")))
}

/// Simulated GPUs of [`SIMULATED`](crate::target::presets::SIMULATED), on each of which a kernel's warps run in another order.
///
/// # Errors
/// [`Error::Unavailable`] without NVRTC.
#[cfg(feature = "ptx-sim")]
pub fn simulators() -> Result<Vec<Device>> {
    use crate::target::{presets::SIMULATED, ptx_sim::PtxSim};
    SIMULATED.into_iter().map(|arch| Ok(Device::PtxSim(PtxSim::new(arch, None)?))).collect()
}

/// A list of faces in an environment variable: `cpu,wgpu`.
fn faces(variable: &str) -> Option<Vec<String>> {
    let listed = std::env::var(variable).ok()?;
    Some(listed.split(',').map(|f| f.trim().to_owned()).filter(|f| !f.is_empty()).collect())
}

/// Whether a face is among those of `ADVECT_FACES`, which are all when it is not set.
fn chosen(face: &str) -> bool {
    faces("ADVECT_FACES").is_none_or(|all| all.iter().any(|f| f == face))
}

/// The faces that must have run, from `ADVECT_REQUIRE=cpu,wgpu`: the CPU when it is not set.
pub fn required() -> Vec<String> {
    faces("ADVECT_REQUIRE").unwrap_or_else(|| vec!["cpu".into()])
}

/// The dtypes of the cross-check, from `ADVECT_DTYPES=f32,f16`: all when it is not set.
///
/// # Panics
/// When one is not of floats: a name that is misspelt must not be a check left out.
fn dtypes() -> Vec<Dtype> {
    let Some(names) = faces("ADVECT_DTYPES") else { return Dtype::FLOATS.to_vec() };
    let of = |name: &String| Dtype::FLOATS.into_iter().find(|d| d.name() == name);
    assert!(!names.is_empty(), "ADVECT_DTYPES names no dtype");
    names.iter().map(|name| of(name).unwrap_or_else(|| panic!("ADVECT_DTYPES: what is {name}?"))).collect()
}

/// What became of the cases of one op on one device.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Within their bounds.
    pub passed: usize,
    /// With something wrong.
    pub failed: usize,
    /// Not run, for each reason.
    pub skipped: BTreeMap<String, usize>,
    /// The largest error as a fraction of its bound; NaN when a result is NaN or never came.
    pub worst: f64,
    /// The case with that error.
    pub worst_case: String,
}

impl Tally {
    /// Counts one case.
    pub fn note(&mut self, outcome: &Outcome) {
        match &outcome.status {
            Status::Pass => self.passed += 1,
            Status::Fail(_) => self.failed += 1,
            Status::Skip(why) => *self.skipped.entry(why.clone()).or_default() += 1,
        }
        if outcome.worst > self.worst || outcome.worst.is_nan() && !self.worst.is_nan() {
            self.worst = outcome.worst;
            self.worst_case.clone_from(&outcome.case);
        }
    }

    /// How many were not run.
    pub fn skips(&self) -> usize {
        self.skipped.values().sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let (passed, failed, skipped) = (self.passed, self.failed, self.skips());
        let worst = in_bounds(self.worst);
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped, worst {worst} of its bound")?;
        for (why, count) in &self.skipped {
            write!(f, "\n    skipped {count}: {why}")?;
        }
        Ok(())
    }
}

/// The whole cross-check of one op, as a test: every case on every device, plus `fuzz` random cases.
/// The seed comes from `ADVECT_SEED` or is drawn, and is printed.
///
/// # Panics
/// When a case fails, or when a required face ran no case.
pub fn assert_op<T: Verified>(fuzz: usize) {
    let seed = match std::env::var("ADVECT_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => seed,
        None => rand::random::<u32>().into(),
    };
    println!("{}: random cases from ADVECT_SEED={seed}", T::NAME);
    let devices = devices().expect("the CPU is always there");
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let selection =
        Selection { dtypes: dtypes(), fuzz, seed, unrepeated: true, at_once, ..Selection::default() };
    let mut failures = Vec::new();
    let mut ran: BTreeMap<String, Tally> = BTreeMap::new();
    verify::verify::<T>(&devices, &selection, &mut |o| {
        ran.entry(format!("{} {}", o.device, o.dtype)).or_default().note(&o);
        if let Status::Fail(why) = &o.status {
            failures.push(format!("{} {} [{}] {}: {why}", o.op, o.dtype, o.device, o.case));
        }
    });
    for (device, tally) in &ran {
        println!("{} on {device}: {tally}", T::NAME);
    }
    let count = failures.len();
    failures.truncate(20);
    assert!(count == 0, "{count} cases failed (ADVECT_SEED={seed}); the first:\n{}", failures.join("\n"));
    for face in required() {
        let passed = |device: &Device| -> usize {
            Dtype::FLOATS
                .iter()
                .map(|t| ran.get(&format!("{} {t}", device.name())).map_or(0, |r| r.passed))
                .sum()
        };
        let of_face: Vec<usize> = devices.iter().filter(|d| d.face() == face).map(passed).collect();
        // Adapters differ in what they take: each has to show that it takes something, if it is asked for more than the
        // dtype that it leaves to the first.
        let each = face == "wgpu" && selection.dtypes != [Dtype::Bf16];
        let ran = if each { of_face.iter().min() } else { of_face.iter().max() };
        let ran = ran.copied().unwrap_or(0);
        assert!(ran > 0, "{}: no case ran on {face}, which ADVECT_REQUIRE asks for", T::NAME);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_however_many_are_under_way() {
        for at_once in [1, 2, 7] {
            let slow_first = |i: usize| {
                std::thread::sleep(std::time::Duration::from_millis(3 * (i as u64 % 2)));
                (i < 20).then_some(i)
            };
            let mut seen = Vec::new();
            in_order(at_once, slow_first, |i| {
                seen.push(i);
                true
            });
            assert_eq!(seen, (0..20).collect::<Vec<_>>());
            let mut seen = Vec::new();
            in_order(at_once, Some, |i| {
                seen.push(i);
                i < 4
            });
            assert_eq!(seen, [0, 1, 2, 3, 4]);
        }
    }
}
