//! What every call returns, and the message that a failed one leaves behind.

use crate::memory::{Caller, Extensible};
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a call returns: `ADVECT_OK` or one of the errors.
pub type advect_status = i32;

/// The call did what it was asked to.
pub const ADVECT_OK: advect_status = 0;
/// An argument is wrong: a null pointer, a length, shape, dtype, stride, overlap, an unknown enumerator or a
/// `struct_size` that no version of the library had. Nothing was written.
pub const ADVECT_ERROR_ARGUMENT: advect_status = 1;
/// The call is well-formed, but this device (or this build) cannot run it; the message says what to use.
pub const ADVECT_ERROR_UNSUPPORTED: advect_status = 2;
/// A size is over a limit of the device or of the kernels.
pub const ADVECT_ERROR_LIMIT: advect_status = 3;
/// A device, driver or compiler is not there, or it is that of another process: `fork` does not copy it.
pub const ADVECT_ERROR_UNAVAILABLE: advect_status = 4;
/// A kernel did not compile: a defect of advect or of the compiler.
pub const ADVECT_ERROR_COMPILE: advect_status = 5;
/// The driver refused a call: out of memory, a lost device, a sticky error of an earlier kernel.
pub const ADVECT_ERROR_DRIVER: advect_status = 6;
/// A handle is of another kind, was destroyed, or never was one.
pub const ADVECT_ERROR_HANDLE: advect_status = 7;
/// advect failed inside: a defect of advect, kept from unwinding into the caller.
pub const ADVECT_ERROR_INTERNAL: advect_status = 8;

/// The last error of the calling thread, taken apart. Strings are never NULL; they are empty where a kind of
/// error has no such part, and stay valid until the next call that fails on the same thread.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_error {
    /// `sizeof(advect_error)`, set by the caller.
    pub struct_size: usize,
    /// What the failed call returned; `ADVECT_OK` when none has failed.
    pub status: advect_status,
    /// 0.
    pub reserved: u32,
    /// The whole message.
    pub message: *const c_char,
    /// The op or function at fault.
    pub op: *const c_char,
    /// The argument at fault.
    pub argument: *const c_char,
    /// What would have been accepted.
    pub wanted: *const c_char,
    /// What came.
    pub got: *const c_char,
}

// SAFETY: integers and pointers.
unsafe impl Extensible for advect_error {
    const FIRST: usize = size_of::<Self>();
}

/// A failed call.
#[derive(Debug)]
pub(crate) struct Failure(Box<Parts>);

#[derive(Debug)]
struct Parts {
    status: advect_status,
    message: String,
    op: String,
    arg: String,
    wanted: String,
    got: String,
}

impl Failure {
    fn plain(status: advect_status, op: &str, message: String) -> Self {
        let none = String::new;
        Self(Box::new(Parts { status, message, op: op.into(), arg: none(), wanted: none(), got: none() }))
    }

    fn named(status: advect_status, op: &str, arg: &str, wanted: String, got: String) -> Self {
        let message = format!("{op}: `{arg}`: wanted {wanted}, got {got}");
        Self(Box::new(Parts { status, message, op: op.into(), arg: arg.into(), wanted, got }))
    }

    /// An argument of `op` is wrong.
    pub(crate) fn argument(op: &str, arg: &str, wanted: impl ToString, got: impl ToString) -> Self {
        Self::named(ADVECT_ERROR_ARGUMENT, op, arg, wanted.to_string(), got.to_string())
    }

    /// The same failure of another function: of the one that was called, where a part of it is at fault.
    pub(crate) fn of(mut self, op: &str) -> Self {
        let parts = &mut *self.0;
        if let Some(rest) = parts.message.strip_prefix(&parts.op) {
            parts.message = format!("{op}{rest}");
        }
        parts.op = op.into();
        self
    }

    /// A handle is not what it should be.
    pub(crate) fn handle(op: &str, arg: &str, wanted: &str, got: &str) -> Self {
        Self::named(ADVECT_ERROR_HANDLE, op, arg, wanted.into(), got.into())
    }

    /// An object of another process.
    pub(crate) fn process(op: &str, arg: &str, got: &str) -> Self {
        Self::named(ADVECT_ERROR_UNAVAILABLE, op, arg, "one of this process".into(), got.into())
    }

    /// Well-formed, and not to be had.
    pub(crate) fn unsupported(op: &str, what: &str, instead: &str) -> Self {
        Self::plain(ADVECT_ERROR_UNSUPPORTED, op, format!("{op}: {what} is not supported; {instead}"))
    }

    /// Over a limit of the interface.
    pub(crate) fn limit(op: &str, arg: &str, wanted: impl ToString, got: impl ToString) -> Self {
        Self::named(ADVECT_ERROR_LIMIT, op, arg, wanted.to_string(), got.to_string())
    }

    /// The host has no memory left.
    pub(crate) fn memory(op: &str, bytes: usize) -> Self {
        Self::plain(ADVECT_ERROR_DRIVER, op, format!("{op}: the host has no {bytes} bytes of memory"))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl From<advect::Error> for Failure {
    fn from(error: advect::Error) -> Self {
        use advect::Error;
        let message = error.to_string();
        match error {
            Error::Argument { op, arg, wanted, got } => Self::argument(op, arg, wanted, got),
            Error::Unsupported { op, .. } => Self::plain(ADVECT_ERROR_UNSUPPORTED, op, message),
            Error::Limit { op, arg, got, limit, what, .. } => {
                let wanted = format!("{what} of at most {limit}");
                let named = Self::named(ADVECT_ERROR_LIMIT, op, arg, wanted, got.to_string());
                Self(Box::new(Parts { message, ..*named.0 }))
            }
            Error::Unavailable { target, .. } => Self::plain(ADVECT_ERROR_UNAVAILABLE, target, message),
            Error::Compile { op, .. } => Self::plain(ADVECT_ERROR_COMPILE, op, message),
            Error::Driver { target, .. } => Self::plain(ADVECT_ERROR_DRIVER, &target, message),
            _ => Self::plain(ADVECT_ERROR_INTERNAL, "advect", message),
        }
    }
}

/// A failure as C reads it.
struct Stored {
    status: advect_status,
    message: CString,
    op: CString,
    arg: CString,
    wanted: CString,
    got: CString,
}

/// Text as C reads it: a zero byte inside would end it early.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

impl From<Failure> for Stored {
    fn from(Failure(f): Failure) -> Self {
        let [message, op, arg, wanted, got] =
            [&f.message, &f.op, &f.arg, &f.wanted, &f.got].map(|s| c_text(s));
        Self { status: f.status, message, op, arg, wanted, got }
    }
}

thread_local! {
    static LAST: RefCell<Option<Stored>> = const { RefCell::new(None) };
}

/// Keeps a failure for [`advect_last_error`]. A thread that is being torn down keeps none.
fn remember(failure: Failure) -> advect_status {
    let status = failure.0.status;
    let before = LAST.try_with(|last| last.replace(Some(failure.into())));
    drop(before);
    status
}

/// Runs an entry point: its failure is kept for the thread, a panic becomes one.
///
/// # Safety
/// The pointers that `work` hands to [`Caller`] keep the contract at the top of the header.
pub(crate) unsafe fn guard(
    op: &'static str,
    work: impl FnOnce(&Caller) -> Result<(), Failure>,
) -> advect_status {
    // SAFETY: as this function asks.
    let caller = unsafe { Caller::new(op) };
    match catch_unwind(AssertUnwindSafe(|| work(&caller))) {
        Ok(Ok(())) => ADVECT_OK,
        Ok(Err(failure)) => remember(failure),
        Err(payload) => {
            let message = format!("{op}: advect failed inside: {}", says(&*payload));
            // A payload may panic when it is dropped.
            std::mem::forget(payload);
            remember(Failure::plain(ADVECT_ERROR_INTERNAL, op, message))
        }
    }
}

fn says(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The body of an entry point: `entry!("name", |c| { .. Ok(()) })`.
macro_rules! entry {
    ($op:expr, |$caller:ident| $body:expr) => {
        // SAFETY: an entry point is called under the contract at the top of the header.
        unsafe { $crate::status::guard($op, |$caller| $body) }
    };
}
pub(crate) use entry;

/// The message of the last call that failed on the calling thread: `op: argument: wanted .., got ..`. Empty
/// when none has failed. Calls that succeed leave it. Valid until the next call that fails on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn advect_last_error_message() -> *const c_char {
    let message = LAST.try_with(|last| last.borrow().as_ref().map_or(c"".as_ptr(), |e| e.message.as_ptr()));
    message.unwrap_or(c"".as_ptr())
}

/// The last error of the calling thread, taken apart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_last_error(error: *mut advect_error) -> advect_status {
    entry!("advect_last_error", |c| {
        let none = c"".as_ptr();
        let value = LAST.try_with(|last| {
            let last = last.borrow();
            let part = |f: fn(&Stored) -> &CString| last.as_ref().map_or(none, |e| f(e).as_ptr());
            advect_error {
                struct_size: 0,
                status: last.as_ref().map_or(ADVECT_OK, |e| e.status),
                reserved: 0,
                message: part(|e| &e.message),
                op: part(|e| &e.op),
                argument: part(|e| &e.arg),
                wanted: part(|e| &e.wanted),
                got: part(|e| &e.got),
            }
        });
        let value = value.map_err(|_| {
            Failure::argument("advect_last_error", "thread", "a live thread", "one that ends")
        })?;
        c.fill("error", error, value)
    })
}

/// The name of a status: `"ADVECT_OK"`, `"ADVECT_ERROR_ARGUMENT"`, ..; never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn advect_status_name(status: advect_status) -> *const c_char {
    let name = match status {
        ADVECT_OK => c"ADVECT_OK",
        ADVECT_ERROR_ARGUMENT => c"ADVECT_ERROR_ARGUMENT",
        ADVECT_ERROR_UNSUPPORTED => c"ADVECT_ERROR_UNSUPPORTED",
        ADVECT_ERROR_LIMIT => c"ADVECT_ERROR_LIMIT",
        ADVECT_ERROR_UNAVAILABLE => c"ADVECT_ERROR_UNAVAILABLE",
        ADVECT_ERROR_COMPILE => c"ADVECT_ERROR_COMPILE",
        ADVECT_ERROR_DRIVER => c"ADVECT_ERROR_DRIVER",
        ADVECT_ERROR_HANDLE => c"ADVECT_ERROR_HANDLE",
        ADVECT_ERROR_INTERNAL => c"ADVECT_ERROR_INTERNAL",
        _ => c"unknown status",
    };
    name.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: a string of this thread.
        unsafe { CStr::from_ptr(advect_last_error_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_an_error_of_its_thread() {
        struct Spiteful;
        impl Drop for Spiteful {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        assert_eq!(entry!("op", |_c| panic!("out of {}", "luck")), ADVECT_ERROR_INTERNAL);
        assert_eq!(last(), "op: advect failed inside: out of luck");
        assert_eq!(entry!("op", |_c| std::panic::panic_any(Spiteful)), ADVECT_ERROR_INTERNAL);
        assert_eq!(last(), "op: advect failed inside: no message");
        std::thread::spawn(|| assert_eq!(last(), "")).join().unwrap();
    }

    #[test]
    fn zero_bytes_do_not_cut_a_message() {
        let status = entry!("op", |_c| Err(Failure::argument("op", "a\0b", 1, 2)));
        assert_eq!((status, last().as_str()), (ADVECT_ERROR_ARGUMENT, "op: `a\u{fffd}b`: wanted 1, got 2"));
    }
}
