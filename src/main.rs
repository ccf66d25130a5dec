//! The command line of advect.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
