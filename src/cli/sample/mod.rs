//! `advect sample`: a flow-matching U-Net built from the ops, from noise to a picture.

mod classifier;
mod model;
mod picture;
mod sampler;
#[cfg(test)]
mod tests;
mod unet;
mod workspace;

use super::device::{Choice, threads};
use advect::solver::Method;
use advect::{Device, Dtype};
use anyhow::{Context, Result, ensure};
use classifier::Classifier;
use indicatif::{ProgressBar, ProgressStyle};
use model::{DESCRIPTION, Description, FLOW, Weights};
use sampler::{Recipe, Sampler};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  advect sample                                       80 digits into digits.png, on the best device
  advect sample --labels 3,1,4 --out pi.png           one of each of these
  advect sample --labels 0-9 --count 600 --score      600 digits and how many the classifier reads right
  advect sample --device wgpu:1 --dtype f16           on the second adapter of `advect devices`, in f16
  advect sample --solver midpoint --steps 6 --guidance 1
";

/// Arguments of `advect sample`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SampleArgs {
    /// auto (an NVIDIA GPU, else another GPU, else the CPU), cpu, wgpu[:N] or cuda[:N].
    #[arg(long, value_name = "D", default_value = "auto")]
    device: Choice,
    /// Numerical method: euler, midpoint, heun or rk4, which evaluate 1, 2, 2 and 4 times a step.
    #[arg(long, default_value = "heun")]
    solver: Method,
    /// Steps from noise to image.
    #[arg(long, value_name = "N", default_value_t = 10, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
    /// Classifier-free guidance: 1 is the plain conditional model (half the work), more is clearer and
    /// less varied.
    #[arg(long, value_name = "W", default_value_t = 1.5, allow_negative_numbers = true, value_parser = finite)]
    guidance: f64,
    /// Digits to draw, as single ones and ranges: 0-9 or 3,1,4.
    #[arg(long, default_value = "0-9")]
    labels: Labels,
    /// How many images; the labels repeat. By default 80 for all ten digits, else one of each label given.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: Option<u32>,
    /// Seed of the noise. Image k of a seed is the same whatever the count and the device, up to rounding.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// How weights and activations are stored: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_parser = super::float)]
    dtype: Dtype,
    /// The picture to write.
    #[arg(long, value_name = "FILE", default_value = "digits.png")]
    out: PathBuf,
    /// Threads of the CPU; 0 is one a core.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true, value_parser = threads)]
    threads: usize,
    /// Classify the samples with the bundled classifier and print how many are what they should be.
    #[arg(long)]
    score: bool,
    /// A folder with digits-flow.json and digits-flow.safetensors, instead of the bundled model.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

fn finite(s: &str) -> Result<f64, String> {
    let value = s.parse().ok().filter(|v: &f64| v.is_finite() && v.abs() <= 1000.0);
    value.ok_or_else(|| "wanted a number between -1000 and 1000".into())
}

/// Digits to draw, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Labels(Vec<usize>);

impl std::str::FromStr for Labels {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let digit = |s: &str| {
            let value = s.trim().parse::<usize>().ok().filter(|&d| d <= 9);
            value.ok_or_else(|| format!("`{s}` is not a digit; wanted digits and ranges as in 0-9 or 3,1,4"))
        };
        let mut all = Vec::new();
        for part in s.split(',') {
            match part.split_once('-') {
                Some((from, to)) => {
                    let (from, to) = (digit(from)?, digit(to)?);
                    if from > to {
                        return Err(format!("`{part}` runs backwards"));
                    }
                    all.extend(from..=to);
                }
                None => all.push(digit(part)?),
            }
        }
        Ok(Self(all))
    }
}

/// Columns of the picture: one a label while they are few.
fn columns(labels: usize) -> usize {
    if (2..=16).contains(&labels) { labels } else { 10 }
}

pub(crate) fn run(args: &SampleArgs) -> Result<ExitCode> {
    let (description, weights) = load(args.model.as_deref())?;
    let labels = &args.labels.0;
    if let Some(label) = labels.iter().find(|&&l| l >= description.num_classes) {
        anyhow::bail!(
            "--labels: this model draws the classes 0 to {}, not {label}",
            description.num_classes - 1
        );
    }
    let default_count = if *labels == Vec::from_iter(0..10) { 80 } else { labels.len() };
    let count = args.count.map_or(default_count, |n| n as usize);
    let classes: Vec<usize> = labels.iter().copied().cycle().take(count).collect();
    // Fail before the work, not after it.
    picture::writable(&args.out)?;

    let device = args.device.open(args.threads)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "device   {}", device.name())?;
    let recipe = Recipe { method: args.solver, steps: args.steps as usize, guidance: args.guidance };
    let batch = batch(&device).min(count);
    let mut sampler = Sampler::new(device, args.dtype, &description, &weights, recipe, batch)?;
    let passes = sampler.evaluations() * sampler.branches();
    writeln!(
        out,
        "solver   {}, {} steps, guidance {}: {} evaluations, {passes} network passes an image, {}",
        args.solver,
        args.steps,
        args.guidance,
        sampler.evaluations(),
        args.dtype,
    )?;
    out.flush()?;

    let bar = ProgressBar::new((count * sampler.evaluations()) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {percent:>3}% {elapsed} of about {duration}")?);
    let start = Instant::now();
    let images = sampler.draw(&classes, args.seed, 0, |n| bar.inc(n as u64))?;
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    ensure!(
        images.iter().all(|x| x.is_finite()),
        "the samples are not finite numbers: values left the range of {}; use --dtype f32 or less guidance",
        args.dtype,
    );
    writeln!(
        out,
        "time     {:.3} s for {count} images, {:.2} ms an image",
        seconds,
        1e3 * seconds / count as f64
    )?;
    if args.score {
        let clamped: Vec<f32> = images.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let read = Classifier::new(args.threads)?.classify(&clamped)?;
        let right = read.iter().zip(&classes).filter(|(a, b)| a == b).count();
        writeln!(out, "score    {right} of {count} are read as their label: {:.1} %", percent(right, count))?;
    }
    picture::save(&picture::grid(&images, description.image_size, columns(labels.len())), &args.out)?;
    writeln!(out, "picture  {}", args.out.display())?;
    Ok(ExitCode::SUCCESS)
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole as f64
}

/// Images at once: enough to keep a GPU busy, few enough that a CPU's caches hold what layers pass on.
fn batch(device: &Device) -> usize {
    if device.face() == "cpu" { 16 } else { 128 }
}

fn load(folder: Option<&Path>) -> Result<(Description, Weights)> {
    let Some(folder) = folder else {
        return Ok((Description::bundled()?, Weights::bundled_flow()?));
    };
    let read = |name: &str| {
        let path = folder.join(name);
        let bytes = std::fs::read(&path).with_context(|| {
            format!("cannot read {}; --model wants a folder with {DESCRIPTION} and {FLOW}", path.display())
        })?;
        Ok::<_, anyhow::Error>((bytes, path.display().to_string()))
    };
    let (json, path) = read(DESCRIPTION)?;
    let description = Description::parse(&json).context(path)?;
    ensure!(
        description.in_channels == 1,
        "this model draws images of {} channels; pictures have 1",
        description.in_channels
    );
    let (bytes, path) = read(FLOW)?;
    Ok((description, Weights::parse(&bytes).context(path)?))
}

#[cfg(test)]
mod arguments {
    use super::Labels;

    #[test]
    fn labels() {
        let parsed = |s: &str| s.parse::<Labels>().map(|l| l.0);
        assert_eq!(parsed("0-9"), Ok((0..10).collect()));
        assert_eq!(parsed("3,1, 4"), Ok(vec![3, 1, 4]));
        assert_eq!(parsed("0-2,7"), Ok(vec![0, 1, 2, 7]));
        for wrong in ["", "10", "x", "3-", "5-2", "-1", "1,,2"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
