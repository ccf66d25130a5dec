//! Set-up and chores of advect.

mod kernels;
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
        /// Every variant for every architecture: many minutes the first time. Without it each variant is
        /// compiled for one, and each architecture gets every pair of constants, dtypes and operands
        #[arg(long)]
        all: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Setup => setup::setup().map(|found| println!("{found}")),
        Chore::Test => test::test(),
        Chore::Kernels { all } => setup::nvrtc().and_then(|nvrtc| kernels::kernels(&nvrtc, all)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
