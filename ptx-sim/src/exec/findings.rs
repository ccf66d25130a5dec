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
        self.map.entry((kind, at.function, at.pc)).and_modify(|raw| raw.count += 1).or_insert_with(|| Raw {
            kind,
            function: at.function,
            pc: at.pc,
            block: at.block,
            sequence,
            thread: at.thread,
            address,
            message: message(),
            count: 1,
        });
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
