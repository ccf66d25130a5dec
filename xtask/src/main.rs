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
    /// Compile every CUDA kernel for every architecture; print registers, shared memory and spills
    Kernels,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Setup => setup::setup().map(|found| println!("{found}")),
        Chore::Test => test::test(),
        Chore::Kernels => kernels::kernels(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
