// Group, layer and root-mean-square normalisation with FiLM and activation.
//
//   y   = (x - mean) / sqrt(variance + eps)                        CENTER 0: x / sqrt(mean of x^2 + eps)
//   out = act((y * weight + bias) * (1 + scale) + shift)
//
// Wu and He 2018 (arXiv:1803.08494); Ba, Kiros and Hinton 2016 (arXiv:1607.06450); Zhang and Sennrich
// 2019 (arXiv:1910.07467). Variance in two passes over the row, the second correcting the mean of the
// first (Chan, Golub and LeVeque 1983): exact to rounding however large the mean is.
//
// A row is what one mean is taken over: a (sample, group) or a token. Its elements lie along up to three
// axes, inner (densest), mid and outer, with free strides on both sides; see NormParams. Neighbours along
// the inner axis come in spans of WIDTH.
//
//   span v of a row  ->  i = v % (inner / WIDTH) * WIDTH,  m = v / (inner / WIDTH) % mid,  o = the rest
//   row  = block * (THREADS / LANES) + thread / LANES
//   lane = thread % LANES takes spans lane, lane + LANES, ..
//
// LANES is 32 (a warp a row, small rows) or THREADS (a block a row). With CACHE > 0 a thread holds its
// CACHE spans in registers and the row is read once; otherwise it is read three times, through L2.
//
// Consts: THREADS 32..1024 a power of two, LANES 32|THREADS, WIDTH 1 or 16 bytes' worth, FLAT 1 when
// there is an inner axis only, CHANNEL_INNER 1 when the inner axis is the channels, AFFINE_WIDE 1 when
// weight, bias, scale and shift come in aligned spans as well, CENTER 0|1, ACT, CACHE 0..32 / WIDTH.
// Shared memory: THREADS / 32 floats for the block's sums.

#include "common/reduce.cuh"
#include "common/activation.cuh"
#include "common/span.cuh"

struct Place { u32 x, out, channel; };

// Where span v of a row is, relative to the row.
__device__ __forceinline__ Place place(u32 v, const Params& p) {
#if FLAT
    const u32 i = v * WIDTH;
    return {i * p.x_i, i * p.out_i, i * p.ch_i};
#else
    const u32 spans = p.inner / WIDTH;
    const u32 i = v % spans * WIDTH, m = v / spans % p.mid, o = v / spans / p.mid;
    return {i * p.x_i + m * p.x_m + o * p.x_o, i * p.out_i + m * p.out_m + o * p.out_o,
            i * p.ch_i + m * p.ch_m + o * p.ch_o};
#endif
}

// The entries of a per-channel operand that belong to a span whose first channel is c.
template <typename T>
__device__ __forceinline__ void channels(const T* from, u32 c, u32 stride, float (&v)[WIDTH]) {
#if CHANNEL_INNER && AFFINE_WIDE
    load_span<WIDTH>(from + c, v);
#else
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) v[i] = to_f32(from[(c + (CHANNEL_INNER ? i : 0)) * stride]);
#endif
}

// The sum over a row, given to each of its lanes.
__device__ __forceinline__ float row_sum(float x, float* scratch) {
    return LANES == 32 ? warp_sum(x) : block_sum<THREADS>(x, scratch);
}

// One block a multiprocessor is enough to ask for: more would be bought with spilled registers.
extern "C" __global__ void __launch_bounds__(THREADS, 1) normalize(OPERANDS, const Params p) {
    __shared__ float scratch[THREADS / 32];
    const u32 row = (blockIdx.x + blockIdx.y * gridDim.x) * (THREADS / LANES) + threadIdx.x / LANES;
    if (row >= p.rows) return;  // the whole warp, or the whole block: nobody waits for it
    const u32 n = row / p.per_sample, r = row % p.per_sample, lane = threadIdx.x % LANES;
    x += n * p.x_n + r * p.x_r;
    out += n * p.out_n + r * p.out_r;
    const u32 spans = p.len / WIDTH;

    // Calls use(v, values) for each span of this lane.
#if CACHE
    float held[CACHE][WIDTH];
#pragma unroll
    for (int c = 0; c < CACHE; ++c) {
        const u32 v = lane + c * LANES;
        if (v < spans) load_span<WIDTH>(x + place(v, p).x, held[c]);
    }
    auto each = [&](auto&& use) {
#pragma unroll
        for (int c = 0; c < CACHE; ++c) {
            const u32 v = lane + c * LANES;
            if (v < spans) use(v, held[c]);
        }
    };
#else
    auto each = [&](auto&& use) {
        for (u32 v = lane; v < spans; v += LANES) {
            float values[WIDTH];
            load_span<WIDTH>(x + place(v, p).x, values);
            use(v, values);
        }
    };
#endif

    const float count = float(p.len);
    float mean = 0.0f;
#if CENTER
    each([&](u32, float(&t)[WIDTH]) {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) mean += t[i];
    });
    mean = row_sum(mean, scratch) / count;
#endif
    float first = 0.0f, second = 0.0f;
    each([&](u32, float(&t)[WIDTH]) {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float d = t[i] - mean;
            first += d;
            second = fmaf(d, d, second);
        }
    });
    float variance = row_sum(second, scratch) / count;
#if CENTER
    const float correction = row_sum(first, scratch) / count;
    mean += correction;
    variance = fmaxf(variance - correction * correction, 0.0f);
#endif
    const float inverse = rsqrtf(variance + p.eps);

    each([&](u32 v, float(&t)[WIDTH]) {
        Place at = place(v, p);
        at.channel += r * p.ch_r;
        float factor[WIDTH], summand[WIDTH], y[WIDTH];
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) factor[i] = 1.0f, summand[i] = 0.0f;
#if HAS_WEIGHT
        channels(weight, at.channel, p.weight_c, factor);
#endif
#if HAS_BIAS
        channels(bias, at.channel, p.bias_c, summand);
#endif
#if HAS_SCALE
        float more[WIDTH];
        channels(scale + n * p.scale_n, at.channel, p.scale_c, more);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            factor[i] = fmaf(factor[i], more[i], factor[i]);
            summand[i] = fmaf(summand[i], more[i], summand[i]);
        }
#endif
#if HAS_SHIFT
        float added[WIDTH];
        channels(shift + n * p.shift_n, at.channel, p.shift_c, added);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) summand[i] += added[i];
#endif
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            y[i] = activate<ACT>(fmaf((t[i] - mean) * inverse, factor[i], summand[i]));
        }
        store_span<WIDTH>(out + at.out, y);
    });
}
