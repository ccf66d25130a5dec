//! Collects findings: one for each kind and instruction, with a count.

use std::collections::HashMap;

use crate::error::FindingKind;

/// A finding before it is worded for the outside.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    pub(crate) kind: FindingKind,
    pub(crate) function: u32,
    pub(crate) pc: u32,
    pub(crate) block: u64,
    /// Position among this block's findings.
    pub(crate) sequence: u64,
    pub(crate) thread: u32,
    pub(crate) address: Option<u64>,
    pub(crate) message: String,
    pub(crate) count: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Findings {
    map: HashMap<(FindingKind, u32, u32), Raw>,
    sequence: u64,
}

/// Where in the code, the grid and the block something is found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub(crate) function: u32,
    pub(crate) pc: u32,
    pub(crate) block: u64,
    pub(crate) thread: u32,
}

impl Findings {
    pub(crate) fn record(
        &mut self,
        kind: FindingKind,
        at: At,
        address: Option<u64>,
        message: impl FnOnce() -> String,
    ) {
        self.sequence += 1;
        let sequence = self.sequence;
        let key = (kind, at.function, at.pc);
        let mut count = 1;
        if let Some(raw) = self.map.get_mut(&key) {
            raw.count += 1;
            if raw.block <= at.block {
                return;
            }
            // Blocks may come in any order: the lowest speaks for all.
            count = raw.count;
        }
        let At { function, pc, block, thread } = at;
        self.map.insert(
            key,
            Raw { kind, function, pc, block, sequence, thread, address, message: message(), count },
        );
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Adds those of another thread; the earliest block's wording stays.
    pub(crate) fn merge(&mut self, other: Self) {
        for (key, raw) in other.map {
            self.map
                .entry(key)
                .and_modify(|mine| {
                    let count = mine.count + raw.count;
                    if (raw.block, raw.sequence) < (mine.block, mine.sequence) {
                        *mine = raw.clone();
                    }
                    mine.count = count;
                })
                .or_insert(raw);
        }
    }

    /// In the order in which a block met them.
    pub(crate) fn sorted(self) -> Vec<Raw> {
        let mut list: Vec<Raw> = self.map.into_values().collect();
        list.sort_by_key(|raw| (raw.block, raw.sequence, raw.function, raw.pc));
        list
    }
}
