// Attention over parts of the keys, made whole:
//
//   m = max over s of lses[s]     w[s] = exp(lses[s] - m)     l = sum of w
//   out = sum over s of w[s] parts[s] / l                     lse = m + ln l
//
// and 0 and -infinity where every lses[s] is -infinity: such parts are not read (FlashAttention, Dao et al. 2022,
// arXiv:2205.14135, section 2.3).
//
//   parts (s, b, h, n, d)   lses (s, b, h, n)   out (b, h, n, d)   lse (b, h, n)   strides free
//
// One thread an element of out; no shared memory. The exponentials are computed by each thread of a row: there are few.
//
//   e = block * THREADS + thread   ->  (b, h, i, j), the last axis of the decoding being the dense one:
//                                      j, the element, or i, the query (ALONG_N)
//
// Consts: THREADS 32..1024 (speed only), ALONG_N 0|1.

#define NEGATIVE_INFINITY __int_as_float(0xff800000)

extern "C" __global__ void __launch_bounds__(THREADS) merge(OPERANDS, const Params p) {
    const u32 e = (blockIdx.x + blockIdx.y * gridDim.x) * THREADS + threadIdx.x;
    if (e >= p.total) return;
#if ALONG_N
    const u32 i = e % p.n, j = e / p.n % p.columns;
#else
    const u32 j = e % p.columns, i = e / p.columns % p.n;
#endif
    const u32 h = e / p.columns / p.n % p.heads, b = e / p.columns / p.n / p.heads;
    parts += b * p.parts_b + h * p.parts_h + i * p.parts_n + j * p.parts_d;
    lses += b * p.lses_b + h * p.lses_h + i * p.lses_n;
    float m = NEGATIVE_INFINITY;
    for (u32 s = 0; s < p.parts; ++s) m = fmaxf(m, lses[s * p.lses_s]);
    float l = 0.0f, sum = 0.0f;
    for (u32 s = 0; s < p.parts; ++s) {
        const float of_part = lses[s * p.lses_s];
        if (of_part == NEGATIVE_INFINITY) continue;
        const float w = expf(of_part - m);
        l += w;
        if (j < p.d) sum = fmaf(w, to_f32(parts[s * p.parts_s]), sum);
    }
    if (j < p.d) {
        out[b * p.out_b + h * p.out_h + i * p.out_n + j * p.out_d] = from_f32<out_t>(l == 0.0f ? 0.0f : sum / l);
    }
#if HAS_LSE
    if (j == 0) lse[b * p.lse_b + h * p.lse_h + i * p.lse_n] = l == 0.0f ? NEGATIVE_INFINITY : m + logf(l);
#endif
}
