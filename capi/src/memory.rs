//! The caller's memory: pointers and structs that come across, read and written under the contract at the top
//! of the header and never beyond what the caller said there is.

use crate::status::Failure;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

/// A struct that grows at its end: its first field is its size as the caller knows it.
///
/// # Safety
/// `repr(C)`, a `usize` first, no padding, and every bit pattern is a value.
pub(crate) unsafe trait Extensible: Copy {
    /// Its size in the first version that had it.
    const FIRST: usize;
}

/// The largest `struct_size` that is believed: far above any, far below what garbage would say.
const LARGEST: usize = 4096;

/// One call across the interface, whose pointers are as the header asks.
pub(crate) struct Caller {
    op: &'static str,
}

impl Caller {
    /// # Safety
    /// Until the call returns, every pointer given to the methods below is null, or valid for what they do
    /// with it: readable or writable for the bytes that its type, its `struct_size` or its count says.
    pub(crate) unsafe fn new(op: &'static str) -> Self {
        Self { op }
    }

    /// The name of the op or function, for messages.
    pub(crate) fn op(&self) -> &'static str {
        self.op
    }

    /// A pointer that is not null and aligned for its type.
    fn pointer<T>(&self, arg: &str, pointer: *const T) -> Result<(), Failure> {
        if pointer.is_null() {
            return Err(Failure::argument(self.op, arg, "a pointer", "NULL"));
        }
        if !pointer.is_aligned() {
            let wanted = format!("a pointer aligned to {} bytes", align_of::<T>());
            return Err(Failure::argument(self.op, arg, wanted, format!("{pointer:p}")));
        }
        Ok(())
    }

    /// The size that a struct says it has.
    fn size<T: Extensible>(&self, arg: &str, pointer: *const T) -> Result<usize, Failure> {
        self.pointer(arg, pointer)?;
        // SAFETY: not null, aligned, and by contract at least its first field is there.
        let size = unsafe { pointer.cast::<usize>().read() };
        if !(T::FIRST..=LARGEST).contains(&size) {
            let wanted = format!("struct_size {} (or that of another version)", size_of::<T>());
            return Err(Failure::argument(self.op, arg, wanted, format!("struct_size {size}")));
        }
        Ok(size)
    }

    /// A struct from the caller: fields that it does not have count as 0, fields that are unknown here must be 0.
    pub(crate) fn read<T: Extensible>(&self, arg: &str, pointer: *const T) -> Result<T, Failure> {
        let size = self.size(arg, pointer)?;
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: `size` bytes are there by contract; no more than a `T` is copied.
        let value = unsafe {
            let known = size.min(size_of::<T>());
            pointer.cast::<u8>().copy_to_nonoverlapping(value.as_mut_ptr().cast(), known);
            value.assume_init()
        };
        let rest = size.saturating_sub(size_of::<T>());
        // SAFETY: the last `rest` of the `size` bytes that are there.
        let rest = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(size - rest), rest) };
        if rest.iter().any(|&b| b != 0) {
            let wanted = format!("fields of advect {} only", env!("CARGO_PKG_VERSION"));
            return Err(Failure::argument(self.op, arg, wanted, "fields of a later version that are not 0"));
        }
        Ok(value)
    }

    /// As [`Caller::read`], NULL being the struct of zeros.
    pub(crate) fn read_or_zero<T: Extensible>(&self, arg: &str, pointer: *const T) -> Result<T, Failure> {
        if pointer.is_null() {
            // SAFETY: every bit pattern is a value.
            return Ok(unsafe { MaybeUninit::zeroed().assume_init() });
        }
        self.read(arg, pointer)
    }

    /// Writes a struct as far as the caller has it; fields that only the caller knows become 0.
    pub(crate) fn fill<T: Extensible>(&self, arg: &str, pointer: *mut T, value: T) -> Result<(), Failure> {
        let size = self.size(arg, pointer)?;
        let (at, first) = (pointer.cast::<u8>(), size_of::<usize>());
        // SAFETY: `size` bytes are there by contract. The first field stays; what is copied lies in both structs.
        unsafe {
            at.add(first).write_bytes(0, size - first);
            let known = size.min(size_of::<T>()) - first;
            std::ptr::from_ref(&value).cast::<u8>().add(first).copy_to_nonoverlapping(at.add(first), known);
        }
        Ok(())
    }

    /// The value behind a pointer.
    pub(crate) fn get<T: Copy>(&self, arg: &str, pointer: *const T) -> Result<T, Failure> {
        self.pointer(arg, pointer)?;
        // SAFETY: not null, aligned, and valid by contract.
        Ok(unsafe { pointer.read() })
    }

    /// Checks that there is somewhere to put a result, before the work is done.
    pub(crate) fn room<T>(&self, arg: &str, pointer: *mut T) -> Result<(), Failure> {
        self.pointer(arg, pointer)
    }

    /// Puts a value behind a pointer.
    pub(crate) fn put<T: Copy>(&self, arg: &str, pointer: *mut T, value: T) -> Result<(), Failure> {
        self.pointer(arg, pointer)?;
        // SAFETY: not null, aligned, and writable by contract.
        unsafe { pointer.write(value) };
        Ok(())
    }

    /// `count` values; NULL when there are none.
    pub(crate) fn slice<T: Copy>(&self, arg: &str, pointer: *const T, count: usize) -> Result<&[T], Failure> {
        if count == 0 {
            return Ok(&[]);
        }
        self.span(arg, pointer, count)?;
        // SAFETY: not null, aligned, not larger than an object can be, and `count` values by contract, which
        // nobody writes while the call lasts.
        Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
    }

    /// `count` values to be written; NULL when there are none.
    #[allow(clippy::mut_from_ref, reason = "the memory is the caller's")]
    pub(crate) fn slice_mut<T: Copy>(
        &self,
        arg: &str,
        pointer: *mut T,
        count: usize,
    ) -> Result<&mut [T], Failure> {
        if count == 0 {
            return Ok(&mut []);
        }
        self.span(arg, pointer.cast_const(), count)?;
        // SAFETY: as in `slice`; nobody else reads or writes them while the call lasts.
        Ok(unsafe { std::slice::from_raw_parts_mut(pointer, count) })
    }

    /// Checks that `count` values can lie behind a pointer, without a look at them: that it is not null and aligned,
    /// and that they are no more than an object can have and end before the address space does.
    pub(crate) fn span<T>(&self, arg: &str, pointer: *const T, count: usize) -> Result<(), Failure> {
        if count == 0 {
            return Ok(());
        }
        self.pointer(arg, pointer)?;
        let most = isize::MAX as usize / size_of::<T>().max(1);
        if count > most {
            return Err(Failure::argument(self.op, arg, format!("at most {most} elements"), count));
        }
        let bytes = count * size_of::<T>();
        if pointer.addr().checked_add(bytes).is_none() {
            let got = format!("{bytes} from {pointer:p} on");
            return Err(Failure::argument(self.op, arg, "bytes before the end of the address space", got));
        }
        Ok(())
    }

    /// A string that ends in a zero byte.
    pub(crate) fn text(&self, arg: &str, pointer: *const c_char) -> Result<&str, Failure> {
        self.pointer(arg, pointer)?;
        // SAFETY: a string that ends, by contract, and stays as it is while the call lasts.
        let text = unsafe { CStr::from_ptr(pointer) };
        text.to_str().map_err(|_| Failure::argument(self.op, arg, "UTF-8", format!("{text:?}")))
    }
}
