// The ceilings of a device, measured: not an op.
//
//   FMA:   every thread runs 8 independent chains c <- c * a + b, `loops` times, and writes their sum
//   else:  out = x
//
// Consts: THREADS 32..1024 (speed only), FMA 0|1.

extern "C" __global__ void __launch_bounds__(THREADS) probe(OPERANDS, const Params p) {
    const u32 e = (blockIdx.x + blockIdx.y * gridDim.x) * THREADS + threadIdx.x;
    if (e >= p.total) return;
#if FMA
    float chain[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) chain[k] = 1.0f;
    for (u32 i = 0; i < p.loops; ++i) {
#pragma unroll
        for (int k = 0; k < 8; ++k) chain[k] = fmaf(chain[k], 0.9999f, 1e-4f);
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += chain[k];
    out[e] = sum;
#else
    out[e] = x[e];
#endif
}
