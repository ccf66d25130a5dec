//! What can go wrong, and what the checks report.

use std::fmt;

/// Why a module was not parsed, a launch not run, or a run not clean.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The PTX text is malformed.
    #[error("PTX line {line}: {message}")]
    Parse {
        /// Line of the PTX text, from 1.
        line: u32,
        /// What was expected and what came.
        message: String,
    },
    /// The PTX is well-formed, but uses something that this executor does not implement.
    #[error("PTX line {line}: unsupported instruction `{instruction}`: {reason}")]
    Unsupported {
        /// Line of the PTX text, from 1.
        line: u32,
        /// The opcode with its modifiers.
        instruction: String,
        /// Which part is not implemented.
        reason: String,
    },
    /// The launch itself is wrong: unknown kernel, parameter sizes, block dimensions.
    #[error("launch of `{kernel}`: {message}")]
    Launch {
        /// The kernel asked for.
        kernel: String,
        /// What was wanted and what came.
        message: String,
    },
    /// A host access outside of a live allocation.
    #[error("host access at {address:#x}: {message}")]
    Host {
        /// Address of the access.
        address: u64,
        /// What is wrong with it.
        message: String,
    },
    /// A resource limit was reached before anything ran: nothing was executed.
    #[error("limit: {0}")]
    Limit(String),
    /// The kernel ran, and the checks found mistakes in it.
    #[error("{}", list(.0))]
    Findings(Vec<Finding>),
}

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn list(findings: &[Finding]) -> String {
    let mut text = format!("{} finding(s)", findings.len());
    for finding in findings {
        text.push_str("\n  ");
        text.push_str(&finding.to_string());
    }
    text
}

/// The kind of a [`Finding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// An access outside of every allocation, or past the end of the variable or frame.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// An access to memory that was freed.
    UseAfterFree,
    /// A write to constant memory or to a kernel parameter.
    ReadOnly,
    /// A read of memory that nothing has written.
    UninitializedMemory,
    /// A register that was never written decides a branch, an address, or what is stored.
    UninitializedRegister,
    /// Two threads touch the same shared memory, at least one writes, and no barrier orders them.
    SharedRace,
    /// Two threads touch the same global memory, at least one writes, and nothing orders them.
    GlobalRace,
    /// `cp.async` data is touched before the wait that makes it visible.
    AsyncNotWaited,
    /// A barrier executed by a part of a warp only.
    DivergentBarrier,
    /// A barrier that some warps wait at while other warps have exited without it.
    MissingWarps,
    /// A barrier used with a wrong thread count, or with counts that disagree.
    BarrierCount,
    /// A warp-wide instruction whose mask does not name exactly the threads that execute it.
    WarpMask,
    /// All the threads that are left wait for each other.
    Deadlock,
    /// The step limit was reached.
    RunawayLoop,
    /// A call or a local frame that goes deeper than the limit.
    StackOverflow,
    /// `trap`, or a failed device-side assertion.
    Trap,
    /// An operand value that the instruction does not allow.
    InvalidOperand,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "out of bounds",
            Self::Misaligned => "misaligned address",
            Self::UseAfterFree => "use after free",
            Self::ReadOnly => "write to read-only memory",
            Self::UninitializedMemory => "uninitialized memory",
            Self::UninitializedRegister => "uninitialized register",
            Self::SharedRace => "shared memory race",
            Self::GlobalRace => "global memory race",
            Self::AsyncNotWaited => "cp.async data before its wait",
            Self::DivergentBarrier => "divergent barrier",
            Self::MissingWarps => "missing warps at a barrier",
            Self::BarrierCount => "wrong barrier count",
            Self::WarpMask => "wrong warp mask",
            Self::Deadlock => "deadlock",
            Self::RunawayLoop => "runaway loop",
            Self::StackOverflow => "stack overflow",
            Self::Trap => "trap",
            Self::InvalidOperand => "invalid operand",
        })
    }
}

/// A place in the CUDA source, from the `.loc` lines of PTX compiled with line information.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    /// The file as the compiler named it.
    pub file: String,
    /// Line in that file, from 1.
    pub line: u32,
}

/// A mistake found while a kernel ran. Equal mistakes at one instruction are one finding with a count.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What kind of mistake it is.
    pub kind: FindingKind,
    /// The kernel that was launched.
    pub kernel: String,
    /// Line of the PTX text, from 1.
    pub ptx_line: u32,
    /// The CUDA line, where the PTX carries line information.
    pub source: Option<SourceLine>,
    /// `blockIdx` of the first occurrence.
    pub block: [u32; 3],
    /// `threadIdx` of the first occurrence.
    pub thread: [u32; 3],
    /// The address, for a memory access: in its own space (shared and local addresses start at 0).
    pub address: Option<u64>,
    /// What was expected and what came.
    pub message: String,
    /// How often it occurred, in all blocks and threads.
    pub count: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, kernel, ptx_line, block: b, thread: t, message, count, .. } = self;
        write!(f, "{kind} in `{kernel}`, PTX line {ptx_line}")?;
        if let Some(SourceLine { file, line }) = &self.source {
            write!(f, " ({file}:{line})")?;
        }
        write!(f, ", block ({},{},{}) thread ({},{},{})", b[0], b[1], b[2], t[0], t[1], t[2])?;
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        write!(f, ": {message}")?;
        if *count > 1 {
            write!(f, " [{count} times]")?;
        }
        Ok(())
    }
}
