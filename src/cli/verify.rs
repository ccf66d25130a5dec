//! `advect verify`: every case on every device against the f64 definition.

use super::counters::Counted;
use super::device::Choice;
use advect::verify::{self, OpVisitor, Outcome, Selection, Status, Tally, Verified, each_op};
use advect::{Device, Dtype};
use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  advect verify                          every op on the CPU's instruction sets and the first adapter
  advect verify --device wgpu --op step  one op on one device
  advect verify --case 'mode=up n=2'     the cases whose name contains this
  advect verify --fuzz 200 --seed 7      with 200 random cases an op and dtype
  advect verify --op conv --device ptx-sim:80 --counters
                                         what each CUDA kernel executes and moves (build: --features ptx-sim)
";

/// Arguments of `advect verify`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// One device instead of all: auto, cpu, wgpu[:N], cuda[:N] or, in a build with them, ptx-sim (all
    /// simulated GPUs that the tests use) and ptx-sim:ARCH.
    #[arg(long, value_name = "D")]
    device: Option<Choice>,
    /// One op instead of all.
    #[arg(long, value_parser = PossibleValuesParser::new(verify::op_names()))]
    op: Option<String>,
    /// Only the case of this name, or else those whose name contains it.
    #[arg(long, value_name = "S")]
    case: Option<String>,
    /// One dtype instead of all: f32, f16 or bf16.
    #[arg(long, value_parser = super::float)]
    dtype: Option<Dtype>,
    /// Random cases per op and dtype, besides the listed ones.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    fuzz: usize,
    /// Seed of the random cases.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Stop at the first failure, and take the cases in a random order, which finds one sooner.
    #[arg(long)]
    fail_fast: bool,
    /// Print what the kernels executed and moved on simulated GPUs: a block a kernel, or a case with --case.
    #[arg(long)]
    counters: bool,
    /// Write one JSON object a case to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let devices = match args.device {
        Some(choice) => choice.open_all()?,
        None => verify::devices()?,
    };
    for face in verify::required().iter().filter(|_| args.device.is_none()) {
        if !devices.iter().any(|d| d.face() == face) {
            bail!("ADVECT_REQUIRE asks for {face}, and there is no such device (`advect devices` says why)");
        }
    }
    if devices.is_empty() {
        bail!("ADVECT_FACES leaves no device that is here");
    }
    if args.counters && !devices.iter().any(|d| d.face() == "ptx-sim") {
        bail!(
            "--counters counts on simulated GPUs: add `--device ptx-sim` (or `ptx-sim:80`), in a build with `--features ptx-sim`"
        );
    }
    let json = match &args.json {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Some(BufWriter::new(file))
        }
        None => None,
    };
    let selection = Selection {
        dtypes: args.dtype.map_or_else(|| Dtype::FLOATS.to_vec(), |d| vec![d]),
        case: args.case.clone(),
        fuzz: args.fuzz,
        seed: args.seed,
        fail_fast: args.fail_fast,
        unrepeated: false,
        // What simulators count is told apart only of one case at a time.
        at_once: if args.counters || json.is_some() {
            1
        } else {
            std::thread::available_parallelism().map_or(1, usize::from)
        },
    };
    let mut session = Session {
        args,
        devices,
        selection,
        json,
        names: Vec::new(),
        rows: BTreeMap::new(),
        failures: Vec::new(),
        counted: Counted::default(),
        broken: None,
    };
    each_op(&mut session);
    session.report()
}

/// A line of the JSON file.
#[derive(serde::Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<serde_json::Value>,
}

struct Session<'a> {
    args: &'a VerifyArgs,
    devices: Vec<Device>,
    selection: Selection,
    json: Option<BufWriter<File>>,
    names: Vec<&'static str>,
    /// By op (in order), device (in order), dtype (in order).
    rows: BTreeMap<(usize, usize, usize), Tally>,
    failures: Vec<Outcome>,
    counted: Counted,
    /// The first failure to write the JSON file.
    broken: Option<anyhow::Error>,
}

impl OpVisitor for Session<'_> {
    fn visit<T: Verified>(&mut self) {
        self.names.push(T::NAME);
        let ended = self.args.fail_fast && !self.failures.is_empty();
        if ended || self.args.op.as_ref().is_some_and(|op| op != T::NAME) {
            return;
        }
        let devices = self.devices.clone();
        let selection = self.selection.clone();
        verify::verify::<T>(&devices, &selection, &mut |outcome| self.note(outcome));
    }
}

impl Session<'_> {
    fn note(&mut self, outcome: Outcome) {
        let device = self.devices.iter().find(|d| d.name() == outcome.device);
        let counters =
            device.and_then(|device| self.counted.note(device, &outcome, self.args.case.is_some()));
        if let Some(json) = &mut self.json {
            let written = serde_json::to_writer(&mut *json, &Line { outcome: &outcome, counters })
                .map_err(anyhow::Error::from)
                .and_then(|()| Ok(writeln!(json)?));
            if let Err(error) = written {
                self.broken.get_or_insert(error);
            }
        }
        let device = self.devices.iter().position(|d| d.name() == outcome.device).unwrap_or(usize::MAX);
        let dtype = Dtype::FLOATS.iter().position(|d| d.name() == outcome.dtype).unwrap_or(usize::MAX);
        self.rows.entry((self.names.len() - 1, device, dtype)).or_default().note(&outcome);
        if matches!(outcome.status, Status::Fail(_)) {
            self.failures.push(outcome);
        }
    }

    /// Why cases were skipped, and how many: the most frequent reasons first.
    fn reasons(&self) -> Vec<(&str, usize)> {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for (why, count) in self.rows.values().flat_map(|tally| &tally.skipped) {
            *reasons.entry(why).or_default() += count;
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        reasons
    }

    fn report(mut self) -> Result<ExitCode> {
        if let Some(error) = self.broken {
            return Err(error.context("cannot write the JSON file"));
        }
        if let Some(json) = &mut self.json {
            json.flush().context("cannot write the JSON file")?;
        }
        if self.rows.is_empty() {
            bail!("no case has `{}` in its name", self.args.case.as_deref().unwrap_or_default());
        }
        let header = ["op", "device", "dtype", "pass", "fail", "skip", "worst", "worst case"];
        let mut table = super::table(header, 3..7);
        for (&(op, device, dtype), row) in &self.rows {
            table.add_row([
                self.names[op].to_owned(),
                self.devices.get(device).map(Device::name).unwrap_or_default(),
                Dtype::FLOATS.get(dtype).map(Dtype::to_string).unwrap_or_default(),
                row.passed.to_string(),
                row.failed.to_string(),
                row.skips().to_string(),
                verify::judge::in_bounds(row.worst),
                row.worst_case.clone(),
            ]);
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", table.trim_fmt())?;
        writeln!(out, "worst: the largest error as a fraction of its bound")?;
        if self.args.counters {
            self.counted.print(&mut out)?;
        }
        for face in ["cpu", "wgpu", "cuda"] {
            if self.args.device.is_none() && !self.devices.iter().any(|d| d.face() == face) {
                writeln!(out, "{face}: no device, so nothing ran there (`advect devices` says why)")?;
            }
        }
        let total = |count: fn(&Tally) -> usize| self.rows.values().map(count).sum::<usize>();
        let (passed, failed, skipped) = (total(|r| r.passed), total(|r| r.failed), total(Tally::skips));
        for (why, count) in self.reasons() {
            writeln!(out, "skipped {count}: {why}")?;
        }
        for failure in self.failures.iter().take(20) {
            let Status::Fail(why) = &failure.status else { continue };
            writeln!(out, "\nFAIL {} {} on {}: {why}", failure.op, failure.dtype, failure.device)?;
            // A random case exists only among as many random ones of the same seed.
            let random = match failure.case.starts_with("fuzz=") {
                true => format!(" --fuzz {} --seed {}", self.args.fuzz, self.args.seed),
                false => String::new(),
            };
            writeln!(
                out,
                "     advect verify --op {} --dtype {}{random} --case '{}'",
                failure.op, failure.dtype, failure.case
            )?;
        }
        if failed > 20 {
            writeln!(out, "\n... and {} more; --json FILE lists all", failed - 20)?;
        }
        writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped")?;
        if passed == 0 && failed == 0 {
            bail!("nothing was verified: every case was skipped");
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
