//! The element types that operands are stored in. Arithmetic is f32 on every target; integers are what masks,
//! lengths and indices are made of.

use half::{bf16, f16};

/// How one element is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16: 11 bits of precision, largest value 65504.
    F16,
    /// bfloat16: 8 bits of precision, the range of f32.
    Bf16,
    /// Two's complement, 32 bits: lengths and indices.
    I32,
    /// Unsigned, 8 bits: masks, where 0 is false and anything else true.
    U8,
}

impl Dtype {
    /// Every dtype.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::I32, Self::U8];
    /// Those that ops compute with, in the order of tables.
    pub const FLOATS: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Whether it is one of [`Dtype::FLOATS`].
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }

    /// The name used on the command line, in reports and in the kernels' preludes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
            Self::U8 => "u8",
        }
    }

    /// The unit roundoff: half the gap between 1 and the next number. 0 of integers, which are exact.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => 1.0 / (1u64 << 24) as f64,
            Self::F16 => 1.0 / (1u64 << 11) as f64,
            Self::Bf16 => 1.0 / (1u64 << 8) as f64,
            Self::I32 | Self::U8 => 0.0,
        }
    }

    /// The smallest positive (subnormal) number: the absolute rounding error near zero is half of it.
    pub fn smallest(self) -> f64 {
        match self {
            Self::F32 => f64::from(f32::from_bits(1)),
            Self::F16 => f16::from_bits(1).to_f64(),
            Self::Bf16 => bf16::from_bits(1).to_f64(),
            Self::I32 | Self::U8 => 1.0,
        }
    }

    /// The largest finite number.
    pub fn largest(self) -> f64 {
        match self {
            Self::F32 => f64::from(f32::MAX),
            Self::F16 => f16::MAX.to_f64(),
            Self::Bf16 => bf16::MAX.to_f64(),
            Self::I32 => i32::MAX.into(),
            Self::U8 => u8::MAX.into(),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| format!("unknown dtype `{s}`: wanted f32, f16, bf16, i32 or u8"))
    }
}

/// A Rust type that is stored as one of the [`Dtype`]s.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// Its dtype.
    const DTYPE: Dtype;
    /// Rounds to nearest, ties to even; integers saturate, and have 0 for NaN.
    fn from_f32(x: f32) -> Self;
    /// Exact, of integers below 2^24.
    fn to_f32(self) -> f32;
}

/// One that ops compute with: of [`Dtype::FLOATS`].
pub trait Float: Element {}

impl Float for f32 {}
impl Float for f16 {}
impl Float for bf16 {}

impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x.round_ties_even() as Self
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }
}

impl Element for u8 {
    const DTYPE: Dtype = Dtype::U8;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x.round_ties_even() as Self
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.into()
    }
}

/// Calls a generic function with the element type of a dtype: `with_element!(dtype, run(args..))` calls
/// `run::<f32>(args..)`, `run::<u8>(args..)` and so on.
#[macro_export]
#[doc(hidden)]
macro_rules! with_element {
    ($dtype:expr, $run:ident($($arg:expr),* $(,)?)) => {
        match $dtype {
            $crate::Dtype::F32 => $run::<f32>($($arg),*),
            $crate::Dtype::F16 => $run::<half::f16>($($arg),*),
            $crate::Dtype::Bf16 => $run::<half::bf16>($($arg),*),
            $crate::Dtype::I32 => $run::<i32>($($arg),*),
            $crate::Dtype::U8 => $run::<u8>($($arg),*),
        }
    };
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
}
