//! `advect kernels`: every kernel variant that the cases reach, written out or compiled.

use advect::op::{Caps, Language};
use advect::target::presets;
use advect::verify::kernels::{Kernel, cover, executed, reached};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `--emit` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// CUDA C++ as NVRTC sees it
    Cuda,
    /// PTX, compiled by NVRTC
    Ptx,
    /// Machine code, compiled by NVRTC
    Cubin,
    /// WGSL as wgpu sees it
    Wgsl,
}

impl Emit {
    fn ending(self) -> &'static str {
        match self {
            Self::Cuda => "cu",
            Self::Ptx => "ptx",
            Self::Cubin => "cubin",
            Self::Wgsl => "wgsl",
        }
    }
}

/// Every kernel variant that the verification cases reach.
///
/// Without --emit, all CUDA kernels are compiled to machine code and a table of registers, shared memory and
/// spills is printed; a kernel that does not compile or spills registers makes the exit status non-zero. No
/// GPU is needed, only NVRTC.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  advect kernels
  advect kernels --op matmul --arch 80,90a
  advect kernels --emit wgsl --out shaders.out
  advect kernels --emit ptx --arch 90a --out ptx.out")]
pub(crate) struct KernelsArgs {
    /// Only this op
    #[arg(long, value_name = "OP")]
    op: Option<String>,
    /// Only these CUDA architectures, as NVRTC names them
    #[arg(long, value_name = "ARCH", value_delimiter = ',', value_parser = presets::ARCHITECTURES)]
    arch: Vec<String>,
    /// Only as many as it takes that each variant is compiled for one architecture, and that on every
    /// architecture any two constants, dtypes or operands that occur together do so
    #[arg(long)]
    cover: bool,
    /// Also leave PTX in the cache for the simulators of the tests, which then find it compiled. With --cover, each variant
    /// stays on one of their architectures where it can, and the others keep every constant, dtype and operand instead of
    /// any two
    #[arg(long, conflicts_with_all = ["arch", "emit"])]
    simulated: bool,
    /// Write the kernels to files
    #[arg(long, value_enum, requires = "out")]
    emit: Option<Emit>,
    /// The folder to write to; made if it is not there
    #[arg(long, value_name = "DIR", requires = "emit")]
    out: Option<PathBuf>,
}

/// Runs `advect kernels`.
pub(crate) fn run(args: &KernelsArgs) -> Result<ExitCode> {
    let devices = if args.emit == Some(Emit::Wgsl) { presets::wgsl() } else { cuda_devices(&args.arch) };
    let mut kernels = reached(&devices, args.op.as_deref())?;
    let simulated = if args.simulated { simulated(&kernels) } else { Vec::new() };
    if args.cover {
        let device_and_variant = |k: &Kernel| (k.device.clone(), k.variant.clone());
        let handy: HashSet<_> = simulated.iter().map(device_and_variant).collect();
        kernels = cover(kernels, |k| handy.contains(&device_and_variant(k)));
    }
    let (Some(emit), Some(out)) = (args.emit, &args.out) else { return compiled::table(kernels, simulated) };
    let texts = match emit {
        Emit::Cuda | Emit::Wgsl => kernels.iter().map(|k| k.source().into_bytes()).collect(),
        Emit::Ptx => compiled::outputs(&kernels, true)?,
        Emit::Cubin => compiled::outputs(&kernels, false)?,
    };
    std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let mut written = HashSet::new();
    for (kernel, text) in kernels.iter().zip(texts) {
        // Sources that do not depend on the architecture are written once.
        let arch = match (emit, kernel.language) {
            (Emit::Ptx | Emit::Cubin, Language::Cuda { .. }) => format!("-{}", kernel.device),
            _ => String::new(),
        };
        let Kernel { variant, dtype, .. } = kernel;
        let hash = fnv1a(kernel.source().as_bytes());
        let name = format!("{}-{}-{dtype}-{hash:016x}{arch}.{}", variant.op, variant.entry, emit.ending());
        if written.insert(name.clone()) {
            let file = out.join(name);
            std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    writeln!(std::io::stdout(), "{} files written to {}", written.len(), out.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Those that the simulators of the tests execute.
fn simulated(kernels: &[Kernel]) -> Vec<Kernel> {
    let archs = presets::SIMULATED.map(|arch| presets::cuda_for(arch).name);
    let there = kernels.iter().filter(|k| archs.contains(&k.device)).cloned();
    executed(there.collect(), &presets::cuda_for(presets::SIMULATED_WHOLE).name)
}

/// The devices of these architectures, or of all of them.
fn cuda_devices(archs: &[String]) -> Vec<Caps> {
    let named = presets::ARCHITECTURES.into_iter().zip(presets::cuda());
    named
        .filter(|(name, _)| archs.is_empty() || archs.iter().any(|a| a == name))
        .map(|(_, caps)| caps)
        .collect()
}

/// FNV-1a: tells files apart, and gives the same names every time.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(feature = "cuda")]
mod compiled {
    use advect::target::cuda::Compiler;
    use advect::verify::kernels::{Compiled, Kernel, Make, compile};
    use anyhow::{Result, bail};
    use comfy_table::{CellAlignment, Table, presets};
    use indicatif::{ProgressBar, ProgressStyle};
    use std::collections::{HashMap, HashSet};
    use std::io::Write;
    use std::process::ExitCode;

    fn compile_all(
        kernels: &[Kernel],
        make: impl Fn(&Kernel) -> Make + Sync,
    ) -> Result<Vec<advect::Result<Compiled>>> {
        let compiler = Compiler::new()?;
        // Shown on a terminal only.
        let bar = ProgressBar::new(kernels.len() as u64);
        bar.set_style(ProgressStyle::with_template("compiling {wide_bar} {pos}/{len} {eta}")?);
        let results = compile(&compiler, kernels, make, || bar.inc(1));
        bar.finish_and_clear();
        Ok(results)
    }

    /// CUBINs or PTX, in the order of the kernels.
    pub(super) fn outputs(kernels: &[Kernel], ptx: bool) -> Result<Vec<Vec<u8>>> {
        let all = compile_all(kernels, |_| if ptx { Make::Ptx } else { Make::Cubin })?;
        all.into_iter().map(|r| Ok(r?.artifact.bytes)).collect()
    }

    /// A row of the table: a variant with its registers on each architecture.
    #[derive(Default)]
    struct Row<'a> {
        kernel: Option<&'a Kernel>,
        registers: Vec<Option<u32>>,
        shared_bytes: u32,
        spill_bytes: u32,
    }

    /// Compiles everything and prints the table. Of what is simulated too the PTX is kept, and what is only simulated is
    /// compiled no further.
    pub(super) fn table(kernels: Vec<Kernel>, simulated: Vec<Kernel>) -> Result<ExitCode> {
        let device_and_variant = |k: &Kernel| (k.device.clone(), k.variant.clone());
        let [whole, ptx] =
            [&kernels, &simulated].map(|all| all.iter().map(device_and_variant).collect::<HashSet<_>>());
        let only_simulated = simulated.into_iter().filter(|k| !whole.contains(&device_and_variant(k)));
        let kernels: Vec<Kernel> = kernels.into_iter().chain(only_simulated).collect();
        let results = compile_all(&kernels, |k| {
            let k = device_and_variant(k);
            match (whole.contains(&k), ptx.contains(&k)) {
                (true, false) => Make::Cubin,
                (true, true) => Make::Both,
                (false, _) => Make::Ptx,
            }
        })?;
        let mut devices: Vec<&str> = Vec::new();
        for kernel in &kernels {
            if !devices.contains(&kernel.device.as_str()) {
                devices.push(&kernel.device);
            }
        }
        let mut rows: Vec<Row<'_>> = Vec::new();
        let mut known = HashMap::new();
        let (mut failures, mut spills) = (Vec::new(), Vec::new());
        for (kernel, result) in kernels.iter().zip(&results) {
            let usage = match result {
                Ok(Compiled { usage: Some(usage), .. }) => usage,
                Ok(_) => continue,
                Err(error) => {
                    failures.push(format!("case {} on {}: {error}", kernel.case, kernel.device));
                    continue;
                }
            };
            if usage.spill_bytes > 0 {
                let name = format!("{} {} {}", kernel.variant.entry, kernel.dtype, kernel.consts());
                spills.push(format!("{name} on {}: {} bytes", kernel.device, usage.spill_bytes));
            }
            let at = *known.entry(&kernel.variant).or_insert_with(|| {
                let registers = vec![None; devices.len()];
                rows.push(Row { kernel: Some(kernel), registers, ..Row::default() });
                rows.len() - 1
            });
            let row = &mut rows[at];
            if let Some(column) = devices.iter().position(|d| *d == kernel.device) {
                row.registers[column] = Some(usage.registers);
            }
            row.shared_bytes = row.shared_bytes.max(usage.shared_bytes + kernel.shared_bytes);
            row.spill_bytes = row.spill_bytes.max(usage.spill_bytes);
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", show(&devices, &rows))?;
        writeln!(
            out,
            "{} variants, {} compiled for {}, {} more to PTX: {} failed, {} spill registers",
            rows.len(),
            whole.len(),
            devices.join(", "),
            results.len() - whole.len(),
            failures.len(),
            spills.len()
        )?;
        if failures.is_empty() && spills.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        bail!("{}", failures.iter().chain(&spills).take(20).cloned().collect::<Vec<_>>().join("\n"))
    }

    fn show(devices: &[&str], rows: &[Row<'_>]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let fixed = ["op", "kernel", "dtype", "operands", "constants"];
        let registers = devices.iter().map(|d| d.strip_prefix("sm_").unwrap_or(d));
        table.set_header(fixed.into_iter().chain(registers).chain(["shared", "spills"]));
        for row in rows {
            let Some(kernel) = row.kernel else { continue };
            let number = |r: &Option<u32>| r.map_or_else(String::new, |r| r.to_string());
            let mut cells = vec![
                kernel.variant.op.to_owned(),
                kernel.variant.entry.to_owned(),
                kernel.dtype.to_string(),
                kernel.operands(),
                kernel.consts(),
            ];
            cells.extend(row.registers.iter().map(number));
            cells.extend([row.shared_bytes.to_string(), row.spill_bytes.to_string()]);
            table.add_row(cells);
        }
        for column in fixed.len()..fixed.len() + devices.len() + 2 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

#[cfg(not(feature = "cuda"))]
mod compiled {
    use super::{ExitCode, Kernel, Result};
    use anyhow::bail;

    const WITHOUT: &str = "this advect was built without CUDA: build it with `--features cuda`, or write the \
                           sources with `--emit cuda` or `--emit wgsl`";

    pub(super) fn table(_: Vec<Kernel>, _: Vec<Kernel>) -> Result<ExitCode> {
        bail!(WITHOUT)
    }

    pub(super) fn outputs(_: &[Kernel], _: bool) -> Result<Vec<Vec<u8>>> {
        bail!(WITHOUT)
    }
}
