//! advect: fused kernels for probability-flow models.
