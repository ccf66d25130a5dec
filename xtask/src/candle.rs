//! Checks candle's host with its CUDA parts also where there is no CUDA compiler.
//!
//! candle's build script compiles candle's own kernels with `nvcc`. Lints and documents of our adapter need none of
//! them, so where there is no compiler a stand-in leaves the files that one would, empty.

use crate::step::{self, cargo, run};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What candle's build script asks of a compiler: its version, and files at the places named.
const STAND_IN: &str = r#"#!/bin/sh
case "$1" in
    --version) echo "Cuda compilation tools, release 13.0, V13.0.0"; exit ;;
    --list-gpu-code) echo sm_80; exit ;;
esac
while [ $# -gt 0 ]; do
    case "$1" in
        -o) object=$2; shift ;;
        --output-directory) folder=$2; shift ;;
        *.cu) source=$1 ;;
    esac
    shift
done
: > "${object:-$folder/$(basename "$source" .cu).ptx}"
"#;

/// A CUDA compiler for candle's build script.
pub(crate) struct Compiler {
    /// `PATH` with the stand-in, where there is no compiler.
    path: Option<OsString>,
}

impl Compiler {
    pub(crate) fn new() -> Result<Self> {
        if step::has("nvcc", "--version") {
            return Ok(Self { path: None });
        }
        let one = Self { path: Some(stand_in()?) };
        one.forget()?;
        Ok(one)
    }

    /// Lets a command that builds nothing to be run find the compiler.
    pub(crate) fn find(&self, mut command: Command) -> Command {
        if let Some(path) = &self.path {
            command.env("PATH", path).env("CUDA_COMPUTE_CAP", "80");
        }
        command
    }

    /// What the stand-in left must not serve a later build with a real compiler.
    pub(crate) fn forget(&self) -> Result<()> {
        match self.path {
            Some(_) => run(&mut cargo("clean --quiet --package candle-kernels")),
            None => Ok(()),
        }
    }
}

/// `PATH` with a folder in front that has the stand-in.
fn stand_in() -> Result<OsString> {
    let folder = step::target().join("stand-in");
    std::fs::create_dir_all(&folder)?;
    executable(&folder.join("nvcc"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(folder.canonicalize()?).chain(std::env::split_paths(&path));
    std::env::join_paths(all.collect::<Vec<PathBuf>>()).context("a folder's name has a colon in it")
}

fn executable(program: &Path) -> Result<()> {
    std::fs::write(program, STAND_IN).with_context(|| format!("cannot write {}", program.display()))?;
    #[cfg(unix)]
    std::fs::set_permissions(program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}
