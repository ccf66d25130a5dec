//! The activations that epilogues apply.

/// A function applied to each element after bias and before residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `z / (1 + e^-z)`, also called swish.
    Silu,
    /// `z * Phi(z)` with the error function, not the tanh approximation.
    Gelu,
}

impl Activation {
    /// Every activation, in the order of their tags.
    pub const ALL: [Self; 3] = [Self::None, Self::Silu, Self::Gelu];

    /// The value of the kernels' constant `ACT`.
    pub const fn tag(self) -> u32 {
        self as u32
    }

    /// The name used in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Silu => "silu",
            Self::Gelu => "gelu",
        }
    }
}
