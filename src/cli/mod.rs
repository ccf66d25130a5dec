//! The commands. Each is a module with its arguments and a `run`.

mod bench;
mod counters;
mod device;
mod devices;
mod kernels;
mod sample;
mod verify;

use advect::Dtype;
use clap::{Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use std::ops::Range;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  advect sample                        draw 80 digits on the best device, into digits.png
  advect sample --device cpu --labels 3,1,4 --score
  advect devices                       what is here, and what it can do
  advect verify --op conv              cross-check every face of one op
  advect bench --op attention --threads 1
  advect kernels --emit wgsl --out shaders.out
";

/// Fused kernels for attention, convolution and ODE/SDE steps: look at devices, cross-check kernels, time
/// them, and sample a small model with them.
#[derive(Parser)]
#[command(name = "advect", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the devices of this machine and what they can do.
    Devices,
    /// Run the cases of every op on the devices here and compare with the f64 definition.
    Verify(verify::VerifyArgs),
    /// Time the ops on a device, beside the ceilings measured there.
    Bench(bench::BenchArgs),
    /// Write out or compile every kernel variant that the cases reach.
    Kernels(kernels::KernelsArgs),
    /// Draw handwritten digits with the bundled flow-matching model.
    Sample(sample::SampleArgs),
}

/// Parses the command line, runs the command, and says what went wrong. Exit status: 0 done, 1 the command
/// failed, 2 the command line is wrong.
pub(crate) fn main() -> ExitCode {
    quiet_layers();
    let result = match Cli::parse().command {
        Command::Devices => devices::run(),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Sample(args) => sample::run(&args),
    };
    match result {
        Ok(status) => status,
        // Whoever read our output has seen enough (`advect verify | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Without a desktop, Mesa's device-select layer for Vulkan complains on stderr that it found none.
fn quiet_layers() {
    let unset = |name| std::env::var_os(name).is_none();
    if unset("XDG_RUNTIME_DIR") && unset("MESA_VK_DEVICE_SELECT") {
        // SAFETY: called first thing in main: no other thread is there to read the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A table of plain text whose columns `numbers` are aligned to the right.
fn table<const N: usize>(header: [&str; N], numbers: Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for column in table.column_iter_mut().skip(numbers.start).take(numbers.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A dtype that ops compute with.
fn float(s: &str) -> Result<Dtype, String> {
    let dtype = s.parse().ok().filter(|d: &Dtype| d.is_float());
    dtype.ok_or_else(|| format!("unknown dtype `{s}`: wanted f32, f16 or bf16"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
