//! Set-up and chores of advect.

mod candle;
mod capi;
mod kernels;
mod licences;
mod mutants;
mod package;
mod setup;
mod step;
mod test;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Set-up and chores of advect.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what the tests need: software Vulkan drivers; NVRTC and NumPy into the target folder
    Setup,
    /// Set up, then format, lints, all tests on every device, docs, and the kernel compile matrix
    Test,
    /// Build libadvect and install it: library, header and pkg-config file
    Capi {
        /// The folder that gets `lib` and `include`
        #[arg(long, default_value = "target/capi")]
        prefix: PathBuf,
    },
    /// Write capi/include/advect.h anew
    Header,
    /// Lint, test and run the host on burn with its wgpu backend, which takes many minutes to build; `test` has the rest
    Burn,
    /// Compile the CUDA kernels for every architecture; print registers, shared memory and spills
    Kernels {
        /// Only a part that reaches every variant on one architecture, and every pair of settings on each
        #[arg(long)]
        cover: bool,
    },
    /// Pack the crates as they would be published, build and test what was packed
    Package,
    /// Plant one mistake after the other in the kernels and see whether the cross-check notices (hours)
    Mutants(mutants::MutantsArgs),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Setup => setup::setup().map(|found| println!("{found}")),
        Chore::Test => test::test(),
        Chore::Burn => test::burn(),
        Chore::Capi { prefix } => capi::install(&prefix),
        Chore::Header => capi::header(),
        Chore::Kernels { cover } => setup::nvrtc().and_then(|nvrtc| {
            let options: &[&str] = if cover { &["--cover"] } else { &[] };
            kernels::kernels(step::program("advect")?, &nvrtc, options)
        }),
        Chore::Package => package::package(true),
        Chore::Mutants(args) => setup::setup().and_then(|found| mutants::mutants(&found, &args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
