// One explicit solver step: a linear combination per sample, with noise made on the way.
//
//   out[b, e] = sum over j of c[b, j] x_j[b, e]  +  c[b, 8] z(seed, stream + b, e)
//
// z is Philox4x32-10 through Box and Muller's transform, see common/philox.cuh. Buffers are [b, e] with
// e = (i, j, k), last axis fastest, and free strides; DENSE when e itself is the offset. Coefficients come
// by value or, with TABLE, from row b of a table [b, 9]; one of 0 leaves its buffer unread.
//
//   span s of all  ->  b = s / spans, e = s % spans * WIDTH       spans = ceil(len / WIDTH)
//   s = block * THREADS + thread
//
// One thread a span: a block of four noise words fills four elements, so WIDTH is a multiple of four.
// Consts: THREADS 32..1024 (speed only); WIDTH 4, or 8 where that is 16 bytes; WIDE 1 when every span is
// whole and 16-byte aligned, everywhere; DENSE, NOISE, TABLE 0|1; USE_X0..USE_X7 1 for the buffers that
// are read. No shared memory.

#include "common/span.cuh"
#include "common/philox.cuh"

// Where element e of a sample is in a buffer. The compiler divides once for all of them.
__device__ __forceinline__ u32 offset(u32 e, u32 s_i, u32 s_j, u32 s_k, const Params& p) {
    if (DENSE) return e;
    return e / p.size_k / p.size_j * s_i + e / p.size_k % p.size_j * s_j + e % p.size_k * s_k;
}

// Adds c times the span at e of a buffer; `x` is its sample.
template <typename T>
__device__ __forceinline__ void add(const T* x, float c, u32 e, u32 s_i, u32 s_j, u32 s_k, const Params& p,
                                    float (&sum)[WIDTH]) {
    if (c == 0.0f) return;
    float v[WIDTH];
#if WIDE
    load_span<WIDTH>(x + e, v);
#else
#pragma unroll
    for (int w = 0; w < WIDTH; ++w) v[w] = e + w < p.len ? to_f32(x[offset(e + w, s_i, s_j, s_k, p)]) : 0.0f;
#endif
#pragma unroll
    for (int w = 0; w < WIDTH; ++w) sum[w] = fmaf(c, v[w], sum[w]);
}

#if TABLE
#define COEFFICIENT(J) table[b * p.table_b + J * p.table_c]
#else
#define COEFFICIENT(J) p.c##J
#endif

extern "C" __global__ void __launch_bounds__(THREADS) step(OPERANDS, const Params p) {
    const u32 s = (blockIdx.x + blockIdx.y * gridDim.x) * THREADS + threadIdx.x;
    const u32 spans = (p.len + WIDTH - 1) / WIDTH;
    if (s >= p.samples * spans) return;
    const u32 b = s / spans, e = s % spans * WIDTH;

    float sum[WIDTH];
#pragma unroll
    for (int w = 0; w < WIDTH; ++w) sum[w] = 0.0f;
#if USE_X0
    add(x0 + b * p.x0_b, COEFFICIENT(0), e, p.x0_i, p.x0_j, p.x0_k, p, sum);
#endif
#if USE_X1
    add(x1 + b * p.x1_b, COEFFICIENT(1), e, p.x1_i, p.x1_j, p.x1_k, p, sum);
#endif
#if USE_X2
    add(x2 + b * p.x2_b, COEFFICIENT(2), e, p.x2_i, p.x2_j, p.x2_k, p, sum);
#endif
#if USE_X3
    add(x3 + b * p.x3_b, COEFFICIENT(3), e, p.x3_i, p.x3_j, p.x3_k, p, sum);
#endif
#if USE_X4
    add(x4 + b * p.x4_b, COEFFICIENT(4), e, p.x4_i, p.x4_j, p.x4_k, p, sum);
#endif
#if USE_X5
    add(x5 + b * p.x5_b, COEFFICIENT(5), e, p.x5_i, p.x5_j, p.x5_k, p, sum);
#endif
#if USE_X6
    add(x6 + b * p.x6_b, COEFFICIENT(6), e, p.x6_i, p.x6_j, p.x6_k, p, sum);
#endif
#if USE_X7
    add(x7 + b * p.x7_b, COEFFICIENT(7), e, p.x7_i, p.x7_j, p.x7_k, p, sum);
#endif
#if NOISE
    const float c = COEFFICIENT(8);
    const u64 stream = (u64(p.stream_hi) << 32 | p.stream_lo) + b;
#pragma unroll
    for (int w = 0; w < WIDTH; w += 4) {
        float z[4];
        philox_normals(p.seed_lo, p.seed_hi, stream, (e + w) / 4, z);
#pragma unroll
        for (int h = 0; h < 4; ++h) sum[w + h] = fmaf(c, z[h], sum[w + h]);
    }
#endif
    out += b * p.out_b;
#if WIDE
    store_span<WIDTH>(out + e, sum);
#else
#pragma unroll
    for (int w = 0; w < WIDTH; ++w) {
        if (e + w < p.len) out[offset(e + w, p.out_i, p.out_j, p.out_k, p)] = from_f32<out_t>(sum[w]);
    }
#endif
}
