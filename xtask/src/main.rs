//! Set-up and chores of advect.

mod kernels;
mod mutants;
mod setup;
mod step;
mod test;

use clap::{Parser, Subcommand};
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
    /// Install what the tests need: software Vulkan drivers, and NVRTC into the target folder
    Setup,
    /// Set up, then format, lints, all tests on every device, docs, and the kernel compile matrix
    Test,
    /// Compile the CUDA kernels for every architecture; print registers, shared memory and spills
    Kernels {
        /// Only a part that reaches every variant on one architecture, and every pair of settings on each
        #[arg(long)]
        cover: bool,
    },
    /// Plant one mistake after the other in the kernels and see whether the cross-check notices (hours)
    Mutants(mutants::MutantsArgs),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Setup => setup::setup().map(|found| println!("{found}")),
        Chore::Test => test::test(),
        Chore::Kernels { cover } => setup::nvrtc().and_then(|nvrtc| kernels::kernels(&nvrtc, !cover)),
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
