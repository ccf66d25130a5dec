//! What can go wrong, said so that the caller knows what to do next.

/// The result of every fallible call of advect.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way a call can fail. Nothing is written to any output when an error is returned by a launch.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument does not fit the op: wrong rank, size, dtype, stride, offset, overlap or option.
    #[error("{op}: `{arg}`: wanted {wanted}, got {got}")]
    Argument {
        /// The op that was called.
        op: &'static str,
        /// The operand or option that is at fault.
        arg: &'static str,
        /// What would have been accepted.
        wanted: String,
        /// What came.
        got: String,
    },
    /// The call is well-formed but this target cannot run it.
    #[error("{op}: {what} is not supported on {target}; {instead}")]
    Unsupported {
        /// The op that was called.
        op: &'static str,
        /// The feature that is missing.
        what: String,
        /// The device, in words.
        target: String,
        /// What to use instead.
        instead: String,
    },
    /// A size is over a limit of the device or of the kernels.
    #[error("{op}: `{arg}`: {what} of {got} is over the limit of {limit} on {target}")]
    Limit {
        /// The op that was called.
        op: &'static str,
        /// The operand or option that is at fault.
        arg: &'static str,
        /// Which quantity, with its unit.
        what: &'static str,
        /// The value that was asked for.
        got: u64,
        /// The largest value that can be had.
        limit: u64,
        /// The device, in words.
        target: String,
    },
    /// A device, driver or compiler is not there.
    #[error("{target} is not available: {why}; {remedy}")]
    Unavailable {
        /// Which device or library.
        target: &'static str,
        /// Why it could not be had.
        why: String,
        /// What to do about it.
        remedy: String,
    },
    /// A kernel did not compile: a defect of advect or of the compiler, never of the arguments.
    #[error("{op}: the {language} kernel did not compile for {target}:\n{log}")]
    Compile {
        /// The op whose kernel it is.
        op: &'static str,
        /// CUDA or WGSL.
        language: &'static str,
        /// The device or architecture.
        target: String,
        /// The compiler's log.
        log: String,
    },
    /// The driver refused a call: out of memory, a lost device, a sticky error of an earlier kernel.
    #[error("{target}: {call} failed: {message}")]
    Driver {
        /// Which device.
        target: String,
        /// The driver call.
        call: &'static str,
        /// What the driver said.
        message: String,
    },
}

impl Error {
    /// An [`Error::Argument`], from anything that can be shown.
    pub(crate) fn argument(
        op: &'static str,
        arg: &'static str,
        wanted: impl ToString,
        got: impl ToString,
    ) -> Self {
        Self::Argument { op, arg, wanted: wanted.to_string(), got: got.to_string() }
    }
}
