//! Simulated global memory, and the map of addresses.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::error::{Error, Result};

/// Start of the memory that [`Gpu::alloc`] hands out.
const HEAP: u64 = 0x0000_1000_0000_0000;
/// Generic addresses of shared memory, local memory, kernel parameters, and functions.
pub(crate) const SHARED_WINDOW: u64 = 0x0000_7f00_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x0000_7f10_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x0000_7f20_0000_0000;
pub(crate) const FUNCTION_WINDOW: u64 = 0x0000_7e00_0000_0000;
pub(crate) const WINDOW_SIZE: u64 = 1 << 32;

/// At least this many bytes lie between two allocations.
const GUARD: u64 = 4096;
const ALIGN: u64 = 256;
/// All live allocations together.
const MAX_BYTES: u64 = 16 << 30;
/// Cells in a page of the race shadow.
pub(crate) const PAGE: usize = 1024;

pub(crate) struct Page {
    pub(crate) writes: [AtomicU64; PAGE],
    pub(crate) reads: [AtomicU64; PAGE],
}

pub(crate) struct Alloc {
    pub(crate) base: u64,
    pub(crate) size: u64,
    pub(crate) freed: bool,
    pub(crate) read_only: bool,
    pub(crate) words: Box<[AtomicU32]>,
    /// One bit for every byte.
    pub(crate) written: Box<[AtomicU32]>,
    /// Who touched a cell last, made page by page on first touch.
    pub(crate) shadow: Box<[OnceLock<Box<Page>>]>,
}

impl Alloc {
    fn new(base: u64, size: u64) -> Self {
        let atomics = |n: u64, v: u32| (0..n).map(|_| AtomicU32::new(v)).collect();
        Self {
            base,
            size,
            freed: false,
            read_only: false,
            words: atomics(size.div_ceil(4), !0),
            written: atomics(size.div_ceil(32), 0),
            shadow: (0..size.div_ceil(PAGE as u64)).map(|_| OnceLock::new()).collect(),
        }
    }

    pub(crate) fn page(&self, index: usize) -> &Page {
        self.shadow[index].get_or_init(|| {
            Box::new(Page {
                writes: [const { AtomicU64::new(0) }; PAGE],
                reads: [const { AtomicU64::new(0) }; PAGE],
            })
        })
    }

    fn byte(&self, at: u64) -> u8 {
        (self.words[(at / 4) as usize].load(Relaxed) >> (at % 4 * 8)) as u8
    }

    fn set_byte(&self, at: u64, v: u8) {
        self.store_part(at, 1, u32::from(v));
    }

    /// Writes 1, 2 or 4 bytes that lie in one word.
    #[inline]
    pub(crate) fn store_part(&self, at: u64, bytes: u32, v: u32) {
        let word = &self.words[(at / 4) as usize];
        if bytes == 4 {
            return word.store(v, Relaxed);
        }
        let shift = at % 4 * 8;
        let mask = ((1u32 << (bytes * 8)) - 1) << shift;
        let v = v << shift & mask;
        let _ = word.fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | v));
    }

    pub(crate) fn is_written(&self, at: u64, bytes: u32) -> bool {
        let mask = ((1u64 << bytes) - 1) << (at % 32);
        u64::from(self.written[(at / 32) as usize].load(Relaxed)) & mask == mask
    }

    /// Notes that up to 32 bytes, within one 32-byte sector, are written.
    #[inline]
    pub(crate) fn set_written(&self, at: u64, bytes: u32) {
        let mask = (((1u64 << bytes) - 1) << (at % 32)) as u32;
        let bits = &self.written[(at / 32) as usize];
        if bits.load(Relaxed) & mask != mask {
            bits.fetch_or(mask, Relaxed);
        }
    }

    fn mark(&self, at: u64, len: u64, written: bool) {
        for byte in at..at + len {
            let bits = &self.written[(byte / 32) as usize];
            if byte % 32 == 0 && byte + 32 <= at + len {
                bits.store(if written { !0 } else { 0 }, Relaxed);
            } else if byte % 32 == 0 || byte == at || byte + 32 > at + len || bits.load(Relaxed) != !0 {
                let bit = 1u32 << (byte % 32);
                if written {
                    bits.fetch_or(bit, Relaxed)
                } else {
                    bits.fetch_and(!bit, Relaxed)
                };
            }
        }
    }
}

/// A simulated GPU's global memory. Allocations lie apart, are never reused after a free, and know for every
/// byte whether it was written.
pub struct Gpu {
    /// By address; freed ones stay, without their memory, to be recognized.
    pub(crate) allocs: Vec<Alloc>,
    next: u64,
    live_bytes: u64,
    /// Counts launches, to tell stale shadow entries from those of this launch.
    pub(crate) generation: u64,
    /// Modules whose variables have memory here.
    pub(crate) modules: HashSet<u64>,
}

impl Default for Gpu {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("allocations", &self.allocs.len())
            .field("live_bytes", &self.live_bytes)
            .finish()
    }
}

impl Gpu {
    /// A GPU with nothing allocated.
    pub fn new() -> Self {
        Self { allocs: Vec::new(), next: HEAP, live_bytes: 0, generation: 0, modules: HashSet::new() }
    }

    /// Allocates `bytes` of unwritten memory, aligned to 256 bytes. Reading it before it is written is a
    /// finding in a kernel; the host sees 0xff bytes, which are NaN in every float format.
    ///
    /// # Panics
    /// If more than 16 GiB would be live.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let base = self.next;
        self.insert(base, bytes as u64);
        self.next = (base + bytes as u64 + GUARD).next_multiple_of(ALIGN);
        base
    }

    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.live_bytes + bytes <= MAX_BYTES
    }

    /// Memory at a given place that lies in no allocation.
    pub(crate) fn insert(&mut self, base: u64, size: u64) {
        self.live_bytes += size;
        assert!(self.live_bytes <= MAX_BYTES, "more than {MAX_BYTES} bytes of simulated memory");
        let at = self.allocs.partition_point(|a| a.base < base);
        self.allocs.insert(at, Alloc::new(base, size));
    }

    /// Frees an allocation by its first address.
    ///
    /// # Errors
    /// [`Error::Host`] if no live allocation starts there.
    pub fn free(&mut self, address: u64) -> Result<()> {
        match self.allocs.binary_search_by_key(&address, |a| a.base) {
            Ok(i) if !self.allocs[i].freed => {
                let alloc = &mut self.allocs[i];
                self.live_bytes -= alloc.size;
                alloc.freed = true;
                alloc.words = Box::default();
                alloc.written = Box::default();
                alloc.shadow = Box::default();
                Ok(())
            }
            Ok(_) => Err(Error::Host { address, message: "freed twice".to_owned() }),
            Err(_) => Err(Error::Host { address, message: "not the start of an allocation".to_owned() }),
        }
    }

    /// The allocation whose range, or whose guard gap, holds an address.
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        self.allocs.partition_point(|a| a.base <= address).checked_sub(1)
    }

    fn host(&self, address: u64, len: usize) -> Result<(&Alloc, u64)> {
        let fail = |message: &str| Err(Error::Host { address, message: message.to_owned() });
        let Some(alloc) = self.find(address).map(|i| &self.allocs[i]) else {
            return fail("in no allocation");
        };
        let at = address - alloc.base;
        if alloc.freed {
            return fail("freed memory");
        }
        if at > alloc.size || len as u64 > alloc.size - at {
            return fail(&format!("{len} bytes at offset {at} of an allocation of {} bytes", alloc.size));
        }
        Ok((alloc, at))
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// [`Error::Host`] if the range is not in one live allocation; then nothing is written.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let (alloc, at) = self.host(address, bytes.len())?;
        if at % 4 == 0 {
            let (words, rest) = bytes.as_chunks::<4>();
            for (word, v) in alloc.words[(at / 4) as usize..].iter().zip(words) {
                word.store(u32::from_le_bytes(*v), Relaxed);
            }
            let done = (words.len() * 4) as u64;
            for (i, &v) in rest.iter().enumerate() {
                alloc.set_byte(at + done + i as u64, v);
            }
        } else {
            for (i, &v) in bytes.iter().enumerate() {
                alloc.set_byte(at + i as u64, v);
            }
        }
        alloc.mark(at, bytes.len() as u64, true);
        Ok(())
    }

    /// Makes bytes count as never written: a kernel that reads them, and not the host, is at fault. For
    /// padding that nothing may look at.
    ///
    /// # Errors
    /// [`Error::Host`] outside of an allocation.
    pub fn forget(&mut self, address: u64, bytes: usize) -> Result<()> {
        let (alloc, at) = self.host(address, bytes)?;
        alloc.mark(at, bytes as u64, false);
        Ok(())
    }

    /// Copies to the host. Bytes that nothing has written read as 0xff.
    ///
    /// # Errors
    /// [`Error::Host`] if the range is not in one live allocation.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let (alloc, at) = self.host(address, bytes.len())?;
        for (i, v) in bytes.iter_mut().enumerate() {
            *v = alloc.byte(at + i as u64);
        }
        Ok(())
    }

    /// Makes memory unwritten again.
    ///
    /// # Errors
    /// [`Error::Host`] if the range is not in one live allocation.
    pub fn poison(&mut self, address: u64, len: usize) -> Result<()> {
        let (alloc, at) = self.host(address, len)?;
        for byte in at..at + len as u64 {
            alloc.set_byte(byte, 0xff);
        }
        alloc.mark(at, len as u64, false);
        Ok(())
    }

    /// Offset of the first byte in a range that nothing has written.
    ///
    /// # Errors
    /// [`Error::Host`] if the range is not in one live allocation.
    pub fn first_unwritten(&self, address: u64, len: usize) -> Result<Option<usize>> {
        let (alloc, at) = self.host(address, len)?;
        Ok((0..len).find(|&i| !alloc.is_written(at + i as u64, 1)))
    }

    /// Bytes in live allocations.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }
}
