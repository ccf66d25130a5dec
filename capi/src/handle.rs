//! Handles: numbers in the guise of pointers, so that a wrong one is found out and not followed.
//!
//! A handle holds the index of a slot, the slot's generation and the kind of object. Destroying an object
//! raises the generation: every copy of the handle is stale from then on.

use crate::status::Failure;
use std::sync::{Arc, PoisonError, RwLock};

#[cfg(target_pointer_width = "64")]
mod layout {
    pub(super) const INDEX_BITS: u32 = 28;
    pub(super) const LAST_GENERATION: u32 = u32::MAX;
}
#[cfg(not(target_pointer_width = "64"))]
mod layout {
    pub(super) const INDEX_BITS: u32 = 16;
    pub(super) const LAST_GENERATION: u32 = (1 << (usize::BITS - KIND_BITS - INDEX_BITS)) - 1;
    use super::KIND_BITS;
}
use layout::{INDEX_BITS, LAST_GENERATION};

const KIND_BITS: u32 = 4;

/// What a handle is of; part of the handle, never 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Device = 1,
    Tensor = 2,
    Solver = 3,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Device, Self::Tensor, Self::Solver];

    fn name(self) -> &'static str {
        match self {
            Self::Device => "a device",
            Self::Tensor => "a tensor",
            Self::Solver => "a solver",
        }
    }
}

/// What handles are of.
pub(crate) trait Object {
    /// Whether it is of use in the process that made it only. `fork` copies memory, and neither the threads of a pool
    /// nor what a GPU's driver knows: a call in the child would wait for ever, or disturb the parent.
    fn confined(&self) -> bool;
}

struct Slot<T> {
    generation: u32,
    /// The process that made the object.
    process: u32,
    value: Option<Arc<T>>,
}

struct Slots<T> {
    all: Vec<Slot<T>>,
    free: Vec<usize>,
}

/// All objects of one kind. An object in use by a call outlives its destruction by another thread.
pub(crate) struct Table<T> {
    kind: Kind,
    slots: RwLock<Slots<T>>,
}

impl<T: Object> Table<T> {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self { kind, slots: RwLock::new(Slots { all: Vec::new(), free: Vec::new() }) }
    }

    /// A handle for a new object.
    pub(crate) fn insert<H>(&self, op: &str, value: T) -> Result<*mut H, Failure> {
        self.try_insert(op, value).map_err(|(failure, _)| failure)
    }

    /// As [`Table::insert`]; when there is no room, the object comes back.
    pub(crate) fn try_insert<H>(&self, op: &str, value: T) -> Result<*mut H, (Failure, T)> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let index = match slots.free.pop() {
            Some(index) => index,
            None if slots.all.len() >> INDEX_BITS == 0 => {
                slots.all.push(Slot { generation: 0, process: 0, value: None });
                slots.all.len() - 1
            }
            None => {
                let wanted = format!("at most {} at once", 1u64 << INDEX_BITS);
                return Err((Failure::limit(op, self.kind.name(), wanted, slots.all.len()), value));
            }
        };
        let slot = &mut slots.all[index];
        slot.generation += 1;
        slot.process = std::process::id();
        slot.value = Some(Arc::new(value));
        let number = ((slot.generation as usize) << KIND_BITS | self.kind as usize) << INDEX_BITS | index;
        Ok(std::ptr::without_provenance_mut(number))
    }

    /// The object of a handle.
    pub(crate) fn get<H>(&self, op: &str, arg: &str, handle: *const H) -> Result<Arc<T>, Failure> {
        let (index, generation) = self.parse(op, arg, handle)?;
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.all.get(index);
        let found =
            slot.filter(|s| s.generation == generation).and_then(|s| Some((s.process, s.value.clone()?)));
        let (process, value) = found.ok_or_else(|| self.gone(op, arg, slot, generation))?;
        if elsewhere(&*value, process) {
            let got = format!("{} of process {process}, from before fork()", self.kind.name());
            return Err(Failure::process(op, arg, &got));
        }
        Ok(value)
    }

    /// Makes a handle stale and gives its object back, to be dropped outside the lock. One that is confined to another
    /// process is never dropped here.
    pub(crate) fn remove<H>(&self, op: &str, arg: &str, handle: *const H) -> Result<Arc<T>, Failure> {
        let (index, generation) = self.parse(op, arg, handle)?;
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.all.get_mut(index);
        let found =
            slot.filter(|s| s.generation == generation).and_then(|s| Some((s.process, s.value.take()?)));
        let Some((process, value)) = found else {
            return Err(self.gone(op, arg, slots.all.get(index), generation));
        };
        if elsewhere(&*value, process) {
            std::mem::forget(value.clone());
        }
        // A slot that has had every generation is never used again.
        if generation < LAST_GENERATION {
            slots.free.push(index);
        }
        Ok(value)
    }

    fn parse<H>(&self, op: &str, arg: &str, handle: *const H) -> Result<(usize, u32), Failure> {
        let number = handle.addr();
        if number == 0 {
            return Err(Failure::handle(op, arg, self.kind.name(), "NULL"));
        }
        let kind = number >> INDEX_BITS & ((1 << KIND_BITS) - 1);
        if kind != self.kind as usize {
            let other = Kind::ALL.into_iter().find(|k| *k as usize == kind);
            let got = other.map_or_else(|| format!("{number:#x}, which is no handle"), |k| k.name().into());
            return Err(Failure::handle(op, arg, self.kind.name(), &got));
        }
        let generation = number >> (INDEX_BITS + KIND_BITS);
        Ok((number & ((1 << INDEX_BITS) - 1), generation as u32))
    }

    fn gone(&self, op: &str, arg: &str, slot: Option<&Slot<T>>, generation: u32) -> Failure {
        let was = slot.is_some_and(|s| (1..=s.generation).contains(&generation));
        let got = if was { "one that was destroyed" } else { "a number that is no handle" };
        Failure::handle(op, arg, self.kind.name(), got)
    }
}

/// Whether an object made in `process` is confined there, and this is another.
fn elsewhere<T: Object>(value: &T, process: u32) -> bool {
    value.confined() && process != std::process::id()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Object for i32 {
        fn confined(&self) -> bool {
            *self < 0
        }
    }

    impl Object for () {
        fn confined(&self) -> bool {
            false
        }
    }

    struct Dropped(Arc<()>);
    impl Object for Dropped {
        fn confined(&self) -> bool {
            true
        }
    }

    #[test]
    fn what_is_confined_is_refused_in_another_process_and_not_dropped_there() {
        let (table, free) = (Table::new(Kind::Tensor), Table::new(Kind::Tensor));
        let counted = Arc::new(());
        let handles = [0, 1].map(|_| table.insert::<u8>("op", Dropped(Arc::clone(&counted))).unwrap());
        table.slots.write().unwrap().all[0].process ^= 1;
        let failure = table.get("op", "t", handles[0]).map(|d| d.0.clone()).unwrap_err();
        assert!(format!("{failure:?}").contains("before fork()"), "{failure:?}");
        for handle in handles {
            assert!(table.remove("op", "t", handle).is_ok());
        }
        assert_eq!(Arc::strong_count(&counted), 2, "one of the two is dropped");
        assert!(table.get("op", "t", handles[0]).is_err());

        let handle = free.insert::<u8>("op", 1).unwrap();
        free.slots.write().unwrap().all[0].process ^= 1;
        assert_eq!(*free.get("op", "t", handle).unwrap(), 1);
    }

    #[test]
    fn handles_go_stale_and_slots_are_used_again() {
        let table = Table::new(Kind::Tensor);
        let a = table.insert::<u8>("op", 1).unwrap();
        let b = table.insert::<u8>("op", 2).unwrap();
        assert_eq!(*table.get("op", "t", a).unwrap(), 1);
        assert_eq!(*table.remove("op", "t", a).unwrap(), 1);
        let c = table.insert::<u8>("op", 3).unwrap();
        assert_ne!(a, c);
        assert_eq!((*table.get("op", "t", b).unwrap(), *table.get("op", "t", c).unwrap()), (2, 3));
        for stale in [table.get("op", "t", a), table.remove("op", "t", a)] {
            let failure = stale.unwrap_err();
            assert!(format!("{failure:?}").contains("was destroyed"), "{failure:?}");
        }
    }

    #[test]
    fn other_numbers_are_no_handles() {
        let (tensors, devices) = (Table::new(Kind::Tensor), Table::new(Kind::Device));
        let t = tensors.insert::<u8>("op", ()).unwrap();
        devices.insert::<u8>("op", ()).unwrap();
        let says =
            |failure: Failure, text: &str| assert!(format!("{failure:?}").contains(text), "{failure:?}");
        says(devices.get("op", "d", t).unwrap_err(), "a tensor");
        says(tensors.get("op", "t", std::ptr::null::<u8>()).unwrap_err(), "NULL");
        for number in [1, 8, 0xdead_beef, usize::MAX, t.addr() + 1, t.addr() ^ (1 << (usize::BITS - 1))] {
            says(
                tensors.get("op", "t", std::ptr::without_provenance::<u8>(number)).unwrap_err(),
                "no handle",
            );
        }
    }
}
