//! What a launch counts. The rules are in the crate's README.

use std::ops::AddAssign;

/// Instruction classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Class {
    /// Integer and logic arithmetic, predicates, selects.
    Integer,
    /// f32 arithmetic and comparisons.
    Float32,
    /// f64 arithmetic and comparisons.
    Float64,
    /// f16 and bf16 arithmetic and comparisons.
    Half,
    /// `.approx` functions and other work of the special function unit.
    Special,
    /// `cvt`.
    Convert,
    /// `mov`, packing, `cvta`.
    Move,
    /// Loads and stores of global memory.
    Global,
    /// Loads and stores of shared memory, `ldmatrix`, `stmatrix`.
    Shared,
    /// Loads and stores of local memory.
    Local,
    /// Loads of parameters and constants.
    Constant,
    /// Loads and stores through generic addresses.
    Generic,
    /// `atom` and `red`.
    Atomic,
    /// `cp.async` and its groups.
    Async,
    /// `mma`.
    Tensor,
    /// Shuffles, votes, matches, reductions in a warp.
    Warp,
    /// Barriers and fences.
    Barrier,
    /// Branches, calls, returns.
    Control,
}

impl Class {
    /// All classes, in the order of [`Counters::by_class`].
    pub const ALL: [Self; 18] = [
        Self::Integer,
        Self::Float32,
        Self::Float64,
        Self::Half,
        Self::Special,
        Self::Convert,
        Self::Move,
        Self::Global,
        Self::Shared,
        Self::Local,
        Self::Constant,
        Self::Generic,
        Self::Atomic,
        Self::Async,
        Self::Tensor,
        Self::Warp,
        Self::Barrier,
        Self::Control,
    ];
}

/// What one launch did, summed over its blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Instructions issued: one per warp, whatever the number of lanes.
    pub warp_instructions: u64,
    /// Instructions executed: one per active lane whose guard holds.
    pub thread_instructions: u64,
    /// Warp instructions by [`Class`], in the order of [`Class::ALL`].
    pub by_class: [u64; 18],
    /// Additions and multiplications of `mma`: 2·m·n·k each.
    pub tensor_flops: u64,
    /// f32, f64 and half operations in active lanes; a fused multiply-add counts as 2.
    pub flops: u64,
    /// Global loads: warp requests, 32-byte sectors touched, fewest possible, 128-byte lines, bytes.
    pub global_load: Traffic,
    /// Global stores.
    pub global_store: Traffic,
    /// Global atomics and reductions.
    pub global_atomic: Traffic,
    /// Local loads and stores, in bytes of active lanes.
    pub local_bytes: u64,
    /// Shared loads.
    pub shared_load: Banks,
    /// Shared stores.
    pub shared_store: Banks,
    /// Branches executed by a warp.
    pub branches: u64,
    /// Branches that split the lanes of a warp.
    pub divergent_branches: u64,
    /// Barriers completed by a block.
    pub barriers: u64,
    /// Blocks run.
    pub blocks: u64,
}

/// Traffic with global memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Warp instructions.
    pub requests: u64,
    /// Distinct 32-byte sectors, per request.
    pub sectors: u64,
    /// The fewest 32-byte sectors that could hold the distinct bytes asked for, per request.
    pub min_sectors: u64,
    /// Distinct 128-byte lines, per request.
    pub lines: u64,
    /// Bytes asked for by active lanes.
    pub bytes: u64,
}

/// Traffic with shared memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Banks {
    /// Warp instructions.
    pub requests: u64,
    /// Phases that the access widths need: 1 up to 4 bytes a lane, 2 for 8, 4 for 16, fewer where lanes are idle.
    pub phases: u64,
    /// Cycles needed: for each phase, the largest number of distinct 4-byte words in one bank.
    pub cycles: u64,
    /// Bytes asked for by active lanes.
    pub bytes: u64,
}

impl Banks {
    /// Cycles that bank conflicts add.
    pub fn conflicts(&self) -> u64 {
        self.cycles - self.phases
    }
}

impl Traffic {
    /// Share of the fetched sectors that a perfect access would have needed, at most 1.
    pub fn efficiency(&self) -> f64 {
        if self.sectors == 0 { 1.0 } else { self.min_sectors as f64 / self.sectors as f64 }
    }
}

impl Counters {
    /// Warp instructions of one class.
    pub fn class(&self, class: Class) -> u64 {
        self.by_class[class as usize]
    }
}

impl AddAssign<&Self> for Counters {
    fn add_assign(&mut self, other: &Self) {
        self.warp_instructions += other.warp_instructions;
        self.thread_instructions += other.thread_instructions;
        for (a, b) in self.by_class.iter_mut().zip(other.by_class) {
            *a += b;
        }
        self.tensor_flops += other.tensor_flops;
        self.flops += other.flops;
        for (a, b) in [
            (&mut self.global_load, &other.global_load),
            (&mut self.global_store, &other.global_store),
            (&mut self.global_atomic, &other.global_atomic),
        ] {
            a.requests += b.requests;
            a.sectors += b.sectors;
            a.min_sectors += b.min_sectors;
            a.lines += b.lines;
            a.bytes += b.bytes;
        }
        self.local_bytes += other.local_bytes;
        for (a, b) in
            [(&mut self.shared_load, &other.shared_load), (&mut self.shared_store, &other.shared_store)]
        {
            a.requests += b.requests;
            a.phases += b.phases;
            a.cycles += b.cycles;
            a.bytes += b.bytes;
        }
        self.branches += other.branches;
        self.divergent_branches += other.divergent_branches;
        self.barriers += other.barriers;
        self.blocks += other.blocks;
    }
}
