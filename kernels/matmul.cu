// Matrix products with a fused epilogue.
//
//   out[b, i, j] = act(sum_k a[b, i, k] * b[b, k, j] + bias[j]) + residual[b, i, j]
//
// a (batch, m, k), b (batch, k, n), bias (n), residual and out (batch, m, n), all with free strides: a
// transposed operand has its strides swapped, a shared one a batch stride of 0. A block makes one
// BLOCK_M x BLOCK_N tile of out; along k the factors come through shared memory, BLOCK_K at a time:
//
//                 b   +---------+  BLOCK_K
//        BLOCK_K      |         |
//        +----+       +---------+       Rows of a tile lie along the axis on which the operand is dense:
//     a  |    |       | out     |       a_tile is [m][k] if A_ROWS_K, else [k][m]; b_tile is [k][n] if
//        |    |       |         |       B_ROWS_N, else [n][k].
//        +----+       +---------+  BLOCK_M
//                       BLOCK_N
//
// matmul_mma (MMA 1; f16 and bf16, sm_80 on): tensor cores, WARPS_M x WARPS_N warps. A ring of STAGES
// pairs of tiles is filled by cp.async while the oldest pair is multiplied. A tile is made of 16-byte
// chunks, placed so that the eight rows that ldmatrix reads at once fall on different banks: chunk c of
// row r goes to c ^ (r / 2 % 4) where a row has four chunks (two rows a 128-byte line), else to
// c ^ (r % 8).
//
//   shared: STAGES x { a_tile, b_tile },  (BLOCK_M + BLOCK_N) * BLOCK_K * 2 bytes a stage
//
// matmul_tile (MMA 0; f32, and every dtype on sm_75): 256 threads as 16 x 16, each with THREAD_M x
// THREAD_N sums in groups of four, which lie BLOCK_M / (THREAD_M / 4) rows apart (columns alike), so
// that a warp's 16-byte reads of shared memory are dense. The tiles are always [k][m] and [k][n] here,
// twice: the next pair is fetched to registers while this one is multiplied.
//
//   shared: 2 x { a_tile [BLOCK_K][BLOCK_M + 4], b_tile [BLOCK_K][BLOCK_N + 4] } floats; the + 4 spreads
//           a column that is written at once over the banks and keeps rows 16-byte aligned
//
// Consts: MMA 0|1. ACT (common/activation.cuh). A_ROWS_K, B_ROWS_N 0|1. A_VECTOR, B_VECTOR 0|1: rows of
// that operand are dense and all start at 16-byte boundaries. PAIRS 0|1: out and residual are dense
// along n and every even column starts at a two-element boundary.
//   MMA 1: BLOCK_M = WARPS_M * 16s, BLOCK_N = WARPS_N * 16s, both multiples of 64; BLOCK_K 32; STAGES 2..
//   MMA 0: BLOCK_M = 16 * THREAD_M, BLOCK_N = 16 * THREAD_N, THREAD_M and THREAD_N 4|8, and
//          BLOCK_M * BLOCK_K = BLOCK_N * BLOCK_K = 1024

#include "common/activation.cuh"
#include "common/mma.cuh"

// Which tile this block makes. Tiles are numbered in bands of BAND tile rows, down each column of the
// band first: blocks that run together share rows of a and columns of b in the L2 cache.
struct Tile { u32 batch, i0, j0; };

__device__ __forceinline__ Tile this_tile(const Params& p) {
    const u32 BAND = 8;
    const u32 tiles_m = (p.m + BLOCK_M - 1) / BLOCK_M;
    const u32 tiles_n = (p.n + BLOCK_N - 1) / BLOCK_N;
    const u32 block = blockIdx.x + blockIdx.y * gridDim.x;
    const u32 batch = block / (tiles_m * tiles_n);
    const u32 t = block % (tiles_m * tiles_n);
    const u32 first = t / (BAND * tiles_n) * BAND;
    const u32 height = min(BAND, tiles_m - first);
    const u32 in_band = t % (BAND * tiles_n);
    return {batch, (first + in_band % height) * BLOCK_M, in_band / height * BLOCK_N};
}

// Two neighbouring elements, at once or one by one.
__device__ __forceinline__ void store_pair(float* to, float v0, float v1) {
    *reinterpret_cast<float2*>(to) = make_float2(v0, v1);
}
template <typename T> __device__ __forceinline__ void store_pair(T* to, float v0, float v1) {
    *reinterpret_cast<u32*>(to) = pack2<T>(v0, v1);
}
__device__ __forceinline__ float2 load_pair(const float* from) {
    return *reinterpret_cast<const float2*>(from);
}
template <typename T> __device__ __forceinline__ float2 load_pair(const T* from) {
    const u32 w = *reinterpret_cast<const u32*>(from);
    return make_float2(to_f32(T{u16(w)}), to_f32(T{u16(w >> 16)}));
}

// Bias, activation, residual and store of columns j and j + 1 of row i. The pointers are those of the
// sample; j is even.
__device__ __forceinline__ void finish(const bias_t* bias, const residual_t* residual, out_t* out,
                                       const Params& p, u32 i, u32 j, float v0, float v1) {
    if (i >= p.m || j >= p.n) return;
    const bool both = j + 1 < p.n;
#if HAS_BIAS
    v0 += to_f32(bias[j * p.bias_j]);
    if (both) v1 += to_f32(bias[(j + 1) * p.bias_j]);
#endif
    v0 = activate<ACT>(v0);
    v1 = activate<ACT>(v1);
    out_t* to = out + i * p.out_i + j * p.out_j;
#if HAS_RESIDUAL
    const residual_t* from = residual + i * p.residual_i + j * p.residual_j;
#endif
#if PAIRS
    if (both) {
#if HAS_RESIDUAL
        const float2 r = load_pair(from);
        v0 += r.x;
        v1 += r.y;
#endif
        store_pair(to, v0, v1);
        return;
    }
#endif
#if HAS_RESIDUAL
    v0 += to_f32(from[0]);
    if (both) v1 += to_f32(from[p.residual_j]);
#endif
    to[0] = from_f32<out_t>(v0);
    if (both) to[p.out_j] = from_f32<out_t>(v1);
}

extern __shared__ __align__(16) u8 shared[];

#if MMA

const u32 THREADS = 32 * WARPS_M * WARPS_N;
const u32 WARP_M = BLOCK_M / WARPS_M;
const u32 WARP_N = BLOCK_N / WARPS_N;

// Rows of 16-byte chunks of the two tiles.
const u32 A_ROWS = A_ROWS_K ? BLOCK_M : BLOCK_K;
const u32 A_CHUNKS = (A_ROWS_K ? BLOCK_K : BLOCK_M) / 8;
const u32 B_ROWS = B_ROWS_N ? BLOCK_K : BLOCK_N;
const u32 B_CHUNKS = (B_ROWS_N ? BLOCK_N : BLOCK_K) / 8;
const u32 STAGE = A_ROWS * A_CHUNKS + B_ROWS * B_CHUNKS;

// Where chunk `chunk` of row `first + row` lies; `first` is a multiple of 8, so that it says nothing about the banks.
template <u32 CHUNKS> __device__ __forceinline__ u32 place(u32 first, u32 row, u32 chunk) {
    return (first + row) * CHUNKS + (chunk ^ (CHUNKS == 4 ? row / 2 % 4 : row % 8));
}

// Fills a tile from `from`, its first element: rows past `rows` and elements past `columns` become 0. A thread has the
// chunk `chunk` of every STEP-th row.
template <u32 ROWS, u32 CHUNKS, bool VECTOR, typename T>
__device__ __forceinline__ void fill(vec16* tile, const T* from, u32 rows, u32 columns, u32 row_stride,
                                     u32 column_stride) {
    const u32 STEP = THREADS / CHUNKS, row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && STEP % 8 == 0 && ROWS % STEP == 0, "every thread has as many chunks");
    vec16* const to = tile + place<CHUNKS>(0, row, chunk);
    if (VECTOR && rows >= ROWS && columns >= CHUNKS * 8) {
        const T* const own = from + row * row_stride + chunk * 8;
#pragma unroll
        for (u32 r = 0; r < ROWS; r += STEP) cp_async16(to + r * CHUNKS, own + r * row_stride);
        return;
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r += STEP) {
        const u32 column = chunk * 8;
        const u32 left = row + r < rows && column < columns ? min(columns - column, 8u) : 0;
        if (VECTOR) {
            cp_async16(to + r * CHUNKS, left ? from + (row + r) * row_stride + column : from, left * 2);
        } else {
            vec16 v = {};
#pragma unroll
            for (u32 c = 0; c < 8; ++c) {
                if (c < left) {
                    v.w[c / 2] |= u32(from[(row + r) * row_stride + (column + c) * column_stride].bits) << c % 2 * 16;
                }
            }
            to[r * CHUNKS] = v;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) matmul_mma(OPERANDS, const Params p) {
    const Tile at = this_tile(p);
    if (at.batch >= p.batch) return;
    a += at.batch * p.a_b + at.i0 * p.a_i;
    b += at.batch * p.b_b + at.j0 * p.b_j;
    vec16* ring = reinterpret_cast<vec16*>(shared);
    const u32 steps = (p.k + BLOCK_K - 1) / BLOCK_K;

    const auto fetch = [&](u32 step) {
        const u32 k0 = step * BLOCK_K;
        vec16* a_tile = ring + step % STAGES * STAGE;
        vec16* b_tile = a_tile + A_ROWS * A_CHUNKS;
#if A_ROWS_K
        fill<A_ROWS, A_CHUNKS, A_VECTOR>(a_tile, a + k0 * p.a_k, p.m - at.i0, p.k - k0, p.a_i, p.a_k);
#else
        fill<A_ROWS, A_CHUNKS, A_VECTOR>(a_tile, a + k0 * p.a_k, p.k - k0, p.m - at.i0, p.a_k, p.a_i);
#endif
#if B_ROWS_N
        fill<B_ROWS, B_CHUNKS, B_VECTOR>(b_tile, b + k0 * p.b_k, p.k - k0, p.n - at.j0, p.b_k, p.b_j);
#else
        fill<B_ROWS, B_CHUNKS, B_VECTOR>(b_tile, b + k0 * p.b_k, p.n - at.j0, p.k - k0, p.b_j, p.b_k);
#endif
    };

    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 warp_i = warp / WARPS_N * WARP_M, warp_j = warp % WARPS_N * WARP_N;
    float acc[WARP_M / 16][WARP_N / 8][4] = {};

    // A group is committed for every step, also for those past the last, so that the number of groups
    // under way is always the same.
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; ++s) {
        if (s < steps) fetch(s);
        cp_async_commit();
    }
    for (u32 step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        // Everyone's part of this step's tiles has landed, and everyone is done with the tiles of the
        // step before, which the next fetch overwrites.
        __syncthreads();
        if (step + STAGES - 1 < steps) fetch(step + STAGES - 1);
        cp_async_commit();

        const vec16* a_tile = ring + step % STAGES * STAGE;
        const vec16* b_tile = a_tile + A_ROWS * A_CHUNKS;
#pragma unroll
        for (u32 k = 0; k < BLOCK_K; k += 16) {
            u32 fa[WARP_M / 16][4], fb[WARP_N / 16][4];
#pragma unroll
            for (u32 r = 0; r < WARP_M / 16; ++r) {
                const u32 i = warp_i + r * 16;
#if A_ROWS_K
                ldmatrix_x4(fa[r], a_tile + place<A_CHUNKS>(i, lane % 16, k / 8 + lane / 16));
#else
                ldmatrix_x4_trans(fa[r], a_tile + place<A_CHUNKS>(k, lane % 8 + lane / 16 * 8, i / 8 + lane / 8 % 2));
#endif
            }
#pragma unroll
            for (u32 c = 0; c < WARP_N / 16; ++c) {
                const u32 j = warp_j + c * 16;
#if B_ROWS_N
                ldmatrix_x4_trans(fb[c], b_tile + place<B_CHUNKS>(k, lane % 16, j / 8 + lane / 16));
#else
                ldmatrix_x4(fb[c], b_tile + place<B_CHUNKS>(j, lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
#endif
            }
#pragma unroll
            for (u32 r = 0; r < WARP_M / 16; ++r) {
#pragma unroll
                for (u32 c = 0; c < WARP_N / 8; ++c) {
                    const u32 half[2] = {fb[c / 2][c % 2 * 2], fb[c / 2][c % 2 * 2 + 1]};
                    mma16816(acc[r][c], fa[r], half, a_t{});
                }
            }
        }
    }

    residual += at.batch * p.residual_b;
    out += at.batch * p.out_b;
#pragma unroll
    for (u32 r = 0; r < WARP_M / 16; ++r) {
        const u32 i = at.i0 + warp_i + r * 16 + lane / 4;
#pragma unroll
        for (u32 c = 0; c < WARP_N / 8; ++c) {
            const u32 j = at.j0 + warp_j + c * 8 + lane % 4 * 2;
            finish(bias, residual, out, p, i, j, acc[r][c][0], acc[r][c][1]);
            finish(bias, residual, out, p, i + 8, j, acc[r][c][2], acc[r][c][3]);
        }
    }
}

#else

const u32 A_PITCH = BLOCK_M + 4;
const u32 B_PITCH = BLOCK_N + 4;
const u32 STAGE = BLOCK_K * (A_PITCH + B_PITCH);

__device__ __forceinline__ float4 load_four(const float* from) {
    return *reinterpret_cast<const float4*>(from);
}
template <typename T> __device__ __forceinline__ float4 load_four(const T* from) {
    const uint2 w = *reinterpret_cast<const uint2*>(from);
    return make_float4(to_f32(T{u16(w.x)}), to_f32(T{u16(w.x >> 16)}), to_f32(T{u16(w.y)}),
                       to_f32(T{u16(w.y >> 16)}));
}

// Four elements along a row of the operand, 0 past its edges.
template <bool VECTOR, typename T>
__device__ __forceinline__ float4 fetch_four(const T* from, u32 row, u32 column, u32 rows, u32 columns,
                                             u32 row_stride, u32 column_stride) {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (row >= rows) return v;
    from += row * row_stride;
    if (VECTOR && column + 4 <= columns) return load_four(from + column);
    if (column < columns) v.x = to_f32(from[column * column_stride]);
    if (column + 1 < columns) v.y = to_f32(from[(column + 1) * column_stride]);
    if (column + 2 < columns) v.z = to_f32(from[(column + 2) * column_stride]);
    if (column + 3 < columns) v.w = to_f32(from[(column + 3) * column_stride]);
    return v;
}

// Puts them in a tile, along its row or down its column.
template <bool ALONG, u32 PITCH> __device__ __forceinline__ void put_four(float* to, float4 v) {
    if (ALONG) {
        *reinterpret_cast<float4*>(to) = v;
        return;
    }
    to[0] = v.x;
    to[PITCH] = v.y;
    to[2 * PITCH] = v.z;
    to[3 * PITCH] = v.w;
}

extern "C" __global__ void __launch_bounds__(256) matmul_tile(OPERANDS, const Params p) {
    const Tile at = this_tile(p);
    if (at.batch >= p.batch) return;
    a += at.batch * p.a_b + at.i0 * p.a_i;
    b += at.batch * p.b_b + at.j0 * p.b_j;
    float* stages = reinterpret_cast<float*>(shared);
    const u32 steps = (p.k + BLOCK_K - 1) / BLOCK_K;

    // The four elements of each tile that this thread brings: (row, column) of the operand as it lies.
    const u32 A_FOURS = (A_ROWS_K ? BLOCK_K : BLOCK_M) / 4, B_FOURS = (B_ROWS_N ? BLOCK_N : BLOCK_K) / 4;
    const u32 a_row = threadIdx.x / A_FOURS, a_column = threadIdx.x % A_FOURS * 4;
    const u32 b_row = threadIdx.x / B_FOURS, b_column = threadIdx.x % B_FOURS * 4;
    float4 next_a, next_b;
    const auto fetch = [&](u32 step) {
        const u32 k0 = step * BLOCK_K;
#if A_ROWS_K
        next_a = fetch_four<A_VECTOR>(a + k0 * p.a_k, a_row, a_column, p.m - at.i0, p.k - k0, p.a_i, p.a_k);
#else
        next_a = fetch_four<A_VECTOR>(a + k0 * p.a_k, a_row, a_column, p.k - k0, p.m - at.i0, p.a_k, p.a_i);
#endif
#if B_ROWS_N
        next_b = fetch_four<B_VECTOR>(b + k0 * p.b_k, b_row, b_column, p.k - k0, p.n - at.j0, p.b_k, p.b_j);
#else
        next_b = fetch_four<B_VECTOR>(b + k0 * p.b_k, b_row, b_column, p.n - at.j0, p.k - k0, p.b_j, p.b_k);
#endif
    };
    const auto put = [&](u32 step) {
        float* a_tile = stages + step % 2 * STAGE;
        float* b_tile = a_tile + BLOCK_K * A_PITCH;
        const u32 a_to = A_ROWS_K ? a_column * A_PITCH + a_row : a_row * A_PITCH + a_column;
        const u32 b_to = B_ROWS_N ? b_row * B_PITCH + b_column : b_column * B_PITCH + b_row;
        put_four<!A_ROWS_K, A_PITCH>(a_tile + a_to, next_a);
        put_four<B_ROWS_N, B_PITCH>(b_tile + b_to, next_b);
    };

    const u32 GROUPS_M = THREAD_M / 4, GROUPS_N = THREAD_N / 4;
    const u32 ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float acc[THREAD_M][THREAD_N] = {};
    if (steps > 0) {
        fetch(0);
        put(0);
    }
    __syncthreads();  // the first pair of tiles is complete
    for (u32 step = 0; step < steps; ++step) {
        if (step + 1 < steps) fetch(step + 1);
        const float* a_tile = stages + step % 2 * STAGE;
        const float* b_tile = a_tile + BLOCK_K * A_PITCH;
#pragma unroll
        for (u32 k = 0; k < BLOCK_K; ++k) {
            float fa[THREAD_M], fb[THREAD_N];
#pragma unroll
            for (u32 g = 0; g < GROUPS_M; ++g) {
                const float4 v = load_four(a_tile + k * A_PITCH + g * (BLOCK_M / GROUPS_M) + ty * 4);
                fa[g * 4] = v.x, fa[g * 4 + 1] = v.y, fa[g * 4 + 2] = v.z, fa[g * 4 + 3] = v.w;
            }
#pragma unroll
            for (u32 g = 0; g < GROUPS_N; ++g) {
                const float4 v = load_four(b_tile + k * B_PITCH + g * (BLOCK_N / GROUPS_N) + tx * 4);
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

    residual += at.batch * p.residual_b;
    out += at.batch * p.out_b;
#pragma unroll
    for (u32 r = 0; r < THREAD_M; ++r) {
        const u32 i = at.i0 + r / 4 * (BLOCK_M / GROUPS_M) + ty * 4 + r % 4;
#pragma unroll
        for (u32 c = 0; c < THREAD_N; c += 2) {
            const u32 j = at.j0 + c / 4 * (BLOCK_N / GROUPS_N) + tx * 4 + c % 4;
            finish(bias, residual, out, p, i, j, acc[r][c], acc[r][c + 1]);
        }
    }
}

#endif
