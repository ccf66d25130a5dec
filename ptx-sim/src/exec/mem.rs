//! Loads, stores, atomics and asynchronous copies, with all their checks.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::block::Env;
use super::fp;
use super::global::Who;
use super::shared::{Flaw, OUTSIDE, PENDING, UNWRITTEN, WRITTEN};
use super::value::{LANES, Lanes, V32, V64};
use super::warp::{Copy, Warp};
use crate::counters::{Banks, Traffic};
use crate::error::FindingKind;
use crate::ir::*;
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_SIZE};

/// Copies that a warp may have in flight.
const MAX_COPIES: usize = 1 << 20;

/// What each lane moves, as up to eight 32-bit words, lowest address first: `data[word][lane]`.
pub(crate) type Data = [[u32; LANES]; 8];

/// The lanes whose value is undefined, of every two bytes of an access.
pub(crate) type Undef = [u32; 16];

/// Bytes of memory into a lane's words.
#[inline(always)]
fn put_bytes(data: &mut Data, lane: usize, bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks::<4>();
    for (i, word) in words.iter().enumerate() {
        data[i][lane] = u32::from_le_bytes(*word);
    }
    if !rest.is_empty() {
        data[words.len()][lane] = rest.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b));
    }
}

/// A lane's words into bytes of memory.
#[inline(always)]
pub(crate) fn take_bytes(data: &Data, lane: usize, bytes: &mut [u8]) {
    let (words, rest) = bytes.as_chunks_mut::<4>();
    let n = words.len();
    for (i, word) in words.iter_mut().enumerate() {
        *word = data[i][lane].to_le_bytes();
    }
    for (i, byte) in rest.iter_mut().enumerate() {
        *byte = (data[n][lane] >> (8 * i)) as u8;
    }
}

/// Whether memory holds a lane's words already.
#[inline(always)]
pub(crate) fn holds(data: &Data, lane: usize, bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<4>();
    words.iter().enumerate().all(|(i, w)| data[i][lane] == u32::from_le_bytes(*w))
        && rest.iter().enumerate().all(|(i, b)| (data[words.len()][lane] >> (8 * i)) as u8 == *b)
}

/// Addresses of atomics that are told apart when they order something within a block.
const MAX_PLACES: usize = 1 << 16;

/// Where what is handed over at an address may be found: beyond some number of them, one place stands for many.
fn places(address: u64) -> [u64; 2] {
    [address, address % MAX_PLACES as u64]
}

fn join(into: &mut [u32], from: &[u32]) {
    for (into, &from) in into.iter_mut().zip(from) {
        *into = (*into).max(from);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Atomic,
}

pub(crate) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        _ => 0,
    }
}

/// The space that a generic address lies in.
pub(crate) fn space_of(address: u64) -> Space {
    for space in [Space::Shared, Space::Local, Space::Param] {
        if address.wrapping_sub(window(space)) < WINDOW_SIZE {
            return space;
        }
    }
    Space::Global
}

impl Env<'_> {
    /// `isspacep`: constants lie among the global allocations, and the window of parameters in that of global memory.
    pub(crate) fn is_in(&self, space: Space, address: u64) -> bool {
        let gpu = self.cx.gpu;
        let found = space_of(address);
        let is_const = found == Space::Global
            && gpu
                .find(address)
                .map(|i| &gpu.allocs[i])
                .is_some_and(|a| a.read_only && address - a.base < a.size);
        match space {
            Space::Const => is_const,
            Space::Global => matches!(found, Space::Global | Space::Param) && !is_const,
            _ => found == space,
        }
    }

    /// The addresses of all lanes; an undefined one is a finding.
    pub(crate) fn addresses(&mut self, warp: &Warp, addr: &Addr, space: Space, m: u32) -> [u64; LANES] {
        let base = self.src64(warp, &addr.base);
        self.undefined(warp, base.undef & m, "the address");
        let mut out = base.v;
        for v in &mut out {
            *v = v.wrapping_add(addr.offset as u64);
        }
        if matches!(space, Space::Shared | Space::Local | Space::Param) {
            for v in &mut out {
                *v &= 0xffff_ffff;
            }
        }
        out
    }

    /// Calls `f` once for each space that the lanes address, with addresses in that space.
    fn by_space(
        &mut self,
        warp: &mut Warp,
        space: Space,
        mut addresses: [u64; LANES],
        m: u32,
        mut f: impl FnMut(&mut Self, &mut Warp, Space, &[u64; LANES], u32),
    ) {
        if space != Space::Generic {
            return f(self, warp, space, &addresses, m);
        }
        let mut left = m;
        while left != 0 {
            let space = space_of(addresses[left.trailing_zeros() as usize]);
            let same = Lanes(left).filter(|&l| space_of(addresses[l]) == space).fold(0, |s, l| s | 1u32 << l);
            for l in Lanes(same) {
                addresses[l] = addresses[l].wrapping_sub(window(space));
            }
            f(self, warp, space, &addresses, same);
            left &= !same;
        }
    }

    pub(crate) fn load(&mut self, warp: &mut Warp, access: &Access, dst: &[Reg], m: u32) {
        let element = access.ty.bytes() as usize;
        let bytes = element * dst.len();
        let addresses = self.addresses(warp, &access.addr, access.space, m);
        let mut data: Data = [[!0; LANES]; 8];
        let mut pairs: Undef = [0; 16];
        self.by_space(warp, access.space, addresses, m, |env, warp, space, addresses, m| {
            env.read(warp, space, addresses, bytes as u32, m, &mut data, &mut pairs, access.sync);
            if let Some(sync) = access.sync {
                env.take_over(warp, space, addresses, m, sync);
            }
        });
        if access.sync.is_some_and(|s| s.acquire) {
            warp.acquire();
        }
        for (i, &d) in dst.iter().enumerate() {
            let at = i * element;
            let of = &pairs[at / 2..(at + element).div_ceil(2)];
            let undef = of.iter().fold(0, |any, pair| any | pair);
            let mut v = V64 { v: [0; LANES], undef };
            let shift = at % 4 * 8;
            match element {
                4 if !(access.ty.signed() && matches!(d, Reg::W64(_))) => {
                    warp.put32(d, &V32 { v: data[i], undef }, m);
                    if undef & m != 0 && matches!(d, Reg::W32(_)) {
                        warp.put_halves(d, [of[0], of[1]], m);
                    }
                    continue;
                }
                8 => {
                    (0..LANES).for_each(|l| {
                        v.v[l] = u64::from(data[2 * i][l]) | u64::from(data[2 * i + 1][l]) << 32
                    });
                }
                4 => (0..LANES).for_each(|l| v.v[l] = u64::from(data[i][l])),
                2 => (0..LANES).for_each(|l| v.v[l] = u64::from(data[at / 4][l] >> shift & 0xffff)),
                _ => (0..LANES).for_each(|l| v.v[l] = u64::from(data[at / 4][l] >> shift & 0xff)),
            }
            if access.ty.signed() {
                let shift = 64 - access.ty.bits();
                v.v = v.v.map(|v| ((v << shift) as i64 >> shift) as u64);
            }
            warp.put64(d, &v, m);
            if undef & m != 0 && element == 8 {
                warp.put_halves(d, [of[0] | of[1], of[2] | of[3]], m);
            }
        }
    }

    pub(crate) fn store(&mut self, warp: &mut Warp, access: &Access, src: &[Src], m: u32) {
        let element = access.ty.bytes() as usize;
        let mut data: Data = [[0; LANES]; 8];
        let mut pairs: Undef = [0; 16];
        for (i, s) in src.iter().enumerate() {
            let at = i * element;
            if element == 4 {
                let v = self.src32(warp, s);
                if v.undef & m != 0 {
                    let halves = if matches!(s, Src::W32(_)) { warp.undef_halves(s) } else { [v.undef; 2] };
                    (pairs[2 * i], pairs[2 * i + 1]) = (halves[0] & m, halves[1] & m);
                }
                data[i] = v.v;
                continue;
            }
            let v = self.src64(warp, s);
            if v.undef & m != 0 {
                let halves = warp.undef_halves(s);
                for (k, pair) in pairs[at / 2..(at + element).div_ceil(2)].iter_mut().enumerate() {
                    let whole = element < 8 || !matches!(s, Src::W64(_));
                    *pair |= m & if whole { v.undef } else { halves[k / 2] };
                }
            }
            for l in 0..LANES {
                if element == 8 {
                    data[2 * i][l] = v.v[l] as u32;
                    data[2 * i + 1][l] = (v.v[l] >> 32) as u32;
                } else {
                    let part = v.v[l] as u32 & ((1 << (8 * element)) - 1);
                    data[at / 4][l] |= part << (at % 4 * 8);
                }
            }
        }
        let bytes = (element * src.len()) as u32;
        let addresses = self.addresses(warp, &access.addr, access.space, m);
        if access.sync.is_some_and(|s| s.release) {
            warp.release();
        }
        self.by_space(warp, access.space, addresses, m, |env, warp, space, addresses, m| {
            if let Some(sync) = access.sync {
                env.hand_over(warp, space, addresses, m, sync);
            }
            env.write(warp, space, addresses, bytes, m, &data, &pairs, access.sync);
        });
    }

    /// Reads in one space. What is undefined without being a finding by itself is noted in `undef`.
    pub(crate) fn read(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &[u64; LANES],
        bytes: u32,
        m: u32,
        data: &mut Data,
        undef: &mut Undef,
        sync: Option<Sync>,
    ) {
        let n = bytes as usize;
        match space {
            Space::Param => {
                let known = &self.cx.functions[self.cx.kernel as usize].params;
                for l in Lanes(m) {
                    let (at, params) = (addresses[l] as usize, self.cx.params);
                    let inside =
                        |p: &Param| p.offset as usize <= at && at + n <= (p.offset + p.size) as usize;
                    if !addresses[l].is_multiple_of(u64::from(bytes)) {
                        self.misaligned(warp, l, addresses[l], bytes);
                    } else if !known.iter().any(inside) {
                        self.record(FindingKind::OutOfBounds, warp, l, Some(addresses[l]), || {
                            format!(
                                "{n} bytes that are not all of one kernel parameter, of {} bytes in all",
                                params.len()
                            )
                        });
                    } else {
                        put_bytes(data, l, &params[at..at + n]);
                    }
                }
            }
            Space::Local => {
                self.counters.local_bytes += u64::from(bytes * m.count_ones());
                for l in Lanes(m) {
                    if let Some(at) = self.local(warp, l, addresses[l], bytes) {
                        put_bytes(data, l, &warp.local[at..at + n]);
                        let state = warp.local_state[at..at + n].chunks(2);
                        for (undef, pair) in undef.iter_mut().zip(state) {
                            *undef |= u32::from(pair.iter().any(|&s| s != WRITTEN)) << l;
                        }
                    }
                }
            }
            Space::Shared => {
                count_banks(&mut self.counters.shared_load, addresses, bytes, m);
                match bytes {
                    4 => self.read_shared::<4>(warp, addresses, bytes, m, data, sync),
                    8 => self.read_shared::<8>(warp, addresses, bytes, m, data, sync),
                    16 => self.read_shared::<16>(warp, addresses, bytes, m, data, sync),
                    _ => self.read_shared::<0>(warp, addresses, bytes, m, data, sync),
                }
            }
            Space::Global | Space::Const | Space::Generic => {
                if space != Space::Const {
                    count_sectors(&mut self.counters.global_load, addresses, bytes, m);
                }
                let mut hint = usize::MAX;
                for l in Lanes(m) {
                    let Some((index, at)) = self.locate(warp, l, addresses[l], bytes, &mut hint, Kind::Read)
                    else {
                        continue;
                    };
                    let alloc = &self.cx.gpu.allocs[index];
                    if !alloc.is_written(at, bytes) {
                        self.record(FindingKind::UninitializedMemory, warp, l, Some(addresses[l]), || {
                            format!("read of {bytes} bytes that nothing has written, at offset {at} of an allocation of {} bytes", alloc.size)
                        });
                    }
                    if !alloc.read_only {
                        let other = self.who(warp, l, sync).read(alloc, at, bytes);
                        if let Some(other) = other {
                            self.global_race(warp, l, addresses[l], "read", other);
                        }
                    }
                    if bytes < 4 {
                        data[0][l] = alloc.words[(at / 4) as usize].load(Relaxed) >> (at % 4 * 8);
                    } else {
                        for (i, word) in alloc.words[(at / 4) as usize..][..n / 4].iter().enumerate() {
                            data[i][l] = word.load(Relaxed);
                        }
                    }
                }
            }
        }
    }

    /// Reads of N bytes a lane, so that the frequent sizes have code of their own; of `bytes` where N is 0.
    fn read_shared<const N: u32>(
        &mut self,
        warp: &Warp,
        addresses: &[u64; LANES],
        bytes: u32,
        m: u32,
        data: &mut Data,
        sync: Option<Sync>,
    ) {
        let bytes = if N == 0 { bytes } else { N };
        for l in Lanes(m) {
            let at = addresses[l];
            if at & u64::from(bytes - 1) != 0 {
                self.misaligned(warp, l, at, bytes);
                continue;
            }
            let flaw = match self.shared.check_read(at, bytes) {
                None => self.shared.read(warp, l, at, bytes, sync.is_some()),
                flaw => flaw,
            };
            if let Some(flaw) = flaw {
                self.shared_flaw(warp, l, at, bytes, flaw, "read");
                if flaw == Flaw::Bounds {
                    continue;
                }
            }
            put_bytes(data, l, &self.shared.data[at as usize..at as usize + bytes as usize]);
        }
    }

    /// Writes in one space; `undef` says what was never written.
    pub(crate) fn write(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &[u64; LANES],
        bytes: u32,
        m: u32,
        data: &Data,
        undef: &Undef,
        sync: Option<Sync>,
    ) {
        let n = bytes as usize;
        let undefined = undef.iter().fold(0, |any, pair| any | pair) & m;
        if space != Space::Local {
            self.undefined(warp, undefined, "what is stored");
        }
        match space {
            Space::Local => {
                self.counters.local_bytes += u64::from(bytes * m.count_ones());
                for l in Lanes(m) {
                    if let Some(at) = self.local(warp, l, addresses[l], bytes) {
                        take_bytes(data, l, &mut warp.local[at..at + n]);
                        warp.local_state[at..at + n].fill(WRITTEN);
                        if undefined >> l & 1 != 0 {
                            for (state, undef) in warp.local_state[at..at + n].chunks_mut(2).zip(undef) {
                                state.fill(if undef >> l & 1 != 0 { UNWRITTEN } else { WRITTEN });
                            }
                        }
                    }
                }
            }
            Space::Shared => {
                count_banks(&mut self.counters.shared_store, addresses, bytes, m);
                for l in Lanes(m) {
                    let at = addresses[l];
                    if at & u64::from(bytes - 1) != 0 {
                        self.misaligned(warp, l, at, bytes);
                        continue;
                    }
                    let mut flaw = self.shared.check_write(at, bytes);
                    if flaw.is_none() {
                        let same = holds(data, l, &self.shared.data[at as usize..at as usize + n]);
                        flaw = self.shared.write(warp, l, at, bytes, sync.is_some(), same);
                    }
                    if let Some(flaw) = flaw {
                        self.shared_flaw(warp, l, at, bytes, flaw, "write");
                        if flaw == Flaw::Bounds {
                            continue;
                        }
                    }
                    take_bytes(data, l, &mut self.shared.data[at as usize..at as usize + n]);
                    self.shared.mark(at, bytes, WRITTEN);
                }
            }
            Space::Param | Space::Const => {
                let l = m.trailing_zeros() as usize;
                self.record(FindingKind::ReadOnly, warp, l, Some(addresses[l]), || {
                    "write to kernel parameters".to_owned()
                });
            }
            Space::Global | Space::Generic => {
                count_sectors(&mut self.counters.global_store, addresses, bytes, m);
                let mut hint = usize::MAX;
                for l in Lanes(m) {
                    let Some((index, at)) = self.locate(warp, l, addresses[l], bytes, &mut hint, Kind::Write)
                    else {
                        continue;
                    };
                    let alloc = &self.cx.gpu.allocs[index];
                    let same = alloc.is_written(at, bytes) && {
                        if bytes < 4 {
                            let v = alloc.words[(at / 4) as usize].load(Relaxed) >> (at % 4 * 8);
                            (v ^ data[0][l]) & ((1 << (8 * bytes)) - 1) == 0
                        } else {
                            let words = &alloc.words[(at / 4) as usize..][..n / 4];
                            words.iter().enumerate().all(|(i, w)| w.load(Relaxed) == data[i][l])
                        }
                    };
                    let other = self.who(warp, l, sync).write(alloc, at, bytes, same);
                    if let Some(other) = other {
                        self.global_race(warp, l, addresses[l], "write", other);
                    }
                    if bytes < 4 {
                        alloc.store_part(at, bytes, data[0][l]);
                    } else {
                        for (i, w) in alloc.words[(at / 4) as usize..][..n / 4].iter().enumerate() {
                            w.store(data[i][l], Relaxed);
                        }
                    }
                    alloc.set_written(at, bytes);
                }
            }
        }
    }

    fn who<'a>(&'a self, warp: &'a Warp, lane: usize, sync: Option<Sync>) -> Who<'a> {
        Who {
            warp,
            lane,
            block: self.block,
            grid: &self.cx.grid,
            generation: self.cx.gpu.generation,
            shift: self.cx.global_cell.trailing_zeros(),
            releases: self.cx.releases,
            acquired: &self.acquired,
            sync,
        }
    }

    /// The allocation and the offset in it, if the access is sound.
    fn locate(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u64,
        bytes: u32,
        hint: &mut usize,
        kind: Kind,
    ) -> Option<(usize, u64)> {
        let gpu = self.cx.gpu;
        if address & u64::from(bytes - 1) != 0 {
            self.misaligned(warp, lane, address, bytes);
            return None;
        }
        if let Some(alloc) = gpu.allocs.get(*hint) {
            let at = address.wrapping_sub(alloc.base);
            if at < alloc.size && u64::from(bytes) <= alloc.size - at {
                return Some((*hint, at));
            }
        }
        let Some(index) = gpu.find(address) else {
            self.record(FindingKind::OutOfBounds, warp, lane, Some(address), || {
                if address < 65536 { "a null pointer".to_owned() } else { "in no allocation".to_owned() }
            });
            return None;
        };
        let alloc = &gpu.allocs[index];
        let at = address - alloc.base;
        let what = match kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Atomic => "atomic",
        };
        if alloc.freed && at < alloc.size {
            self.record(FindingKind::UseAfterFree, warp, lane, Some(address), || {
                format!(
                    "{what} of {bytes} bytes at offset {at} of an allocation of {} bytes that was freed",
                    alloc.size
                )
            });
            return None;
        }
        if at >= alloc.size || u64::from(bytes) > alloc.size - at {
            // Name the nearer neighbour.
            let before =
                gpu.allocs.get(index + 1).filter(|next| next.base - address < at.saturating_sub(alloc.size));
            let (size, offset) =
                before.map_or((alloc.size, at as i64), |next| (next.size, -((next.base - address) as i64)));
            self.record(FindingKind::OutOfBounds, warp, lane, Some(address), || {
                format!("{what} of {bytes} bytes at offset {offset} of an allocation of {size} bytes")
            });
            return None;
        }
        if alloc.read_only && kind != Kind::Read {
            self.record(FindingKind::ReadOnly, warp, lane, Some(address), || {
                "write to constant memory".to_owned()
            });
            return None;
        }
        *hint = index;
        Some((index, at))
    }

    /// The place of a lane's local bytes.
    fn local(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32) -> Option<usize> {
        if address & u64::from(bytes - 1) != 0 {
            self.misaligned(warp, lane, address, bytes);
            return None;
        }
        let top = warp.frames.last()?;
        let end = u64::from(top.local + self.cx.functions[top.function as usize].frame_bytes);
        if address + u64::from(bytes) > end {
            self.record(FindingKind::OutOfBounds, warp, lane, Some(address), || {
                format!("{bytes} bytes at {address} of {end} bytes of local memory in use")
            });
            return None;
        }
        let at = lane * warp.local_stride + address as usize;
        if warp.local_state[at..at + bytes as usize].contains(&OUTSIDE) {
            self.record(FindingKind::OutOfBounds, warp, lane, Some(address), || {
                format!("{bytes} bytes at {address} of local memory, which are not all of a variable")
            });
            return None;
        }
        Some(at)
    }

    #[cold]
    fn misaligned(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32) {
        self.record(FindingKind::Misaligned, warp, lane, Some(address), || {
            format!("an access of {bytes} bytes needs an address that is a multiple of {bytes}")
        });
    }

    #[cold]
    pub(crate) fn shared_flaw(
        &mut self,
        warp: &Warp,
        lane: usize,
        at: u64,
        bytes: u32,
        flaw: Flaw,
        what: &str,
    ) {
        let before = self.cx.shared_vars.iter().filter(|(start, _)| u64::from(*start) <= at);
        let before = before.max_by_key(|(start, _)| *start).copied();
        let kind = match flaw {
            Flaw::Bounds => FindingKind::OutOfBounds,
            Flaw::Unwritten => FindingKind::UninitializedMemory,
            Flaw::Pending => FindingKind::AsyncNotWaited,
            Flaw::Race { .. } => FindingKind::SharedRace,
        };
        let [bx, by, _] = self.cx.block;
        self.record(kind, warp, lane, Some(at), || match flaw {
            Flaw::Bounds => match before {
                Some((start, size)) => {
                    let offset = at - u64::from(start);
                    format!("{what} of {bytes} bytes at offset {offset} of a shared variable of {size} bytes")
                }
                None => format!("{what} of {bytes} bytes outside of every shared variable"),
            },
            Flaw::Unwritten => format!("{what} of {bytes} bytes of shared memory that no thread has written"),
            Flaw::Pending => format!(
                "{what} of {bytes} bytes that a cp.async writes, before the wait of the thread that issued it"
            ),
            Flaw::Race { thread: t, wrote } => {
                let verb = if wrote { "written" } else { "read" };
                let (x, y, z) = (t % bx, t / bx % by, t / (bx * by));
                format!(
                    "{what} of {bytes} bytes that thread ({x},{y},{z}) has {verb}, with no barrier between"
                )
            }
        });
    }

    #[cold]
    fn global_race(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u64,
        what: &str,
        other: super::global::Other,
    ) {
        let [bx, by, _] = self.cx.block;
        let [gx, gy, _] = self.cx.grid.map(u64::from);
        let same_block = other.block == self.block;
        self.record(FindingKind::GlobalRace, warp, lane, Some(address), || {
            let (t, b) = (other.thread, other.block);
            let verb = if other.wrote { "written" } else { "read" };
            let order = if same_block { "with no barrier between" } else { "and nothing orders blocks" };
            format!(
                "{what} of what thread ({},{},{}) of block ({},{},{}) has {verb}, {order}",
                t % bx,
                t / bx % by,
                t / (bx * by),
                b % gx,
                b / gx % gy,
                b / (gx * gy)
            )
        });
    }
    pub(crate) fn atom(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        op: AtomOp,
        d: Reg,
        b: &Src,
        c: &Src,
        sync: Sync,
        m: u32,
    ) {
        let (b, c) = (self.src64(warp, b), self.src64(warp, c));
        self.undefined(warp, (b.undef | c.undef) & m, "the operand of the atomic");
        let addresses = self.addresses(warp, &access.addr, access.space, m);
        let mut out = V64 { v: [0; LANES], undef: 0 };
        let mut changed = false;
        let (ty, bytes) = (access.ty, access.ty.bytes());
        if sync.release {
            warp.release();
        }
        self.by_space(warp, access.space, addresses, m, |env, warp, space, addresses, m| {
            env.hand_over(warp, space, addresses, m, sync);
            match space {
                Space::Shared => {
                    count_banks(&mut env.counters.shared_load, addresses, bytes, m);
                    for l in Lanes(m) {
                        let at = addresses[l];
                        if at & u64::from(bytes - 1) != 0 {
                            env.misaligned(warp, l, at, bytes);
                            continue;
                        }
                        let mut flaw = env.shared.check_read(at, bytes);
                        if flaw.is_none() {
                            flaw = env.shared.write(warp, l, at, bytes, true, false);
                        }
                        if let Some(flaw) = flaw {
                            env.shared_flaw(warp, l, at, bytes, flaw, "atomic");
                            if flaw == Flaw::Bounds {
                                continue;
                            }
                        }
                        let (at, n) = (at as usize, bytes as usize);
                        let mut old = [0; 8];
                        old[..n].copy_from_slice(&env.shared.data[at..at + n]);
                        let old = u64::from_le_bytes(old);
                        let new = update(op, ty, old, b.v[l], c.v[l], false);
                        changed |= new != old;
                        env.shared.data[at..at + n].copy_from_slice(&new.to_le_bytes()[..n]);
                        out.v[l] = old;
                    }
                }
                Space::Global | Space::Generic => {
                    count_sectors(&mut env.counters.global_atomic, addresses, bytes, m);
                    let mut hint = usize::MAX;
                    for l in Lanes(m) {
                        let Some((index, at)) =
                            env.locate(warp, l, addresses[l], bytes, &mut hint, Kind::Atomic)
                        else {
                            continue;
                        };
                        let alloc = &env.cx.gpu.allocs[index];
                        if !alloc.is_written(at, bytes) {
                            env.record(FindingKind::UninitializedMemory, warp, l, Some(addresses[l]), || {
                                "atomic on memory that nothing has written".to_owned()
                            });
                        }
                        let other = env.who(warp, l, Some(sync)).write(alloc, at, bytes, false);
                        if let Some(other) = other {
                            env.global_race(warp, l, addresses[l], "atomic", other);
                        }
                        out.v[l] =
                            global_update(alloc, at, bytes, |old| update(op, ty, old, b.v[l], c.v[l], true));
                        changed |= update(op, ty, out.v[l], b.v[l], c.v[l], true) != out.v[l];
                    }
                }
                _ => {
                    let l = m.trailing_zeros() as usize;
                    env.record(FindingKind::InvalidOperand, warp, l, Some(addresses[l]), || {
                        "an atomic needs global or shared memory".to_owned()
                    });
                }
            }
            env.take_over(warp, space, addresses, m, sync);
        });
        warp.note_atomic(m, changed);
        if sync.acquire {
            warp.acquire();
        }
        if d != Reg::Sink {
            if ty.signed() && bytes == 4 {
                out.v = out.v.map(|v| v as i32 as i64 as u64);
            }
            warp.put64(d, &out, m);
        }
    }

    /// Before an atomic or a store: what fences have ordered before it is handed to those who read it later.
    fn hand_over(&mut self, warp: &Warp, space: Space, addresses: &[u64; LANES], m: u32, sync: Sync) {
        if !self.cx.uses_fences {
            return;
        }
        let is_shared = space == Space::Shared;
        for l in Lanes(m) {
            if !warp.fenced.is_empty() {
                let place = places(addresses[l])[usize::from(self.handed_over.len() >= MAX_PLACES)];
                let known = self.handed_over.entry((is_shared, place)).or_default();
                known.resize(warp.fenced.len(), 0);
                join(known, &warp.fenced);
            }
            if !is_shared && sync.wide && (self.fenced || sync.release) {
                self.cx.releases.release(addresses[l], self.block);
            }
        }
    }

    /// After an atomic or a load: the next fence orders what was handed over. Between blocks, the atomic itself does.
    fn take_over(&mut self, warp: &mut Warp, space: Space, addresses: &[u64; LANES], m: u32, sync: Sync) {
        if !self.cx.uses_fences {
            return;
        }
        let is_shared = space == Space::Shared;
        for l in Lanes(m) {
            for known in places(addresses[l]).iter().filter_map(|&at| self.handed_over.get(&(is_shared, at)))
            {
                warp.seen.resize(known.len(), 0);
                join(&mut warp.seen, known);
            }
            if !is_shared && sync.wide {
                self.cx.releases.acquire(addresses[l], &mut self.acquired);
            }
        }
    }

    pub(crate) fn cp_async(
        &mut self,
        warp: &mut Warp,
        bytes: u32,
        dst: &Addr,
        src: &Addr,
        src_size: Option<&Src>,
        ignore: Option<&Src>,
        m: u32,
    ) {
        let to = self.addresses(warp, dst, Space::Shared, m);
        let from = self.addresses(warp, src, Space::Global, m);
        let size = match src_size {
            Some(src) => {
                let v = self.src32(warp, src);
                self.undefined(warp, v.undef & m, "the source size");
                v.v
            }
            None => [bytes; LANES],
        };
        let (ignored, undef) = ignore.map_or((0, 0), |p| warp.pred(p));
        self.undefined(warp, undef & m, "the predicate that ignores the source");
        let mut reads = 0;
        for l in Lanes(m) {
            if size[l] > bytes {
                let got = size[l];
                self.record(FindingKind::InvalidOperand, warp, l, None, || {
                    format!("source size {got}, at most {bytes}")
                });
            }
            if size[l] > 0 && ignored >> l & 1 == 0 {
                reads |= 1 << l;
            }
        }
        count_banks(&mut self.counters.shared_store, &to, bytes, m);
        match Lanes(reads).map(|l| size[l].min(bytes)).min() {
            Some(least) if Lanes(reads).any(|l| size[l] > least) => {
                count_parts(&mut self.counters.global_load, &from, &size.map(|n| n.min(bytes)), reads);
            }
            Some(all) => count_sectors(&mut self.counters.global_load, &from, all, reads),
            None => {}
        }
        let mut hint = usize::MAX;
        for l in Lanes(m) {
            let mut source_bytes = if reads >> l & 1 != 0 { size[l].min(bytes) } else { 0 };
            if from[l] & u64::from(bytes - 1) != 0 {
                self.misaligned(warp, l, from[l], bytes);
                source_bytes = 0;
            }
            if source_bytes > 0 {
                match self.locate_part(warp, l, from[l], source_bytes, &mut hint) {
                    None => source_bytes = 0,
                    Some((index, at)) => {
                        let alloc = &self.cx.gpu.allocs[index];
                        if !(0..source_bytes).all(|i| alloc.is_written(at + u64::from(i), 1)) {
                            self.record(FindingKind::UninitializedMemory, warp, l, Some(from[l]), || {
                                format!("copy of {source_bytes} bytes that nothing has written, at offset {at} of an allocation of {} bytes", alloc.size)
                            });
                        }
                        if !alloc.read_only
                            && let Some(other) = self.who(warp, l, None).read(alloc, at, source_bytes)
                        {
                            self.global_race(warp, l, from[l], "copy", other);
                        }
                    }
                }
            }
            let at = to[l];
            if at & u64::from(bytes - 1) != 0 {
                self.misaligned(warp, l, at, bytes);
                continue;
            }
            let mut flaw = self.shared.check_write(at, bytes);
            if flaw.is_none() {
                flaw = self.shared.write(warp, l, at, bytes, false, false);
            }
            if let Some(flaw) = flaw {
                self.shared_flaw(warp, l, at, bytes, flaw, "copy");
                if flaw == Flaw::Bounds {
                    continue;
                }
            }
            self.shared.mark(at, bytes, PENDING);
            if warp.copies.len() >= MAX_COPIES {
                self.record(FindingKind::RunawayLoop, warp, l, Some(at), || {
                    format!("more than {MAX_COPIES} copies that nothing waits for")
                });
                self.abort = true;
                return;
            }
            warp.copies.push(Copy {
                lane: l as u8,
                bytes: bytes as u8,
                source_bytes: source_bytes as u8,
                group: warp.committed[l],
                dst: at as u32,
                src: from[l],
            });
        }
    }

    /// Like `locate`, for a source that need not be as long as it is aligned.
    fn locate_part(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u64,
        bytes: u32,
        hint: &mut usize,
    ) -> Option<(usize, u64)> {
        let mut found = None;
        for i in [0, bytes - 1] {
            let (index, at) =
                self.locate(warp, lane, address.wrapping_add(u64::from(i)), 1, hint, Kind::Read)?;
            if found.is_some_and(|(first, _)| first != index) {
                return None;
            }
            found = found.or(Some((index, at)));
        }
        found
    }

    /// Lands the copies that a wait makes visible: those of all groups but the `keep` youngest, or all.
    pub(crate) fn cp_wait(&mut self, warp: &mut Warp, keep: Option<u32>, m: u32) {
        let copies = std::mem::take(&mut warp.copies);
        for copy in copies {
            let lane = usize::from(copy.lane);
            let done = match keep {
                None => true,
                Some(keep) => u64::from(copy.group) + u64::from(keep) < u64::from(warp.committed[lane]),
            };
            if m >> lane & 1 == 0 || !done {
                warp.copies.push(copy);
                continue;
            }
            let (at, n) = (copy.dst as usize, usize::from(copy.bytes));
            let mut bytes = [0u8; 16];
            if copy.source_bytes > 0
                && let Some(index) = self.cx.gpu.find(copy.src)
            {
                let alloc = &self.cx.gpu.allocs[index];
                let from = copy.src - alloc.base;
                for (i, byte) in bytes[..usize::from(copy.source_bytes)].iter_mut().enumerate() {
                    let at = from + i as u64;
                    *byte = (alloc.words[(at / 4) as usize].load(Relaxed) >> (at % 4 * 8)) as u8;
                }
            }
            self.shared.data[at..at + n].copy_from_slice(&bytes[..n]);
            self.shared.mark(u64::from(copy.dst), u32::from(copy.bytes), WRITTEN);
            self.shared.stamp(warp, lane, u64::from(copy.dst), u32::from(copy.bytes));
        }
    }
}

/// The new value of an atomic.
fn update(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64, is_global: bool) -> u64 {
    let bits = ty.bits();
    let mask = u64::MAX >> (64 - bits);
    let sx = |v: u64| (v << (64 - bits)) as i64 >> (64 - bits);
    let (b, c) = (b & mask, c & mask);
    match op {
        AtomOp::Add => match ty {
            // In global memory, sums of f32 flush subnormals.
            Ty::F32 => {
                let flush = |v: u64| if is_global { fp::F32.flush(v) } else { v };
                let sum = f32::from_bits(flush(old) as u32) + f32::from_bits(flush(b) as u32);
                if sum.is_nan() { fp::F32.nan } else { flush(u64::from(sum.to_bits())) }
            }
            Ty::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
            Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => {
                let f = if matches!(ty, Ty::F16 | Ty::F16x2) { fp::F16 } else { fp::BF16 };
                let add = |a: u64, b: u64| {
                    fp::pack(fp::add(fp::unpack(a, f), fp::unpack(b, f), Round::Nearest), f, Round::Nearest)
                };
                let low = add(old & 0xffff, b & 0xffff);
                if ty.bytes() == 4 { low | add(old >> 16 & 0xffff, b >> 16 & 0xffff) << 16 } else { low }
            }
            _ => old.wrapping_add(b) & mask,
        },
        AtomOp::Min if ty.signed() => {
            if sx(old) < sx(b) {
                old
            } else {
                b
            }
        }
        AtomOp::Max if ty.signed() => {
            if sx(old) > sx(b) {
                old
            } else {
                b
            }
        }
        AtomOp::Min => old.min(b),
        AtomOp::Max => old.max(b),
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}

/// Applies an atomic to global memory, also against other host threads.
fn global_update(alloc: &crate::memory::Alloc, at: u64, bytes: u32, f: impl Fn(u64) -> u64) -> u64 {
    let index = (at / 4) as usize;
    let word = &alloc.words[index];
    match bytes {
        4 => {
            let old = word.fetch_update(SeqCst, Relaxed, |old| Some(f(u64::from(old)) as u32));
            u64::from(old.unwrap_or_default())
        }
        8 => {
            // Both halves are guarded by one lock: 64-bit atomics are rare.
            let _guard = WIDE.lock();
            let high = &alloc.words[index + 1];
            let old = u64::from(word.load(SeqCst)) | u64::from(high.load(SeqCst)) << 32;
            let new = f(old);
            word.store(new as u32, SeqCst);
            high.store((new >> 32) as u32, SeqCst);
            old
        }
        _ => {
            let shift = at % 4 * 8;
            let mask = 0xffffu32 << shift;
            let old = word.fetch_update(SeqCst, Relaxed, |old| {
                let new = f(u64::from(old >> shift & 0xffff)) as u32;
                Some(old & !mask | new << shift & mask)
            });
            u64::from(old.unwrap_or_default() >> shift & 0xffff)
        }
    }
}

static WIDE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Counts 32-byte sectors and 128-byte lines of a warp's access.
pub(crate) fn count_sectors(traffic: &mut Traffic, addresses: &[u64; LANES], bytes: u32, m: u32) {
    if m == 0 {
        return;
    }
    traffic.requests += 1;
    traffic.bytes += u64::from(bytes * m.count_ones());
    let mut list = [0u64; LANES];
    let mut n = 0;
    let mut sorted = true;
    for l in Lanes(m) {
        list[n] = addresses[l];
        sorted &= n == 0 || list[n - 1] <= list[n];
        n += 1;
    }
    if !sorted {
        list[..n].sort_unstable();
    }
    add_sectors(traffic, list[..n].iter().map(|&first| (first, bytes)));
}

/// The same for an access that takes a different number of bytes in each lane.
fn count_parts(traffic: &mut Traffic, addresses: &[u64; LANES], sizes: &[u32; LANES], m: u32) {
    traffic.requests += 1;
    traffic.bytes += Lanes(m).map(|l| u64::from(sizes[l])).sum::<u64>();
    let mut list: Vec<(u64, u32)> = Lanes(m).map(|l| (addresses[l], sizes[l])).collect();
    list.sort_unstable();
    add_sectors(traffic, list.into_iter());
}

/// Adds what a sorted list of addresses and sizes touches.
#[inline(always)]
fn add_sectors(traffic: &mut Traffic, list: impl Iterator<Item = (u64, u32)>) {
    let (mut sectors, mut lines, mut distinct) = (0, 0, 0);
    // The first sector, line and byte that are not counted yet.
    let (mut next_sector, mut next_line, mut next_byte) = (0, 0, 0);
    for (first, bytes) in list {
        let end = first.saturating_add(u64::from(bytes));
        let last = end - 1;
        if last / 32 >= next_sector {
            sectors += last / 32 + 1 - next_sector.max(first / 32);
            next_sector = last / 32 + 1;
        }
        if last / 128 >= next_line {
            lines += last / 128 + 1 - next_line.max(first / 128);
            next_line = last / 128 + 1;
        }
        if end > next_byte {
            distinct += end - next_byte.max(first);
            next_byte = end;
        }
    }
    traffic.sectors += sectors;
    traffic.lines += lines;
    traffic.min_sectors += distinct.div_ceil(32);
}

/// Counts the phases of a shared access and the cycles its banks need.
pub(crate) fn count_banks(banks: &mut Banks, addresses: &[u64; LANES], bytes: u32, m: u32) {
    if m == 0 {
        return;
    }
    banks.requests += 1;
    banks.bytes += u64::from(bytes * m.count_ones());
    // 128 bytes a phase.
    let lanes = (128 / bytes.max(4)) as usize;
    let words = u64::from(bytes.div_ceil(4));
    for phase in 0..LANES / lanes {
        let active = m >> (phase * lanes) & (((1u64 << lanes) - 1) as u32);
        if active == 0 {
            continue;
        }
        banks.phases += 1;
        let (mut low, mut high) = (u64::MAX, 0);
        for l in Lanes(active) {
            let word = addresses[phase * lanes + l] / 4;
            low = low.min(word);
            high = high.max(word + words - 1);
        }
        // Within 32 consecutive words every bank has at most one.
        if high - low < 32 {
            banks.cycles += 1;
            continue;
        }
        let mut list = [0u64; LANES];
        let mut n = 0;
        for l in Lanes(active) {
            for i in 0..words {
                list[n] = addresses[phase * lanes + l] / 4 + i;
                n += 1;
            }
        }
        let list = &mut list[..n];
        list.sort_unstable();
        let mut load = [0u8; 32];
        let mut last = u64::MAX;
        for &word in list.iter() {
            if word != last {
                load[(word % 32) as usize] += 1;
                last = word;
            }
        }
        banks.cycles += u64::from(load.iter().copied().max().unwrap_or(1));
    }
}
