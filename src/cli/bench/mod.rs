//! `advect bench`: how fast the ops are on a device, beside the ceilings measured there.

mod cases;

use super::device::{Choice, threads};
use advect::verify::{self, Ceilings, Timing, ceilings, time};
use advect::{Device, Dtype};
use anyhow::{Context, Result, ensure};
use cases::{Case, Launch};
use clap::builder::PossibleValuesParser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  advect bench --device cpu --threads 1          every case on one core
  advect bench --op conv --dtype bf16            one op, stored as bf16
  advect bench --cases list.json --json out.jsonl
                                                 given cases, into JSON lines

A case list is a JSON array; benches/cases.json, the default, shows each kind.
";

const CASES: &str = include_str!("../../../benches/cases.json");

/// Arguments of `advect bench`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// One op instead of all.
    #[arg(long, value_parser = PossibleValuesParser::new(verify::op_names()))]
    op: Option<String>,
    /// auto (an NVIDIA GPU, else another GPU, else the CPU), cpu, wgpu[:N] or cuda[:N].
    #[arg(long, value_name = "D", default_value = "auto")]
    device: Choice,
    /// Threads of the CPU; 0 is one a core.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true, value_parser = threads)]
    threads: usize,
    /// How operands are stored: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = super::float)]
    dtype: Dtype,
    /// Cases to time, instead of the built-in list.
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Seconds for each case.
    #[arg(long, value_name = "S", default_value_t = 0.5, allow_negative_numbers = true)]
    budget: f64,
    /// Write one JSON object a case to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One line of the JSON file: the fields that the results of other libraries carry, and the device.
#[derive(Serialize)]
struct Line<'a> {
    framework: &'static str,
    id: &'a str,
    kind: &'a str,
    variant: &'a str,
    dtype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    device: &'a str,
    #[serde(flatten)]
    result: Measured,
}

/// What came out of a case.
#[derive(Serialize)]
#[serde(untagged)]
enum Measured {
    Time {
        /// Median, best, and number of timed runs.
        ms: f64,
        ms_min: f64,
        n: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        gflops: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        gflops_best: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        gbs: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        gbs_best: Option<f64>,
    },
    Error {
        error: String,
    },
}

impl Measured {
    fn new(t: Timing, flops: f64, bytes: f64) -> Self {
        // Units a millisecond, in 10^9 a second.
        let rate = |work: f64, ms: f64| (work > 0.0).then(|| round(work / ms / 1e6, 2));
        Self::Time {
            ms: round(t.ms, 5),
            ms_min: round(t.ms_min, 5),
            n: t.n,
            gflops: rate(flops, t.ms),
            gflops_best: rate(flops, t.ms_min),
            gbs: rate(bytes, t.ms),
            gbs_best: rate(bytes, t.ms_min),
        }
    }
}

fn round(x: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (x * scale).round() / scale
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let text = match &args.cases {
        None => CASES.to_owned(),
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}; --cases wants a JSON file of cases", path.display()))?,
    };
    let mut cases = Case::list(&text).with_context(|| match &args.cases {
        Some(path) => format!("{} is not a list of cases", path.display()),
        None => "the built-in list of cases".into(),
    })?;
    if let Some(op) = &args.op {
        cases.retain(|c| c.op() == Some(op));
    }
    ensure!(!cases.is_empty(), "there is no case of this op in the list");
    ensure!(args.budget.is_finite() && args.budget > 0.0, "--budget wants seconds above 0");
    let mut json = match &args.json {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Some(BufWriter::new(file))
        }
        None => None,
    };

    let device = args.device.open(args.threads)?;
    let ceilings = ceilings(&device)?;
    let (name, variant) = (device.name(), device.face());
    let threads = match &device {
        Device::Cpu(cpu) => Some(cpu.threads()),
        _ => None,
    };
    let mut out = std::io::stdout().lock();
    let with = threads.map(|t| format!(", {t} threads")).unwrap_or_default();
    writeln!(out, "device    {name}{with}")?;
    writeln!(
        out,
        "ceilings  {:.1} GFLOP/s f32 multiply-add, {:.1} GB/s copy",
        ceilings.gflops, ceilings.gbs
    )?;
    out.flush()?;

    let header = ["case", "layout", "dtype", "ms", "ms min", "GFLOP/s", "% peak", "GB/s", "% copy", ""];
    let mut table = super::table(header, 3..9);
    let bar = ProgressBar::new(cases.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    let mut timed = 0;
    for case in &cases {
        bar.set_message(case.id.clone());
        for (layout, launch) in case.launches(&device, args.dtype) {
            let result = launch.and_then(|launch| measure(&device, args.budget, launch));
            let result = result.unwrap_or_else(|e| Measured::Error { error: format!("{e:#}") });
            timed += usize::from(matches!(result, Measured::Time { .. }));
            let cells = row(&result, &ceilings);
            table.add_row(
                [case.id.clone(), layout.unwrap_or("").into(), args.dtype.to_string()]
                    .into_iter()
                    .chain(cells),
            );
            let (id, kind, dtype) = (&case.id, case.kind.as_str(), args.dtype.name());
            let line = Line {
                framework: "advect",
                id,
                kind,
                variant,
                dtype,
                layout,
                threads,
                device: &name,
                result,
            };
            if let Some(json) = &mut json {
                serde_json::to_writer(&mut *json, &line).context("cannot write the JSON file")?;
                writeln!(json).context("cannot write the JSON file")?;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if let Some(json) = &mut json {
        json.flush().context("cannot write the JSON file")?;
    }
    writeln!(out, "{}", table.trim_fmt())?;
    writeln!(out, "% copy passes 100 where a case fits the caches: the ceiling is that of main memory")?;
    Ok(if timed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(device: &Device, budget: f64, mut launch: Launch) -> Result<Measured> {
    let timing = time(device, budget, || (launch.run)(device))?;
    Ok(Measured::new(timing, launch.flops, launch.bytes))
}

/// The cells of a result from `ms` on. Percentages are of the best run.
fn row(result: &Measured, ceilings: &Ceilings) -> [String; 7] {
    match result {
        Measured::Time { ms, ms_min, gflops, gflops_best, gbs, gbs_best, .. } => {
            let number = |x: &Option<f64>| x.map(|x| format!("{x:.1}")).unwrap_or_default();
            let percent =
                |x: &Option<f64>, of: f64| x.map(|x| format!("{:.0}", 100.0 * x / of)).unwrap_or_default();
            [
                format!("{ms:.4}"),
                format!("{ms_min:.4}"),
                number(gflops),
                percent(gflops_best, ceilings.gflops),
                number(gbs),
                percent(gbs_best, ceilings.gbs),
                String::new(),
            ]
        }
        Measured::Error { error } => {
            let blank = String::new;
            [blank(), blank(), blank(), blank(), blank(), blank(), error.clone()]
        }
    }
}
