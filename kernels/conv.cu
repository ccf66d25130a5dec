// Two-dimensional convolutions with a fused epilogue.
//
//   out[n, o, y, x] = act(sum_cij weight[o, c, i, j] * x[n, g C + c, y s + i d - pad, x s + j d - pad]
//                         + bias[o] + sample_bias[n, o]) + residual[n, o, y, x]
//
// x (n, groups C, h, w), weight (groups O, C, kh, kw), bias (groups O), sample_bias (n, groups O), residual
// and out (n, groups O, oh, ow), all with free strides; output channel o is in group g = o / O; x is 0
// outside the image.
//
// conv_mma and conv_tile are implicit matrix products, one for each group (Chetlur et al. 2014,
// arXiv:1410.0759): rows are the pixels of out (m: n, y, x), columns the output channels of the group, and
// the sum runs over k = (block of channels, i, j, c), c fastest. A block makes one BLOCK_M x BLOCK_N tile;
// along k the factors come through shared memory, BLOCK_K at a time, and the unfolded image exists nowhere else:
//
//                 weight +---------+  BLOCK_K
//        BLOCK_K         |         |
//        +----+          +---------+     A thread brings the same rows of the tiles at every step, so it
//     x  |    |          | out     |     works out once where the windows of its pixels start (Window), and
//        |    |          |         |     steps through the taps by addition (Tap).
//        +----+          +---------+  BLOCK_M
//                          BLOCK_N
//
// conv_mma (MMA 1; f16 and bf16, sm_80 on): tensor cores, WARPS_M x WARPS_N warps. A ring of STAGES pairs of
// tiles is filled by cp.async while the oldest pair is multiplied; taps on padding are filled with zeros
// by its size operand. Tiles are [m][k] and [n][k], made of 16-byte chunks of 8 channels; chunk c of row r is
// at c ^ (r / 2 % 4), so that the eight rows that ldmatrix reads at once fall on different banks. Where
// channels are not dense or not aligned, a chunk is gathered element by element instead, while the step before is
// multiplied.
//
//   shared: STAGES x { x_tile, weight_tile },  (BLOCK_M + BLOCK_N) * BLOCK_K * 2 bytes a stage
//
// conv_tile (MMA 0; f32, and every dtype on sm_75): 256 threads, each with THREAD_M x THREAD_N sums in groups
// of four, which lie BLOCK_M / (THREAD_M / 4) rows apart (columns alike), so that a warp's 16-byte reads of
// shared memory are dense. Tiles are [k][m] and [k][n], twice: the next pair is fetched to registers while
// this one is multiplied.
//
//   shared: 2 x { x_tile [BLOCK_K][BLOCK_M + 4], weight_tile [BLOCK_K][BLOCK_N + 4] } floats; the + 4 spreads
//           a column that is written at once over the banks and keeps rows 16-byte aligned
//
// conv_depthwise (TILED 0; one input channel a group): a thread an element of out; no shared memory.
//
// Consts: TILED 0|1, MMA 0|1. ACT (common/activation.cuh). X_ALONG_K 0|1: x is denser along channels than
// along columns, WEIGHT_ALONG_K 0|1: weight is denser along input than along output channels (speed only).
// PAIRS 0|1: out is dense along channels and every even channel starts at a two-element boundary.
//   MMA 1: BLOCK_M = WARPS_M * 16s, BLOCK_N = WARPS_N * 16s, both dividing the number of threads; BLOCK_K 32;
//          STAGES 2..; TAP_CHUNKS 0|1: chunks of 8 input channels lie in one tap; X_VECTOR, WEIGHT_VECTOR 0|1: they
//          are also dense and start at 16-byte boundaries
//   MMA 0: BLOCK_M / THREAD_M * BLOCK_N / THREAD_N = 256, THREAD_M and THREAD_N 4|8, BLOCK_K 8
//   TILED 0: THREADS 32..1024, CHANNELS_LAST 0|1: neighbours walk output channels, else columns (speed only)

#include "common/activation.cuh"
#include "common/mma.cuh"

// Biases, activation and residual of one element from its sum.
__device__ __forceinline__ float finish(const bias_t* bias, const sample_bias_t* sample_bias,
                                        const residual_t* residual, const Params& p, u32 n, u32 o, u32 y, u32 x,
                                        float v) {
#if HAS_BIAS
    v += to_f32(bias[o * p.bias_o]);
#endif
#if HAS_SAMPLE_BIAS
    v += to_f32(sample_bias[n * p.sample_bias_n + o * p.sample_bias_o]);
#endif
    v = activate<ACT>(v);
#if HAS_RESIDUAL
    v += to_f32(residual[n * p.residual_n + o * p.residual_c + y * p.residual_h + x * p.residual_w]);
#endif
    return v;
}

#if TILED

// Of the gathers in 16 bits, whose weights are far apart in memory. In 32 bits the registers would cost a block.
const u32 CHANNELS = MMA ? 32 : 0;

// Which tile this block makes: tiles of one row of tiles are neighbours, so that blocks which run together
// see the same pixels.
struct Tile { u32 group, m0, n0, pixels; };

__device__ __forceinline__ Tile this_tile(const Params& p) {
    const u32 pixels = p.batch * p.oh * p.ow;
    const u32 tiles_m = (pixels + BLOCK_M - 1) / BLOCK_M;
    const u32 tiles_n = (p.c_out + BLOCK_N - 1) / BLOCK_N;
    const u32 block = blockIdx.x + blockIdx.y * gridDim.x;
    return {block / (tiles_m * tiles_n), block / tiles_n % tiles_m * BLOCK_M, block % tiles_n * BLOCK_N, pixels};
}

// Where a pixel's window starts: its first tap's position in x, row and column. Rows and columns above or left of the
// image wrap round to very large numbers, and the position with them: it comes right again with a tap inside. Past the
// last pixel there is no row inside.
struct Window { u32 at, row, column; };

__device__ __forceinline__ Window window_of(const Params& p, const Tile& tile, u32 m) {
    const u32 y = m / p.ow % p.oh, x = m % p.ow;
    const u32 row = y * p.stride_h - p.pad_h, column = x * p.stride_w - p.pad_w;
    return {m / p.ow / p.oh * p.x_n + tile.group * p.c_in * p.x_c + row * p.x_h + column * p.x_w,
            m < tile.pixels ? row : 0x80000000u, column};
}

// A step of the sum: channel, window row, window column. With CHANNELS, the sum takes as many channels through all taps
// before the next, so that what the taps share is still in the cache; without, all of them. Past the last i == kh.
struct Tap {
    u32 c, end, i, j;

    __device__ __forceinline__ void advance(const Params& p, u32 by) {
        c += by;
        while (c >= end && i < p.kh) {
            const u32 first = CHANNELS ? (end - 1) / CHANNELS * CHANNELS : 0;
            if (++j == p.kw) {
                j = 0;
                ++i;
            }
            if (i < p.kh) {
                c -= end - first;
            } else if (CHANNELS && end < p.c_in) {
                i = 0;
                end = min(end + CHANNELS, p.c_in);
            }
        }
    }
};

__device__ __forceinline__ Tap tap_at(const Params& p, u32 k) {
    Tap tap = {0, CHANNELS ? min(CHANNELS, p.c_in) : p.c_in, 0, 0};
    tap.advance(p, k);
    return tap;
}

// Whether the tap is inside the image, and its position in x.
__device__ __forceinline__ bool inside(const Params& p, const Window& window, const Tap& tap, u32& at) {
    const u32 down = tap.i * p.dilation_h, right = tap.j * p.dilation_w;
    at = window.at + (tap.c * p.x_c + down * p.x_h + right * p.x_w);
    return tap.i < p.kh && window.row + down < p.h && window.column + right < p.w;
}

// The same for output channel n of the group, in weight.
__device__ __forceinline__ bool inside(const Params& p, const Tile& tile, u32 n, const Tap& tap, u32& at) {
    at = (tile.group * p.c_out + n) * p.weight_o + tap.c * p.weight_c + tap.i * p.weight_h + tap.j * p.weight_w;
    return tap.i < p.kh && n < p.c_out;
}

__device__ __forceinline__ void store_pair(float* to, float v0, float v1) {
    *reinterpret_cast<float2*>(to) = make_float2(v0, v1);
}
template <typename T> __device__ __forceinline__ void store_pair(T* to, float v0, float v1) {
    *reinterpret_cast<u32*>(to) = pack2<T>(v0, v1);
}

// Epilogue and store of channels n and n + 1 of the group at pixel m; n is even.
__device__ __forceinline__ void finish_pair(const bias_t* bias, const sample_bias_t* sample_bias,
                                            const residual_t* residual, out_t* out, const Params& p,
                                            const Tile& tile, u32 m, u32 n, float v0, float v1) {
    if (m >= tile.pixels || n >= p.c_out) return;
    const u32 sample = m / p.ow / p.oh, y = m / p.ow % p.oh, x = m % p.ow, o = tile.group * p.c_out + n;
    out_t* to = out + sample * p.out_n + o * p.out_c + y * p.out_h + x * p.out_w;
    v0 = finish(bias, sample_bias, residual, p, sample, o, y, x, v0);
    if (n + 1 == p.c_out) {
        to[0] = from_f32<out_t>(v0);
        return;
    }
    v1 = finish(bias, sample_bias, residual, p, sample, o + 1, y, x, v1);
#if PAIRS
    store_pair(to, v0, v1);
#else
    to[0] = from_f32<out_t>(v0);
    to[p.out_c] = from_f32<out_t>(v1);
#endif
}

extern __shared__ __align__(16) u8 shared[];

#if MMA

const u32 THREADS = 32 * WARPS_M * WARPS_N;
const u32 WARP_M = BLOCK_M / WARPS_M;
const u32 WARP_N = BLOCK_N / WARPS_N;
const u32 CHUNKS = BLOCK_K / 8;
const u32 STAGE = (BLOCK_M + BLOCK_N) * CHUNKS;

// Where chunk `chunk` of row `first + row` lies; `first` is a multiple of 8, so that it says nothing about the banks.
__device__ __forceinline__ u32 place(u32 first, u32 row, u32 chunk) {
    return (first + row) * CHUNKS + (chunk ^ (row / 2 % 4));
}

// How the threads share the chunks of a tile of ROWS rows: neighbours walk the chunks of a row (ALONG_K) or
// the rows; this thread's e-th chunk is `chunk(e)` of row `row(e)`.
template <u32 ROWS, bool ALONG_K> struct Share {
    static const u32 COUNT = ROWS * CHUNKS / THREADS;
    // Rows that a thread has: one where it walks down the chunks of a row.
    static const u32 OWN = ALONG_K ? COUNT : 1;

    static __device__ __forceinline__ u32 row(u32 e) {
        return ALONG_K ? (threadIdx.x + e * THREADS) / CHUNKS : (threadIdx.x + e * THREADS) % ROWS;
    }
    static __device__ __forceinline__ u32 chunk(u32 e) {
        return ALONG_K ? threadIdx.x % CHUNKS : (threadIdx.x + e * THREADS) / ROWS;
    }
};

// Eight steps of the sum, gathered one by one; those outside are 0.
template <typename T, typename At>
__device__ __forceinline__ vec16 gather(const T* from, const Params& p, const At& at, Tap tap, u32 stride) {
    vec16 v = {};
    u32 index;
#if TAP_CHUNKS
    // All eight are channels of one tap.
    if (at(tap, index)) {
#pragma unroll
        for (u32 c = 0; c < 8; ++c) v.w[c / 2] |= u32(from[index + c * stride].bits) << c % 2 * 16;
    }
#else
#pragma unroll
    for (u32 c = 0; c < 8; ++c) {
        if (at(tap, index)) v.w[c / 2] |= u32(from[index].bits) << c % 2 * 16;
        tap.advance(p, 1);
    }
#endif
    return v;
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_mma(OPERANDS, const Params p) {
    typedef Share<BLOCK_M, X_VECTOR || X_ALONG_K> XShare;
    typedef Share<BLOCK_N, WEIGHT_VECTOR || WEIGHT_ALONG_K> WeightShare;
    const Tile tile = this_tile(p);
    if (tile.group >= p.groups) return;
    vec16* ring = reinterpret_cast<vec16*>(shared);
    const u32 steps = (p.kh * p.kw * p.c_in + BLOCK_K - 1) / BLOCK_K;

    Window windows[XShare::OWN];
#pragma unroll
    for (u32 e = 0; e < XShare::OWN; ++e) windows[e] = window_of(p, tile, tile.m0 + XShare::row(e));
    Tap x_tap = tap_at(p, XShare::chunk(0) * 8), weight_tap = tap_at(p, WeightShare::chunk(0) * 8);

    // Fetches the tiles of the next step; steps come in order. What cannot be copied is gathered to registers, and put
    // into its tile when the products of the step have given it time to come.
    vec16 next_x[XShare::COUNT], next_weight[WeightShare::COUNT];
    const auto fetch = [&](u32 step) {
        vec16* x_tile = ring + step % STAGES * STAGE;
        vec16* weight_tile = x_tile + BLOCK_M * CHUNKS;
        Tap tap = x_tap;
#pragma unroll
        for (u32 e = 0; e < XShare::COUNT; ++e) {
            const Window& window = windows[e % XShare::OWN];
#if X_VECTOR
            u32 at;
            const bool is_inside = inside(p, window, tap, at);
            cp_async16(x_tile + place(0, XShare::row(e), XShare::chunk(e)), is_inside ? x + at : x, is_inside ? 16 : 0);
#else
            const auto of = [&](const Tap& tap, u32& at) { return inside(p, window, tap, at); };
            next_x[e] = gather(x, p, of, tap, p.x_c);
            if (e + 1 < XShare::COUNT) tap.advance(p, (XShare::chunk(e + 1) - XShare::chunk(e)) * 8);
#endif
        }
        tap = weight_tap;
#pragma unroll
        for (u32 e = 0; e < WeightShare::COUNT; ++e) {
            const u32 n = tile.n0 + WeightShare::row(e);
#if WEIGHT_VECTOR
            u32 at;
            const bool is_inside = inside(p, tile, n, tap, at);
            cp_async16(weight_tile + place(0, WeightShare::row(e), WeightShare::chunk(e)),
                       is_inside ? weight + at : weight, is_inside ? 16 : 0);
#else
            const auto of = [&](const Tap& tap, u32& at) { return inside(p, tile, n, tap, at); };
            next_weight[e] = gather(weight, p, of, tap, p.weight_c);
            if (e + 1 < WeightShare::COUNT) tap.advance(p, (WeightShare::chunk(e + 1) - WeightShare::chunk(e)) * 8);
#endif
        }
        x_tap.advance(p, BLOCK_K);
        weight_tap.advance(p, BLOCK_K);
    };
    const auto put = [&](u32 step) {
        vec16* x_tile = ring + step % STAGES * STAGE;
        vec16* weight_tile = x_tile + BLOCK_M * CHUNKS;
#pragma unroll
        for (u32 e = 0; e < XShare::COUNT && !X_VECTOR; ++e) {
            x_tile[place(0, XShare::row(e), XShare::chunk(e))] = next_x[e];
        }
#pragma unroll
        for (u32 e = 0; e < WeightShare::COUNT && !WEIGHT_VECTOR; ++e) {
            weight_tile[place(0, WeightShare::row(e), WeightShare::chunk(e))] = next_weight[e];
        }
    };

    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 warp_m = warp / WARPS_N * WARP_M, warp_n = warp % WARPS_N * WARP_N;
    float acc[WARP_M / 16][WARP_N / 8][4] = {};

    // A group is committed for every step, also for those past the last, so that the number of groups
    // under way is always the same.
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; ++s) {
        if (s < steps) {
            fetch(s);
            put(s);
        }
        cp_async_commit();
    }
    for (u32 step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        // Everyone's part of this step's tiles has landed, and everyone is done with the tiles of the
        // step before, which the next fetch overwrites.
        __syncthreads();
        if (step + STAGES - 1 < steps) fetch(step + STAGES - 1);
        cp_async_commit();

        const vec16* x_tile = ring + step % STAGES * STAGE;
        const vec16* weight_tile = x_tile + BLOCK_M * CHUNKS;
#pragma unroll
        for (u32 k = 0; k < BLOCK_K; k += 16) {
            u32 fa[WARP_M / 16][4], fb[WARP_N / 16][4];
#pragma unroll
            for (u32 r = 0; r < WARP_M / 16; ++r) {
                ldmatrix_x4(fa[r], x_tile + place(warp_m + r * 16, lane % 16, k / 8 + lane / 16));
            }
#pragma unroll
            for (u32 c = 0; c < WARP_N / 16; ++c) {
                ldmatrix_x4(fb[c], weight_tile + place(warp_n + c * 16, lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
            }
#pragma unroll
            for (u32 r = 0; r < WARP_M / 16; ++r) {
#pragma unroll
                for (u32 c = 0; c < WARP_N / 8; ++c) {
                    const u32 half[2] = {fb[c / 2][c % 2 * 2], fb[c / 2][c % 2 * 2 + 1]};
                    mma16816(acc[r][c], fa[r], half, x_t{});
                }
            }
        }
        if (step + STAGES - 1 < steps) put(step + STAGES - 1);
    }

#pragma unroll
    for (u32 r = 0; r < WARP_M / 16; ++r) {
        const u32 m = tile.m0 + warp_m + r * 16 + lane / 4;
#pragma unroll
        for (u32 c = 0; c < WARP_N / 8; ++c) {
            const u32 n = tile.n0 + warp_n + c * 8 + lane % 4 * 2;
            finish_pair(bias, sample_bias, residual, out, p, tile, m, n, acc[r][c][0], acc[r][c][1]);
            finish_pair(bias, sample_bias, residual, out, p, tile, m + 8, n, acc[r][c][2], acc[r][c][3]);
        }
    }
}

#else

const u32 X_PITCH = BLOCK_M + 4;
const u32 WEIGHT_PITCH = BLOCK_N + 4;
const u32 STAGE = BLOCK_K * (X_PITCH + WEIGHT_PITCH);

// How the threads share the elements of a tile of COLUMNS columns: neighbours walk k (ALONG_K) or the
// columns; this thread's e-th element is in row `k(e)` and column `column(e)`.
template <u32 COLUMNS, bool ALONG_K> struct Share {
    static const u32 COUNT = COLUMNS * BLOCK_K / 256;
    static const u32 OWN = ALONG_K ? COUNT : 1;

    static __device__ __forceinline__ u32 column(u32 e) {
        return ALONG_K ? (threadIdx.x + e * 256) / BLOCK_K : threadIdx.x % COLUMNS;
    }
    static __device__ __forceinline__ u32 k(u32 e) {
        return ALONG_K ? threadIdx.x % BLOCK_K : (threadIdx.x + e * 256) / COLUMNS;
    }
};

extern "C" __global__ void __launch_bounds__(256, 2) conv_tile(OPERANDS, const Params p) {
    typedef Share<BLOCK_M, X_ALONG_K> XShare;
    typedef Share<BLOCK_N, WEIGHT_ALONG_K> WeightShare;
    const Tile tile = this_tile(p);
    if (tile.group >= p.groups) return;
    float* stages = reinterpret_cast<float*>(shared);
    const u32 steps = (p.kh * p.kw * p.c_in + BLOCK_K - 1) / BLOCK_K;

    Window windows[XShare::OWN];
#pragma unroll
    for (u32 e = 0; e < XShare::OWN; ++e) windows[e] = window_of(p, tile, tile.m0 + XShare::column(e));
    Tap x_tap = tap_at(p, XShare::k(0)), weight_tap = tap_at(p, WeightShare::k(0));

    // Fetches this thread's part of the next step's tiles; steps come in order.
    float next_x[XShare::COUNT], next_weight[WeightShare::COUNT];
    const auto fetch = [&]() {
        Tap tap = x_tap;
        u32 at;
#pragma unroll
        for (u32 e = 0; e < XShare::COUNT; ++e) {
            next_x[e] = inside(p, windows[e % XShare::OWN], tap, at) ? to_f32(x[at]) : 0.0f;
            if (e + 1 < XShare::COUNT) tap.advance(p, XShare::k(e + 1) - XShare::k(e));
        }
        tap = weight_tap;
#pragma unroll
        for (u32 e = 0; e < WeightShare::COUNT; ++e) {
            next_weight[e] = inside(p, tile, tile.n0 + WeightShare::column(e), tap, at) ? to_f32(weight[at]) : 0.0f;
            if (e + 1 < WeightShare::COUNT) tap.advance(p, WeightShare::k(e + 1) - WeightShare::k(e));
        }
        x_tap.advance(p, BLOCK_K);
        weight_tap.advance(p, BLOCK_K);
    };
    const auto put = [&](u32 step) {
        float* x_tile = stages + step % 2 * STAGE;
        float* weight_tile = x_tile + BLOCK_K * X_PITCH;
#pragma unroll
        for (u32 e = 0; e < XShare::COUNT; ++e) x_tile[XShare::k(e) * X_PITCH + XShare::column(e)] = next_x[e];
#pragma unroll
        for (u32 e = 0; e < WeightShare::COUNT; ++e) {
            weight_tile[WeightShare::k(e) * WEIGHT_PITCH + WeightShare::column(e)] = next_weight[e];
        }
    };

    const u32 GROUPS_M = THREAD_M / 4, GROUPS_N = THREAD_N / 4;
    const u32 ty = threadIdx.x / (BLOCK_N / THREAD_N), tx = threadIdx.x % (BLOCK_N / THREAD_N);
    float acc[THREAD_M][THREAD_N] = {};
    if (steps > 0) {
        fetch();
        put(0);
    }
    __syncthreads();  // the first pair of tiles is complete
    for (u32 step = 0; step < steps; ++step) {
        if (step + 1 < steps) fetch();
        const float* x_tile = stages + step % 2 * STAGE;
        const float* weight_tile = x_tile + BLOCK_K * X_PITCH;
#pragma unroll
        for (u32 k = 0; k < BLOCK_K; ++k) {
            float fa[THREAD_M], fb[THREAD_N];
#pragma unroll
            for (u32 g = 0; g < GROUPS_M; ++g) {
                const float* from = x_tile + k * X_PITCH + g * (BLOCK_M / GROUPS_M) + ty * 4;
                const float4 v = *reinterpret_cast<const float4*>(from);
                fa[g * 4] = v.x, fa[g * 4 + 1] = v.y, fa[g * 4 + 2] = v.z, fa[g * 4 + 3] = v.w;
            }
#pragma unroll
            for (u32 g = 0; g < GROUPS_N; ++g) {
                const float* from = weight_tile + k * WEIGHT_PITCH + g * (BLOCK_N / GROUPS_N) + tx * 4;
                const float4 v = *reinterpret_cast<const float4*>(from);
                fb[g * 4] = v.x, fb[g * 4 + 1] = v.y, fb[g * 4 + 2] = v.z, fb[g * 4 + 3] = v.w;
            }
#pragma unroll
            for (u32 r = 0; r < THREAD_M; ++r) {
#pragma unroll
                for (u32 c = 0; c < THREAD_N; ++c) acc[r][c] += fa[r] * fb[c];
            }
        }
        if (step + 1 < steps) put(step + 1);
        // The next pair is complete, and everyone is done with this one, which the step after next
        // overwrites.
        __syncthreads();
    }

#pragma unroll
    for (u32 r = 0; r < THREAD_M; ++r) {
        const u32 m = tile.m0 + r / 4 * (BLOCK_M / GROUPS_M) + ty * 4 + r % 4;
#pragma unroll
        for (u32 c = 0; c < THREAD_N; c += 2) {
            const u32 n = tile.n0 + c / 4 * (BLOCK_N / GROUPS_N) + tx * 4 + c % 4;
            finish_pair(bias, sample_bias, residual, out, p, tile, m, n, acc[r][c], acc[r][c + 1]);
        }
    }
}

#endif

#else

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_depthwise(OPERANDS, const Params p) {
    const u32 channels = p.groups * p.c_out;
    const u32 e = (blockIdx.x + blockIdx.y * gridDim.x) * THREADS + threadIdx.x;
    if (e >= p.batch * channels * p.oh * p.ow) return;
#if CHANNELS_LAST
    const u32 o = e % channels;
    const u32 ox = e / channels % p.ow;
    const u32 oy = e / channels / p.ow % p.oh;
    const u32 n = e / channels / p.ow / p.oh;
#else
    const u32 ox = e % p.ow;
    const u32 oy = e / p.ow % p.oh;
    const u32 o = e / p.ow / p.oh % channels;
    const u32 n = e / p.ow / p.oh / channels;
#endif
    // Rows and columns above or left of the image wrap round to very large numbers.
    const u32 first_row = oy * p.stride_h - p.pad_h, first_column = ox * p.stride_w - p.pad_w;
    x += n * p.x_n + o / p.c_out * p.x_c;
    weight += o * p.weight_o;
    float sum = 0.0f;
    for (u32 i = 0; i < p.kh; ++i) {
        const u32 row = first_row + i * p.dilation_h;
        if (row >= p.h) continue;
        for (u32 j = 0; j < p.kw; ++j) {
            const u32 column = first_column + j * p.dilation_w;
            if (column >= p.w) continue;
            sum += to_f32(x[row * p.x_h + column * p.x_w]) * to_f32(weight[i * p.weight_h + j * p.weight_w]);
        }
    }
    out[n * p.out_n + o * p.out_c + oy * p.out_h + ox * p.out_w] =
        from_f32<out_t>(finish(bias, sample_bias, residual, p, n, o, oy, ox, sum));
}

#endif
