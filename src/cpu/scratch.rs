//! Scratch memory of the kernels. What constants bound is taken as it comes. What grows with an axis is asked for by the
//! thread that calls, before anything is written, and the call refused when it is not to be had: an axis that repeats one
//! element (a stride of 0) may be of any length, with no memory behind it.

use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed};
use std::cell::Cell;
use std::thread::LocalKey;

/// Floats of a cache line.
pub(crate) const LINE: usize = 16;

/// The most bytes that a kernel asks for at once: twice the largest operand. A host may promise more memory than it has, and
/// end the process that uses it, so this is no more than calls need.
const MAX_BYTES: u64 = 1 << 34;

/// A buffer that each thread keeps from call to call.
pub(crate) type Kept = LocalKey<Cell<Vec<f32>>>;

/// Calls `work` with `len` floats at a cache line's boundary, in a buffer that this thread keeps from call to call. What
/// it holds is left over from earlier calls. `len` is bounded by constants, or [`grow`] was called.
pub(crate) fn with_buffer(kept: &'static Kept, len: usize, work: impl FnOnce(*mut f32)) {
    // Taken while in use: work that this thread steals meanwhile then allocates its own.
    let mut buffer = kept.take();
    if buffer.len() < len + LINE {
        buffer = vec![0.0; len + LINE];
    }
    work(aligned(&mut buffer));
    kept.set(buffer);
}

/// The first float at a cache line's boundary, of a buffer of [`LINE`] floats more than are needed.
pub(crate) fn aligned(buffer: &mut [f32]) -> *mut f32 {
    let start = buffer.as_ptr().align_offset(64).min(LINE);
    buffer[start..].as_mut_ptr()
}

/// Makes this thread's buffer large enough for `len` floats, which operand `arg` needs.
///
/// # Errors
/// As [`zeros`].
pub(crate) fn grow(kept: &'static Kept, op: &'static str, arg: &'static str, len: usize) -> Result<()> {
    let len = len.saturating_add(LINE);
    let buffer = kept.take();
    if buffer.len() >= len {
        kept.set(buffer);
        return Ok(());
    }
    // Not both at once.
    drop(buffer);
    kept.set(zeros(op, arg, len)?);
    Ok(())
}

/// `len` floats of 0, which operand `arg` needs.
///
/// # Errors
/// [`Error::Limit`] when they are more than any call needs, [`Error::Driver`] when the host has no memory for them.
pub(crate) fn zeros(op: &'static str, arg: &'static str, len: usize) -> Result<Vec<f32>> {
    let bytes = bytes::<f32>(op, arg, len)?;
    if len == 0 {
        return Ok(Vec::new());
    }
    // What `vec!` does, but for the end of the process; zeros that the system has ready are not written again.
    // SAFETY: the layout is that of a Vec of `len` floats, more than none, and zeros are floats.
    let all = Layout::array::<f32>(len).ok().and_then(|layout| unsafe {
        let memory = alloc_zeroed(layout).cast::<f32>();
        (!memory.is_null()).then(|| Vec::from_raw_parts(memory, len, len))
    });
    all.ok_or_else(|| refused(op, arg, bytes))
}

/// Room for `len` elements, which operand `arg` needs.
///
/// # Errors
/// As [`zeros`].
pub(crate) fn reserved<T>(op: &'static str, arg: &'static str, len: usize) -> Result<Vec<T>> {
    let bytes = bytes::<T>(op, arg, len)?;
    let mut all = Vec::new();
    all.try_reserve_exact(len).map_err(|_| refused(op, arg, bytes))?;
    Ok(all)
}

/// The bytes of `len` elements, if a call may have them.
fn bytes<T>(op: &'static str, arg: &'static str, len: usize) -> Result<u64> {
    let got = (len as u64).saturating_mul(size_of::<T>() as u64);
    if got > MAX_BYTES {
        let (what, limit, target) = ("scratch memory in bytes", MAX_BYTES, "cpu".into());
        return Err(Error::Limit { op, arg, what, got, limit, target });
    }
    Ok(got)
}

fn refused(op: &str, arg: &str, bytes: u64) -> Error {
    let message = format!("{op}: `{arg}`: the host has no {bytes} bytes of scratch memory");
    Error::Driver { target: "cpu".into(), call: "alloc", message }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static BUFFER: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }

    #[test]
    fn a_buffer_is_kept_and_grows() {
        let mut places = Vec::new();
        for len in [100, 100, 50] {
            grow(&BUFFER, "op", "x", len).unwrap();
            with_buffer(&BUFFER, len, |at| {
                // SAFETY: there are so many floats.
                unsafe { at.add(len - 1).write(1.0) };
                assert!(at.addr().is_multiple_of(64));
                places.push(at);
            });
        }
        assert!(places.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(zeros("op", "x", 1000).unwrap(), [0.0; 1000]);
        assert!(zeros("op", "x", 0).unwrap().is_empty());
    }

    #[test]
    fn too_much_is_refused() {
        let limit = MAX_BYTES as usize / 4;
        for len in [limit + 1, 1 << 44, usize::MAX] {
            for error in [
                zeros("op", "x", len).unwrap_err(),
                reserved::<u32>("op", "x", len).unwrap_err(),
                grow(&BUFFER, "op", "x", len).unwrap_err(),
            ] {
                assert!(matches!(error, Error::Limit { op: "op", arg: "x", .. }), "{error}");
            }
        }
    }
}
