//! The decoded form of a kernel: names, labels and types are resolved, so that the executor only dispatches.

use crate::counters::Class;

/// The fundamental types an instruction can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ty {
    Pred,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    Bf16,
    B32,
    U32,
    S32,
    F32,
    Tf32,
    F16x2,
    Bf16x2,
    U16x2,
    S16x2,
    E4m3x2,
    E5m2x2,
    B64,
    U64,
    S64,
    F64,
    F32x2,
    B128,
}

impl Ty {
    pub(crate) fn parse(s: &str) -> Option<Self> {
        Some(match s {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "u8" => Self::U8,
            "s8" => Self::S8,
            "b16" => Self::B16,
            "u16" => Self::U16,
            "s16" => Self::S16,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "b32" => Self::B32,
            "u32" => Self::U32,
            "s32" => Self::S32,
            "f32" => Self::F32,
            "tf32" => Self::Tf32,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::Bf16x2,
            "u16x2" => Self::U16x2,
            "s16x2" => Self::S16x2,
            "e4m3x2" => Self::E4m3x2,
            "e5m2x2" => Self::E5m2x2,
            "b64" => Self::B64,
            "u64" => Self::U64,
            "s64" => Self::S64,
            "f64" => Self::F64,
            "f32x2" => Self::F32x2,
            "b128" => Self::B128,
            _ => return None,
        })
    }

    /// Size in bytes; a predicate has none.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Pred => 0,
            Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 | Self::E4m3x2 | Self::E5m2x2 => 2,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 | Self::F32x2 => 8,
            Self::B128 => 16,
            _ => 4,
        }
    }

    pub(crate) fn bits(self) -> u32 {
        self.bytes() * 8
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64 | Self::S16x2)
    }

    pub(crate) fn is_int(self) -> bool {
        use Ty::*;
        matches!(self, B8 | U8 | S8 | B16 | U16 | S16 | B32 | U32 | S32 | B64 | U64 | S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64 | Self::Tf32)
    }
}

/// A register, by bank: 8 to 32 bits wide, 64 bits wide, or a predicate (one bit per lane).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reg {
    W32(u32),
    W64(u32),
    Pred(u32),
    /// `_`: the result is dropped.
    Sink,
}

/// A source operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Src {
    W32(u32),
    W64(u32),
    Imm(u64),
    Special(Special),
    /// A predicate register as a source, perhaps negated.
    Pred(u32, bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    Clock,
    ClockHi,
    DynamicSmem,
    TotalSmem,
    Zero,
    One,
    /// Start of the dynamic shared memory, plus an offset.
    DynamicBase(u32),
    /// Start of the frame of the running function, plus an offset: the address of a local variable.
    Frame(u32),
}

/// The guard `@p` or `@!p`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard {
    pub(crate) pred: u32,
    pub(crate) negate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    /// Kernel parameters.
    Param,
}

/// An address: a base operand plus a constant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addr {
    pub(crate) base: Src,
    pub(crate) offset: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntOp {
    Add,
    Sub,
    AddSat,
    SubSat,
    MulLo,
    MulHi,
    MulWide,
    MadLo,
    MadHi,
    MadHiSat,
    MadWide,
    Mul24Lo,
    Mul24Hi,
    Mad24Lo,
    Mad24Hi,
    Sad,
    Div,
    Rem,
    Abs,
    Neg,
    Min,
    Max,
    Popc,
    Clz,
    Bfind,
    BfindShift,
    Fns,
    Brev,
    Bfe,
    Szext(bool),
    Bmsk(bool),
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    Shr,
    ShfL(bool),
    ShfR(bool),
    Lop3(u8),
    Prmt(u8),
    /// Signedness of a and of b.
    Dp4a(bool, bool),
    /// Signedness of a and of b, and whether the high pair of b is used.
    Dp2a(bool, bool, bool),
    MinRelu,
    MaxRelu,
    /// Negative results become 0, or do not.
    Min16x2(bool),
    Max16x2(bool),
    Add16x2,
}

/// The carry chain: `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CarryOp {
    Add,
    Sub,
    MadLo,
    MadHi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PredOp {
    And,
    Or,
    Xor,
    Not,
    Mov,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
    Abs,
    Neg,
    Min,
    Max,
    CopySign,
}

/// Rounding: to nearest even, to zero, down, up, to nearest with ties away from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
    Away,
}

/// What a floating-point instruction is beside its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FloatMode {
    pub(crate) round: Round,
    pub(crate) ftz: bool,
    pub(crate) sat: bool,
    pub(crate) relu: bool,
    /// `min.NaN`, `max.NaN`: a NaN operand wins.
    pub(crate) nan: bool,
    /// `.xorsign.abs` of min and max.
    pub(crate) xorsign: bool,
    /// `.approx` or `.full`: within the documented error, not exact.
    pub(crate) approx: bool,
}

impl Default for FloatMode {
    fn default() -> Self {
        Self {
            round: Round::Nearest,
            ftz: false,
            sat: false,
            relu: false,
            nan: false,
            xorsign: false,
            approx: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestP {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoolOp {
    And,
    Or,
    Xor,
}

/// How `cvt` rounds to an integral value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CvtMode {
    pub(crate) round: Round,
    /// `.rni`, `.rzi`, `.rmi`, `.rpi`: to an integral value.
    pub(crate) integral: bool,
    pub(crate) ftz: bool,
    pub(crate) sat: bool,
    pub(crate) satfinite: bool,
    pub(crate) relu: bool,
}

/// What makes an access one that others may run into: an atomic, or a load or store that is `.relaxed` or stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sync {
    /// Its scope is more than the block.
    pub(crate) wide: bool,
    /// It orders what comes after it, and what came before it, as fences around it would.
    pub(crate) acquire: bool,
    pub(crate) release: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReduxOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    RedPopc,
    RedAnd,
    RedOr,
}

/// Element type of an `mma` operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MmaTy {
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
    S8,
    U8,
    S32,
}

#[derive(Debug, Clone)]
pub(crate) struct Mma {
    pub(crate) n: u8,
    pub(crate) k: u8,
    pub(crate) m: u8,
    pub(crate) a_ty: MmaTy,
    pub(crate) b_ty: MmaTy,
    pub(crate) cd_ty: MmaTy,
    pub(crate) satfinite: bool,
    pub(crate) d: Vec<Reg>,
    pub(crate) a: Vec<Src>,
    pub(crate) b: Vec<Src>,
    pub(crate) c: Vec<Src>,
}

#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) space: Space,
    pub(crate) ty: Ty,
    pub(crate) addr: Addr,
    /// None for a plain one.
    pub(crate) sync: Option<Sync>,
}

#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// A known function, or an operand that holds a function's address.
    pub(crate) target: CallTarget,
    /// Offset and size in the caller's frame for every return value, then for every argument.
    pub(crate) rets: Vec<(u32, u32)>,
    pub(crate) args: Vec<(u32, u32)>,
}

#[derive(Debug, Clone)]
pub(crate) enum CallTarget {
    Function(u32),
    Indirect(Src),
    /// `vprintf`: its text is dropped.
    Printf,
    /// `__assertfail`.
    AssertFail,
    /// Declared, and not defined: `malloc`, `free`.
    Missing(String),
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Int {
        op: IntOp,
        ty: Ty,
        d: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    Bfi {
        wide: bool,
        d: Reg,
        a: Src,
        b: Src,
        pos: Src,
        len: Src,
    },
    Carry {
        op: CarryOp,
        ty: Ty,
        carry_in: bool,
        carry_out: bool,
        d: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    Pred {
        op: PredOp,
        d: Reg,
        a: Src,
        b: Src,
    },
    Float {
        op: FloatOp,
        ty: Ty,
        mode: FloatMode,
        d: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    TestP {
        test: TestP,
        ty: Ty,
        d: Reg,
        a: Src,
    },
    Setp {
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        d: Reg,
        d2: Reg,
        a: Src,
        b: Src,
        combine: Option<(BoolOp, Src)>,
    },
    Set {
        cmp: Cmp,
        ty: Ty,
        to: Ty,
        ftz: bool,
        d: Reg,
        a: Src,
        b: Src,
        combine: Option<(BoolOp, Src)>,
    },
    Selp {
        bits: u32,
        d: Reg,
        a: Src,
        b: Src,
        p: Src,
    },
    Slct {
        bits: u32,
        cond: Ty,
        ftz: bool,
        d: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    Cvt {
        to: Ty,
        from: Ty,
        mode: CvtMode,
        d: Reg,
        a: Src,
    },
    /// `cvt.f16x2.f32 d, a, b` and its kin: a becomes the high half.
    CvtPair {
        to: Ty,
        mode: CvtMode,
        d: Reg,
        a: Src,
        b: Src,
    },
    Mov {
        bits: u32,
        d: Reg,
        a: Src,
    },
    /// Several registers into one, least significant first.
    Pack {
        part_bits: u32,
        d: Reg,
        parts: Vec<Src>,
    },
    Unpack {
        part_bits: u32,
        parts: Vec<Reg>,
        a: Src,
    },
    Ld {
        access: Access,
        dst: Vec<Reg>,
    },
    St {
        access: Access,
        src: Vec<Src>,
    },
    Atom {
        access: Access,
        op: AtomOp,
        d: Reg,
        b: Src,
        c: Src,
        sync: Sync,
    },
    IsSpace {
        space: Space,
        d: Reg,
        a: Src,
    },
    Cvta {
        space: Space,
        to_space: bool,
        d: Reg,
        a: Src,
    },
    CpAsync {
        bytes: u32,
        dst: Addr,
        src: Addr,
        src_size: Option<Src>,
        ignore: Option<Src>,
    },
    CpCommit,
    CpWait {
        keep: u32,
    },
    CpWaitAll,
    Ldmatrix {
        count: u8,
        trans: bool,
        d: Vec<Reg>,
        addr: Addr,
    },
    Stmatrix {
        count: u8,
        trans: bool,
        addr: Addr,
        a: Vec<Src>,
    },
    Movmatrix {
        d: Reg,
        a: Src,
    },
    Mma(Box<Mma>),
    Shfl {
        mode: ShflMode,
        d: Reg,
        p: Reg,
        a: Src,
        b: Src,
        c: Src,
        mask: Option<Src>,
    },
    Vote {
        mode: VoteMode,
        d: Reg,
        a: Src,
        mask: Option<Src>,
    },
    Match {
        all: bool,
        bits: u32,
        d: Reg,
        p: Reg,
        a: Src,
        mask: Src,
    },
    Redux {
        op: ReduxOp,
        signed: bool,
        d: Reg,
        a: Src,
        mask: Src,
    },
    Elect {
        d: Reg,
        p: Reg,
        mask: Src,
    },
    ActiveMask {
        d: Reg,
    },
    Bar {
        kind: BarKind,
        aligned: bool,
        id: Src,
        count: Option<Src>,
        d: Reg,
        p: Src,
    },
    BarWarp {
        mask: Src,
    },
    /// A memory fence; `gpu` is false for `.cta`.
    Fence {
        gpu: bool,
    },
    Nop,
    Bra {
        target: u32,
    },
    Brx {
        index: Src,
        targets: Vec<u32>,
    },
    Call(Box<Call>),
    Ret,
    Exit,
    Trap,
    /// Falls into the next basic block: no instruction of the PTX, and not counted.
    Goto {
        target: u32,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Option<Guard>,
    pub(crate) class: Class,
    /// Line of the PTX text.
    pub(crate) line: u32,
    /// Index into the module's files and the line there; file 0 is none.
    pub(crate) loc: (u32, u32),
}

/// A kernel parameter, or a parameter or return value of a function.
#[derive(Debug, Clone)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) offset: u32,
    pub(crate) size: u32,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) is_entry: bool,
    pub(crate) line: u32,
    pub(crate) code: Vec<Inst>,
    /// For the first instruction of a block, its place in the order that brings lanes together again.
    pub(crate) order: Vec<u32>,
    pub(crate) regs32: u32,
    pub(crate) regs64: u32,
    pub(crate) preds: u32,
    pub(crate) params: Vec<Param>,
    /// In the frame, for a `.func`.
    pub(crate) rets: Vec<Param>,
    pub(crate) param_bytes: u32,
    /// Bytes of local variables, and of call parameters.
    pub(crate) frame_bytes: u32,
    /// Where its variables lie in the frame, and how large they are: what is between them belongs to nothing.
    pub(crate) frame_vars: Vec<(u32, u32)>,
    pub(crate) required_block: Option<[u32; 3]>,
    pub(crate) max_threads: Option<u32>,
    /// Blocks of a cluster that it requires: ones for no cluster.
    pub(crate) cluster: [u32; 3],
    /// Smallest access to shared and to global memory, in bytes: what the race checks must resolve.
    pub(crate) shared_cell: u32,
    pub(crate) global_cell: u32,
    /// Functions this one calls, and whether it may call any through a pointer.
    pub(crate) calls: Vec<u32>,
    pub(crate) calls_indirect: bool,
}

/// A module-scope variable.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) size: u32,
    pub(crate) init: Vec<u8>,
}
