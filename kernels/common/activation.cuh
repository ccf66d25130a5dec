// Activations applied in epilogues; ACT is one of these tags.
#define ACT_NONE 0
#define ACT_SILU 1
#define ACT_GELU 2

// z / (1 + e^-z). For z below about -88 the exponential overflows to infinity and the quotient is -0.
__device__ __forceinline__ float silu(float z) { return z / (1.0f + __expf(-z)); }

// z * Phi(z), the exact form with the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415).
__device__ __forceinline__ float gelu(float z) { return 0.5f * z * (1.0f + erff(z * 0.70710678f)); }

template <int KIND> __device__ __forceinline__ float activate(float z) {
    if (KIND == ACT_SILU) return silu(z);
    if (KIND == ACT_GELU) return gelu(z);
    return z;
}
