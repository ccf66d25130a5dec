// Resampling by two along height and width.
//
//   up:    out[n, c, i, j] = x[n, c, i/2, j/2]
//   down:  out[n, c, i, j] = (x[.., 2i, 2j] + x[.., 2i, 2j+1] + x[.., 2i+1, 2j] + x[.., 2i+1, 2j+1]) / 4
//
// x and out are (batch, channel, row, column) with free strides. One thread an element of out; no
// shared memory.
//
//   e = block * THREADS + thread   ->  (n, c, i, j), the last axis of the decoding being the dense one:
//                                      j for NCHW, c for NHWC (CHANNELS_LAST)
//
// Consts: THREADS 32..1024 (speed only), DOWN 0|1, CHANNELS_LAST 0|1.

extern "C" __global__ void __launch_bounds__(THREADS) resample(OPERANDS, const Params p) {
    const u32 e = (blockIdx.x + blockIdx.y * gridDim.x) * THREADS + threadIdx.x;
    if (e >= p.total) return;
    u32 n, c, i, j;
#if CHANNELS_LAST
    c = e % p.c;
    j = e / p.c % p.w;
    i = e / p.c / p.w % p.h;
    n = e / p.c / p.w / p.h;
#else
    j = e % p.w;
    i = e / p.w % p.h;
    c = e / p.w / p.h % p.c;
    n = e / p.w / p.h / p.c;
#endif
    const u32 to = n * p.out_n + c * p.out_c + i * p.out_h + j * p.out_w;
#if DOWN
    const u32 from = n * p.x_n + c * p.x_c + 2 * i * p.x_h + 2 * j * p.x_w;
    const float top = to_f32(x[from]) + to_f32(x[from + p.x_w]);
    const float bottom = to_f32(x[from + p.x_h]) + to_f32(x[from + p.x_h + p.x_w]);
    out[to] = from_f32<out_t>(0.25f * (top + bottom));
#else
    out[to] = x[n * p.x_n + c * p.x_c + i / 2 * p.x_h + j / 2 * p.x_w];
#endif
}
