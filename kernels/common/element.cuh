// Element types and their conversions. No CUDA header is included, so that kernels compile where only
// NVRTC is installed; the conversions are the PTX instructions that those headers wrap.
// The tags F32, F16, BF16, I32, U8 of x_DTYPE are defined by the prelude.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Rounds to nearest even. from_f32<T>(x) picks T; bf16 goes through integers on sm_75, which lacks the
// conversion: a NaN must not round up to infinity.
template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    bf16 y;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const u32 u = __float_as_uint(x);
    y.bits = (u & 0x7fffffffu) > 0x7f800000u ? u16(u >> 16) | 64 : u16((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
    return y;
}

// Two floats to one register of two 16-bit elements, `lo` in the low half: one instruction where there is one.
template <typename T> __device__ __forceinline__ u32 pack2(float lo, float hi) {
    return u32(from_f32<T>(lo).bits) | u32(from_f32<T>(hi).bits) << 16;
}
#if __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ u32 pack2<f16>(float lo, float hi) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}
template <> __device__ __forceinline__ u32 pack2<bf16>(float lo, float hi) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}
#endif

// 16 bytes at once; the pointer must be 16-byte aligned.
struct alignas(16) vec16 { u32 w[4]; };
