// Attention: out = softmax(softmax_scale * Q K^T + bias) V, the softmax over the keys, for each batch entry and head.
//
// The online softmax of FlashAttention-2 (Dao 2023, arXiv:2307.08691): a block owns BLOCK_M queries of one
// head and walks over the keys, BLOCK_N at a time. Of each query it keeps the largest score so far (m),
// the sum of exponentials (l) and the weighted sum of V (o); when m rises, l and o shrink by
// alpha = 2^(m_old - m_new). Scores are in units of log2(e): p.scale_log2e is the scale times that.
//
//   q (b, h, nq, d)   k (b, h / group, nk, d)   v (b, h / group, nk, dv)   out (b, h, nq, dv)   bias, mask (b, h, nq, nk)
//   lse (b, h, nq)    q_lengths, k_lengths (b)   slopes (b, h)   sinks (h)     strides free
//   block -> (split, pair = b * heads + h, tile of queries)
//
// Packed sequences: cu_seqlens (b + 1) holds the token at which each starts, and the batch of q and out, or of k and v, is 1.
// Pages: token j of a sequence is token j % page of entry block_table[b][j / page] of k and v.
// SPLIT 1: a block takes one of p.splits parts of the keys, and out and lse have an axis of parts.
//
// BAND 1: query i sees the keys max(0, i + band_from) .. min(nk, i + band_until); tiles that no query of the block sees are
// skipped. SOFTCAP 1: scores s become cap * tanh(s / cap) first. CHANGED 1: there is a softcap, a bias, a mask or slopes.
//
//              keys -> BLOCK_N
//            +---------------+        for each tile of keys:
//    queries | S = Q K^T     |          S = Q K^T            m_new = max(m, row max of S)
//    BLOCK_M | P = 2^(S - m) |          alpha = 2^(m - m_new), P = 2^(S - m_new)
//            +---------------+          l = alpha l + row sum of P,  o = alpha o + P V
//                                     out = o / l, and 0 without keys;  lse = (m + log2 l) / log2(e)
//
// attention_mma (MMA = 1): 16-bit dtypes, sm_80 and later.
// attention_tile (MMA = 0): FP32 arithmetic, any dtype, any architecture; the twin of shaders/attention.wgsl.

#define NEGATIVE_INFINITY __int_as_float(0xff800000)
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
// A bias that is no more than this hides its key, a sink is none.
#define HIDING_BIAS (-1e38f)

// What a block works on: batch entry, head, first query, part of the keys; and the sequence: it has q_length queries and
// k_length keys. Rows of q and out for q_rows queries start at token q_start, keys at token k_start.
struct Head {
    u32 b, h, first_q, split;
    int q_length, k_length;
    u32 q_rows, q_start, k_start;
};

// The tokens of packed sequence b, of `total`: the first, and how many, which are `most` at most.
struct Tokens { int first, count; };

__device__ __forceinline__ Tokens tokens_of(u32 b, const int* starts, u32 stride, u32 total, u32 most) {
    const int first = min(max(starts[b * stride], 0), int(total));
    const int end = min(max(starts[(b + 1) * stride], first), int(total));
    return {first, min(end - first, int(most))};
}

__device__ __forceinline__ Head head_of(u32 pair, u32 first_q, const q_lengths_t* q_lengths, const k_lengths_t* k_lengths,
                                        const cu_seqlens_q_t* cu_seqlens_q, const cu_seqlens_k_t* cu_seqlens_k,
                                        const Params& p) {
    const u32 split = SPLIT ? pair / p.pairs : 0;
    pair -= split * p.pairs;
    Head head = {pair / p.heads, pair % p.heads, first_q, split, int(p.nq), int(p.nk), p.nq, 0, 0};
#if HAS_CU_SEQLENS_Q
    const Tokens queries = tokens_of(head.b, cu_seqlens_q, p.cu_seqlens_q_b, p.q_total, p.nq);
    head.q_start = queries.first;
    head.q_length = head.q_rows = queries.count;
#endif
#if HAS_CU_SEQLENS_K
    const Tokens keys = tokens_of(head.b, cu_seqlens_k, p.cu_seqlens_k_b, p.k_total, p.nk);
    head.k_start = keys.first;
    head.k_length = keys.count;
#endif
#if HAS_Q_LENGTHS
    head.q_length = min(max(q_lengths[head.b * p.q_lengths_b], 0), head.q_length);
#endif
#if HAS_K_LENGTHS
    head.k_length = min(max(k_lengths[head.b * p.k_lengths_b], 0), head.k_length);
#endif
    return head;
}

// The keys that query i sees: from <= key < until. The last query and the last key of a sequence are at one place.
struct Seen { int from, until; };

__device__ __forceinline__ Seen seen_by(u32 i, const Head& head, const Params& p) {
#if BAND
    const int at = int(i) + (head.k_length - int(p.nk)) - (head.q_length - int(p.nq));
    return {at + int(p.band_from), min(at + int(p.band_until), head.k_length)};
#else
    return {0, head.k_length};
#endif
}

// Whether the sequence has query i, which the operands have.
__device__ __forceinline__ bool inside(u32 i, const Head& head) {
    return !(HAS_Q_LENGTHS || HAS_CU_SEQLENS_Q) || int(i) < head.q_length;
}

// The keys that some query of a block of BLOCK_M sees.
__device__ __forceinline__ Seen seen_by_some(const Head& head, const Params& p) {
    if (!inside(head.first_q, head)) return {0, 0};
    Seen some = {0, head.k_length};
#if BAND
    const u32 last_q = min(head.first_q + BLOCK_M, u32(head.q_length)) - 1;
    some = {max(seen_by(head.first_q, head, p).from, 0), max(seen_by(last_q, head, p).until, 0)};
#endif
#if SPLIT
    // Parts are multiples of 64 keys, and so of tiles.
    const int keys = ((head.k_length + p.splits - 1) / p.splits + 63) / 64 * 64;
    some = {max(some.from, int(head.split) * keys), min(some.until, int(head.split + 1) * keys)};
#endif
    return some;
}

// How far from the first a token of k or of v lies, in elements: in a row, or in pages.
struct Row {
    u32 stride;
    __device__ __forceinline__ u32 operator()(u32 token) const { return token * stride; }
};
struct Pages {
    const block_table_t* table;
    u32 table_stride, page, pages, page_stride, stride;
    __device__ __forceinline__ u32 operator()(u32 token) const {
        const int entry = table[token / page * table_stride];
        return min(u32(max(entry, 0)), pages - 1) * page_stride + token % page * stride;
    }
};
#if HAS_BLOCK_TABLE
#define PLACES(of) \
    Pages { block_table + b * p.block_table_b, p.block_table_p, p.page, p.k_total, p.of##_b, p.of##_n }
#else
#define PLACES(of) \
    Row { p.of##_n }
#endif
// The batch entry that operands have, of which packed ones and pages have one.
#define Q_BATCH (HAS_CU_SEQLENS_Q ? 0 : b)
#define K_BATCH (HAS_CU_SEQLENS_K || HAS_BLOCK_TABLE ? 0 : b)

// What is subtracted from scores: the maximum m, or 0 while no key was seen, so that -infinity stays what it is.
__device__ __forceinline__ float shift_of(float m) { return m == NEGATIVE_INFINITY ? 0.0f : m; }

// cap * tanh(s / cap), with e = 2^(-cap_rate |s|): (1 - e) / (1 + e), and near 0, where that difference would cost digits,
// the series of tanh.
__device__ __forceinline__ float capped(float s, const Params& p) {
    const float x = fabsf(s) * p.cap_rate, t = x * (0.5f * LN_2), square = t * t;
    const float e = exp2f(-x), far = __fdividef(1.0f - e, 1.0f + e);
    float series = fmaf(square, 62.0f / 2835.0f, -17.0f / 315.0f);
    series = fmaf(square, series, 2.0f / 15.0f);
    series = fmaf(square, series, -1.0f / 3.0f);
    series = fmaf(square, series, 1.0f);
    return copysignf(p.cap * (t <= 0.25f ? t * series : far), s);
}

// The score s of query i and a key, both inside their axes, as bias, mask and slope change it. Those of the head: bias,
// mask, and the slope times log2(e).
__device__ __forceinline__ float changed(float s, u32 i, u32 key, const Head& head, const bias_t* bias, const mask_t* mask,
                                         float slope, const Params& p) {
#if SOFTCAP
    s = capped(s, p);
#endif
#if HAS_SLOPES
    s = fmaf(-slope, float(abs(int(i) + head.k_length - head.q_length - int(key))), s);
#endif
#if HAS_BIAS
    const float x = to_f32(bias[i * p.bias_q + key * p.bias_k]);
    s = x <= HIDING_BIAS ? NEGATIVE_INFINITY : fmaf(x, LOG2_E, s);
#endif
#if HAS_MASK
    if (mask[i * p.mask_q + key * p.mask_k] == 0) s = NEGATIVE_INFINITY;
#endif
    return s;
}

// The logarithm of the sum l of exponentials, of scores that were reduced by m.
__device__ __forceinline__ float lse_of(float m, float l) { return l == 0.0f ? NEGATIVE_INFINITY : (m + log2f(l)) * LN_2; }

#if MMA

// Tensor cores: 4 warps, each ROWS tiles of 16 queries; lane numbering as in common/mma.cuh, with g = lane / 4,
// t = lane % 4: of each tile a lane holds rows g and g + 8, and there columns 2t, 2t + 1 of each 8.
//
//   S: accumulators of N_TILES 8-key columns. Rounded to 16 bits in place they are the A operand of P V,
//      because accumulator and A fragments have the same rows and columns in a lane: P never leaves registers.
//   Q: A fragments: loaded once and kept in registers, or, of large heads (Q_SHARED), from shared memory each time.
//   K: B fragments of K^T, which is K row-major: ldmatrix. V: B fragments of V: ldmatrix.trans. Each serves
//      ROWS products: with ROWS = 2, shared memory is read half as often.
//
// Consts: HEAD_DIM, V_DIM 16..256, multiples of 16, elements past p.d and p.dv are zeros; ROWS 1 or 2; BLOCK_M = 64 ROWS;
//   BLOCK_N 16, 32, 48 or 64 (speed, registers and shared memory); Q_SHARED, BAND, SOFTCAP, CHANGED, SPLIT 0|1; THREADS 128;
//   KV_VEC, Q_VEC: rows are dense and of whole 16-byte chunks, copied by cp.async, otherwise element by element;
//   OUT_VEC: rows of out hold aligned pairs.
//
// Shared memory (dynamic), rows of PITCH = HEAD_DIM + 8 elements, of V of V_PITCH = V_DIM + 8, so that eight rows at the
// same column start in different groups of banks and ldmatrix meets no conflict:
//
//   [ K stage 0 | V stage 0 | K stage 1 | V stage 1 ]     each BLOCK_N rows
//   [ Q ]                                                 BLOCK_M rows: behind them if Q_SHARED, else in their place
//                                                         until its fragments are in registers

#include "common/mma.cuh"

#define PITCH (HEAD_DIM + 8)
#define V_PITCH (V_DIM + 8)
#define K_TILE (BLOCK_N * PITCH)
#define STAGE (K_TILE + BLOCK_N * V_PITCH)
#define Q_TILE (Q_SHARED ? 2 * STAGE : 0)
#define DEPTHS (HEAD_DIM / 16)
#define O_TILES (V_DIM / 8)
#define N_TILES (BLOCK_N / 8)
// 8-key columns multiplied together: all, where Q would be read again for each group.
#define GROUP (Q_SHARED || N_TILES % 4 != 0 ? N_TILES : 4)

// Of a score above it (in powers of two) half an ulp is no longer little in an exponent.
#define LARGE_SCORE 524288.0f

// 2^x within 2 ulp; 2^-infinity is 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Brings tokens first..first + COUNT of one head, of n in all, to rows of WIDTH elements and 8 of padding in shared
// memory. What lies outside becomes 0: a weight of 0 times whatever shared memory held could be NaN.
template <u32 COUNT, u32 WIDTH, bool VEC, class Place>
__device__ __forceinline__ void load_tile(q_t* tile, const q_t* from, u32 first, u32 n, u32 d, Place place, u32 s_d) {
    if (VEC) {
        const u32 chunks = WIDTH / 8, total = COUNT * chunks;
#pragma unroll 2
        for (u32 i = 0; i < (total + THREADS - 1) / THREADS; ++i) {
            const u32 c = threadIdx.x + i * THREADS, row = c / chunks, col = c % chunks * 8;
            if (total % THREADS != 0 && c >= total) break;
            const bool inside = first + row < n && col < d;
            cp_async16(tile + row * (WIDTH + 8) + col, from + (inside ? place(first + row) + col : 0), inside ? 16 : 0);
        }
    } else {
        // Neighbouring threads walk the denser axis.
        const bool along_d = s_d <= place.stride;
#pragma unroll 4
        for (u32 e = threadIdx.x; e < COUNT * WIDTH; e += THREADS) {
            const u32 row = along_d ? e / WIDTH : e % COUNT;
            const u32 col = along_d ? e % WIDTH : e / COUNT;
            q_t x = {0};
            if (first + row < n && col < d) x = from[place(first + row) + col * s_d];
            tile[row * (WIDTH + 8) + col] = x;
        }
    }
}

// Where the tiles of a step start. Half a stage times 0 or 2: of a stage times 0 or 1 the compiler makes something that takes
// a register more, which large heads do not have on sm_100.
__device__ __forceinline__ u32 stage_of(u32 step) { return step % 2 * 2 * (STAGE / 2); }

// The A fragments of this warp's queries at elements kk * 16 .. kk * 16 + 16. Matrices: rows 0-7 and 8-15, then the
// same rows 8 elements on.
__device__ __forceinline__ void load_q(u32 (&qf)[ROWS][4], const q_t* qt, u32 kk) {
    const u32 lane = threadIdx.x % 32, first = threadIdx.x / 32 * (16 * ROWS);
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        ldmatrix_x4(qf[r], qt + (first + r * 16 + lane % 16) * PITCH + kk * 16 + lane / 16 * 8);
    }
}

// True or false, as a type.
template <bool B> struct Constant { static const bool value = B; };

__device__ __forceinline__ void store_row(out_t* out, u32 row, u32 col, float x, float y, const Params& p) {
#if OUT_VEC
    if (col < p.dv) *reinterpret_cast<u32*>(out + row * p.out_n + col) = pack2<out_t>(x, y);
#else
    if (col < p.dv) out[row * p.out_n + col * p.out_d] = from_f32<out_t>(x);
    if (col + 1 < p.dv) out[row * p.out_n + (col + 1) * p.out_d] = from_f32<out_t>(y);
#endif
}

// Over the four lanes that share a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_mma(OPERANDS, const Params p) {
    extern __shared__ __align__(16) u8 shared[];
    q_t* const tiles = reinterpret_cast<q_t*>(shared);
    const u32 block = blockIdx.x + blockIdx.y * gridDim.x;
    const u32 q_tiles = (p.nq + BLOCK_M - 1) / BLOCK_M;
    const u32 pair = block / q_tiles;
    if (pair >= (SPLIT ? p.splits * p.pairs : p.pairs)) return;
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const Head head = head_of(pair, block % q_tiles * BLOCK_M, q_lengths, k_lengths, cu_seqlens_q, cu_seqlens_k, p);
    const u32 b = head.b, h = head.h, first_q = head.first_q;
    if (HAS_CU_SEQLENS_Q && first_q >= head.q_rows) return;
    q += Q_BATCH * p.q_b + h * p.q_h + head.q_start * p.q_n;
    k += K_BATCH * p.k_b + h / p.group * p.k_h + head.k_start * p.k_n;
    v += K_BATCH * p.v_b + h / p.group * p.v_h + head.k_start * p.v_n;
    out += Q_BATCH * p.out_b + h * p.out_h + head.q_start * p.out_n + head.split * p.out_s;

    // The scale of the products, and that of what is exponentiated.
    const float dot_scale = fabsf(p.scale_log2e), scale = CHANGED ? 1.0f : dot_scale;
    q_t* const qt = tiles + Q_TILE;
    load_tile<BLOCK_M, HEAD_DIM, Q_VEC>(qt, q, first_q, head.q_rows, p.d, Row{p.q_n}, p.q_d);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the tile of Q is complete for all warps
    // The maximum is taken over unscaled scores, which a negative scale would turn upside down: its sign goes to Q,
    // where flipping it is exact.
    if (p.scale_log2e < 0.0f) {
        for (u32 e = threadIdx.x; e < BLOCK_M * HEAD_DIM / 2; e += THREADS) {
            const u32 row = e / (HEAD_DIM / 2), col = e % (HEAD_DIM / 2) * 2;
            *reinterpret_cast<u32*>(qt + row * PITCH + col) ^= 0x80008000u;
        }
        __syncthreads();  // every sign is flipped before fragments are read
    }
#if !Q_SHARED
    u32 qf[DEPTHS][ROWS][4];
#pragma unroll
    for (u32 kk = 0; kk < DEPTHS; ++kk) load_q(qf[kk], qt, kk);
    __syncthreads();  // all have it in registers: its place is free
#endif

    const Seen some = seen_by_some(head, p);
    const u32 begin = u32(some.from) / BLOCK_N, steps = (u32(some.until) + BLOCK_N - 1) / BLOCK_N;
    const auto fetch = [&](u32 step) {
        q_t* const tile = tiles + stage_of(step);
        load_tile<BLOCK_N, HEAD_DIM, KV_VEC>(tile, k, step * BLOCK_N, head.k_length, p.d, PLACES(k), p.k_d);
        load_tile<BLOCK_N, V_DIM, KV_VEC>(tile + K_TILE, v, step * BLOCK_N, head.k_length, p.dv, PLACES(v), p.v_d);
        cp_async_commit();
    };
    if (begin < steps) fetch(begin);

#if HAS_BIAS
    bias += b * p.bias_b + h * p.bias_h;
#endif
#if HAS_MASK
    mask += b * p.mask_b + h * p.mask_h;
#endif
#if HAS_SLOPES
    const float slope = slopes[b * p.slopes_b + h * p.slopes_h] * LOG2_E;
#else
    const float slope = 0.0f;
#endif
#if HAS_SINKS
    // It counts in the first part.
    const bool sinks_here = head.split == 0;
    const float of_head = sinks_here ? sinks[h * p.sinks_h] : NEGATIVE_INFINITY;
    const float sink = of_head <= HIDING_BIAS ? NEGATIVE_INFINITY : of_head * LOG2_E;
#else
    const bool sinks_here = false;
    const float sink = NEGATIVE_INFINITY;
#endif
    float o[ROWS][O_TILES][4];
    // Of rows g and g + 8. The sums are this lane's own columns until the end: alpha is the same for all.
    float m[ROWS][2], l[ROWS][2];
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
#pragma unroll
        for (u32 j = 0; j < O_TILES; ++j) o[r][j][0] = o[r][j][1] = o[r][j][2] = o[r][j][3] = 0.0f;
        // A sink was seen before all keys: its exponential is 2^(sink - m) = 1.
        m[r][0] = m[r][1] = sink;
        l[r][0] = l[r][1] = sinks_here && t == 0 ? 1.0f : 0.0f;
    }

    // One tile of keys. Whether it may reach past the last key is known at compile time: tests of every score would
    // keep the compiler from overlapping the products with the softmax.
    const auto advance = [&](u32 step, auto ragged) {
        q_t* const kt = tiles + stage_of(step);
        q_t* const vt = kt + K_TILE;
        cp_async_wait<0>();
        // This step's tiles are complete for all warps, and all have left the stage that is filled next.
        __syncthreads();
        if (step + 1 < steps) fetch(step + 1);

        // Columns come in groups, so that those of the first are compared while the next are multiplied.
        float s[ROWS][N_TILES][4] = {};
#pragma unroll
        for (u32 j0 = 0; j0 < N_TILES; j0 += GROUP) {
#pragma unroll
            for (u32 kk = 0; kk < DEPTHS; ++kk) {
#if Q_SHARED
                u32 a[ROWS][4];
                load_q(a, qt, kk);
#else
                const u32(&a)[ROWS][4] = qf[kk];
#endif
#pragma unroll
                for (u32 j = j0; j < j0 + GROUP; j += 2) {
                    // Matrices: keys 0-7 and 8-15 of 16, elements 0-7 and 8-15 of each.
                    u32 x[4];
                    ldmatrix_x4(x, kt + (j * 8 + lane / 16 * 8 + lane % 8) * PITCH + kk * 16 + lane / 8 % 2 * 8);
                    const u32 lo[2] = {x[0], x[1]}, hi[2] = {x[2], x[3]};
#pragma unroll
                    for (u32 r = 0; r < ROWS; ++r) {
                        mma16816(s[r][j], a[r], lo, q_t());
                        mma16816(s[r][j + 1], a[r], hi, q_t());
                    }
                }
            }
        }
#if CHANGED
#pragma unroll
        for (u32 e = 0; e < ROWS * 2; ++e) {
            // Rows and keys outside are not read: what becomes of them is of no account.
            const u32 row = min(first_q + (threadIdx.x / 32 * ROWS + e / 2) * 16 + g + e % 2 * 8, p.nq - 1);
#pragma unroll
            for (u32 j = 0; j < N_TILES * 2; ++j) {
                const u32 key = min(step * BLOCK_N + j / 2 * 8 + 2 * t + j % 2, p.nk - 1);
                float& x = s[e / 2][j / 2][e % 2 * 2 + j % 2];
                x = changed(x * dot_scale, row, key, head, bias, mask, slope, p);
            }
        }
#endif
        if (ragged.value) {
#pragma unroll
            for (u32 e = 0; e < ROWS * 2; ++e) {
                const u32 row = first_q + (threadIdx.x / 32 * ROWS + e / 2) * 16 + g + e % 2 * 8;
                const Seen seen = seen_by(row, head, p);
#pragma unroll
                for (u32 j = 0; j < N_TILES * 2; ++j) {
                    const int key = step * BLOCK_N + j / 2 * 8 + 2 * t + j % 2;
                    if ((BAND && key < seen.from) || key >= seen.until) {
                        s[e / 2][j / 2][e % 2 * 2 + j % 2] = NEGATIVE_INFINITY;
                    }
                }
            }
        }

#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                float top = NEGATIVE_INFINITY;
#pragma unroll
                for (u32 j = 0; j < N_TILES; ++j) top = fmaxf(top, fmaxf(s[r][j][2 * half], s[r][j][2 * half + 1]));
                const float m_new = fmaxf(m[r][half], quad_max(top) * scale);
                const float alpha = exp2_approx(m[r][half] - shift_of(m_new));
                m[r][half] = m_new;
                l[r][half] *= alpha;
#pragma unroll
                for (u32 j = 0; j < O_TILES; ++j) {
                    o[r][j][2 * half] *= alpha;
                    o[r][j][2 * half + 1] *= alpha;
                }
            }
        }

        float shift[ROWS][2], by = scale;
#pragma unroll
        for (u32 e = 0; e < ROWS * 2; ++e) shift[e / 2][e % 2] = shift_of(m[e / 2][e % 2]);
#if !CHANGED
        // The maximum is a rounded product, from which the fused one below is up to half an ulp away: all weights of a row
        // are 2^that too large, or too small, and divided by a sum that is so too. Of large scores an ulp leaves the range
        // of weights. There the scores are rounded as the maximum is.
        bool large = false;
#pragma unroll
        for (u32 e = 0; e < ROWS * 2; ++e) large |= fabsf(shift[e / 2][e % 2]) > LARGE_SCORE;
        if (__any_sync(0xffffffffu, large)) {
#pragma unroll
            for (u32 e = 0; e < ROWS * 2; ++e) {
#pragma unroll
                for (u32 j = 0; j < N_TILES * 2; ++j) {
                    float& x = s[e / 2][j / 2][e % 2 * 2 + j % 2];
                    x = __fsub_rn(__fmul_rn(x, scale), shift[e / 2][e % 2]);
                }
                shift[e / 2][e % 2] = 0.0f;
            }
            by = 1.0f;
        }
#endif

        // 16 keys at a time are exponentiated and multiplied: the exponentials of the next overlap with the products.
#pragma unroll
        for (u32 kk = 0; kk < BLOCK_N / 16; ++kk) {
            u32 pf[ROWS][4];
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    const float* pair = s[r][2 * kk + i / 2] + i % 2 * 2;
                    const float x = exp2_approx(fmaf(pair[0], by, -shift[r][i % 2]));
                    const float y = exp2_approx(fmaf(pair[1], by, -shift[r][i % 2]));
                    l[r][i % 2] += x + y;
                    pf[r][i] = pack2<q_t>(x, y);
                }
            }
#pragma unroll
            for (u32 j = 0; j < O_TILES; j += 2) {
                // Matrices: keys 0-7 and 8-15 of 16, then the same keys 8 elements on; transposed on the way.
                u32 x[4];
                ldmatrix_x4_trans(x, vt + (kk * 16 + lane % 16) * V_PITCH + j * 8 + lane / 16 * 8);
                const u32 lo[2] = {x[0], x[1]}, hi[2] = {x[2], x[3]};
#pragma unroll
                for (u32 r = 0; r < ROWS; ++r) {
                    mma16816(o[r][j], pf[r], lo, q_t());
                    mma16816(o[r][j + 1], pf[r], hi, q_t());
                }
            }
        }
    };
#if BAND
    // The keys that all queries of the block see.
    const Seen top_row = seen_by(first_q, head, p);
    const Seen bottom_row = seen_by(min(first_q + BLOCK_M, u32(head.q_length)) - 1, head, p);
    for (u32 step = begin; step < steps; ++step) {
        const int first = step * BLOCK_N;
        if (first >= bottom_row.from && first + int(BLOCK_N) <= top_row.until) {
            advance(step, Constant<false>());
        } else {
            advance(step, Constant<true>());
        }
    }
#else
    const u32 whole = u32(some.until) / BLOCK_N;
    for (u32 step = begin; step < whole; ++step) advance(step, Constant<false>());
    if (begin < steps && whole < steps) advance(whole, Constant<true>());
#endif

#if HAS_LSE
    const u32 lse_base = Q_BATCH * p.lse_b + h * p.lse_h + head.q_start * p.lse_n + head.split * p.lse_s;
#endif
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 row = first_q + (threadIdx.x / 32 * ROWS + r) * 16 + g + 8 * half;
            const float all = quad_sum(l[r][half]), sum = inside(row, head) ? all : 0.0f;
            // Without a key that it sees, a query's result is 0, as is that of one past the end of its sequence, whatever
            // its place in memory holds.
            const float scale_out = 1.0f / sum;
            const auto result = [&](float x) { return sum == 0.0f ? 0.0f : x * scale_out; };
            if (row >= head.q_rows) continue;
#if HAS_LSE
            if (t == 0) lse[lse_base + row * p.lse_n] = lse_of(m[r][half], sum);
#endif
#pragma unroll
            for (u32 j = 0; j < O_TILES; ++j) {
                store_row(out, row, j * 8 + 2 * t, result(o[r][j][2 * half]), result(o[r][j][2 * half + 1]), p);
            }
        }
    }
}

#else

// FP32: 16 x 16 threads (ty, tx); a thread owns queries 4ty..4ty+3, in each tile keys KEYS tx..KEYS tx + KEYS-1
// (KEYS = BLOCK_N / 16), and of the result elements 2tx, 2tx + 1 of each COLS. Vectors of four hold one number for each of a
// thread's queries. The head is taken in slices: DEPTH elements of Q and K at a time, then COLS of V,
// so that shared memory does not grow with it.
//
// Consts: BLOCK_M 64; BLOCK_N 32 or 64; DEPTH 16; COLS 32; CHUNKS = ceil(dv / COLS); THREADS 256; BAND, SOFTCAP, CHANGED,
//   SPLIT 0|1.
//
// Shared memory (dynamic, floats):
//
//   scores  [BLOCK_N][17] float4   P transposed; a row holds 64 queries and 4 floats of padding
//   tile    qt [DEPTH][17] float4, kt [DEPTH][BLOCK_N]   a slice of Q and of K, transposed
//           vt [BLOCK_N][COLS]                           later: a slice of V, in the same place

#define KEYS (BLOCK_N / 16)
#define ROW 17

__device__ __forceinline__ float4 operator*(float4 a, float b) { return make_float4(a.x * b, a.y * b, a.z * b, a.w * b); }
__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ void add_product(float4& c, float4 a, float b) {
    c.x = fmaf(a.x, b, c.x);
    c.y = fmaf(a.y, b, c.y);
    c.z = fmaf(a.z, b, c.z);
    c.w = fmaf(a.w, b, c.w);
}
__device__ __forceinline__ float4 max4(float4 a, float4 b) {
    return make_float4(fmaxf(a.x, b.x), fmaxf(a.y, b.y), fmaxf(a.z, b.z), fmaxf(a.w, b.w));
}
__device__ __forceinline__ float4 exp2_of_difference(float4 a, float4 b) {
    return make_float4(exp2f(a.x - b.x), exp2f(a.y - b.y), exp2f(a.z - b.z), exp2f(a.w - b.w));
}
__device__ __forceinline__ float4 shuffle4(float4 a, int lane) {
    return make_float4(__shfl_xor_sync(0xffffffffu, a.x, lane), __shfl_xor_sync(0xffffffffu, a.y, lane),
                       __shfl_xor_sync(0xffffffffu, a.z, lane), __shfl_xor_sync(0xffffffffu, a.w, lane));
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_tile(OPERANDS, const Params p) {
    extern __shared__ __align__(16) u8 shared[];
    float4* const scores = reinterpret_cast<float4*>(shared);
    float4* const qt = scores + BLOCK_N * ROW;
    float* const kt = reinterpret_cast<float*>(qt + DEPTH * ROW);
    float* const vt = reinterpret_cast<float*>(qt);
    const u32 block = blockIdx.x + blockIdx.y * gridDim.x;
    const u32 q_tiles = (p.nq + BLOCK_M - 1) / BLOCK_M;
    const u32 pair = block / q_tiles;
    if (pair >= (SPLIT ? p.splits * p.pairs : p.pairs)) return;
    const u32 thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
    const Head head = head_of(pair, block % q_tiles * BLOCK_M, q_lengths, k_lengths, cu_seqlens_q, cu_seqlens_k, p);
    const u32 b = head.b, h = head.h, m_first = head.first_q;
    if (HAS_CU_SEQLENS_Q && m_first >= head.q_rows) return;
    q += Q_BATCH * p.q_b + h * p.q_h + head.q_start * p.q_n;
    k += K_BATCH * p.k_b + h / p.group * p.k_h + head.k_start * p.k_n;
    v += K_BATCH * p.v_b + h / p.group * p.v_h + head.k_start * p.v_n;
    out += Q_BATCH * p.out_b + h * p.out_h + head.q_start * p.out_n + head.split * p.out_s;
    const auto k_place = PLACES(k), v_place = PLACES(v);
    // Neighbouring threads walk the denser axis.
    const bool q_along_d = p.q_d <= p.q_n, k_along_d = p.k_d <= p.k_n, v_along_d = p.v_d <= p.v_n;

    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float lowest = NEGATIVE_INFINITY;
#if HAS_BIAS
    bias += b * p.bias_b + h * p.bias_h;
#endif
#if HAS_MASK
    mask += b * p.mask_b + h * p.mask_h;
#endif
#if HAS_SLOPES
    const float slope = slopes[b * p.slopes_b + h * p.slopes_h] * LOG2_E;
#else
    const float slope = 0.0f;
#endif
#if HAS_SINKS
    // It counts in the first part.
    const bool sinks_here = head.split == 0;
    const float of_head = sinks_here ? sinks[h * p.sinks_h] : NEGATIVE_INFINITY;
    const float sink = of_head <= HIDING_BIAS ? NEGATIVE_INFINITY : of_head * LOG2_E;
#else
    const bool sinks_here = false;
    const float sink = lowest;
#endif
    float4 o[CHUNKS][2];
#pragma unroll
    for (u32 c = 0; c < CHUNKS; ++c) o[c][0] = o[c][1] = zero;
    // A sink was seen before all keys: its exponential is 2^(sink - m) = 1.
    float4 m = make_float4(sink, sink, sink, sink), l = zero;
    if (sinks_here && tx == 0) l = make_float4(1.0f, 1.0f, 1.0f, 1.0f);

    const Seen some = seen_by_some(head, p);
    const u32 begin = u32(some.from) / BLOCK_N * BLOCK_N, end = u32(some.until);
    for (u32 first = begin; first < end; first += BLOCK_N) {
        float4 s[KEYS];
#pragma unroll
        for (u32 j = 0; j < KEYS; ++j) s[j] = zero;
        // Once at least: the barriers also keep the scores until all have read them.
        for (u32 from = 0; from < max(p.d, 1u); from += DEPTH) {
            __syncthreads();  // everyone is done with the slice before (of V, or of Q and K)
            for (u32 e = thread; e < DEPTH * BLOCK_M; e += THREADS) {
                const u32 row = q_along_d ? e / DEPTH : e % BLOCK_M, col = q_along_d ? e % DEPTH : e / BLOCK_M;
                const bool inside = m_first + row < head.q_rows && from + col < p.d;
                const float x = inside ? to_f32(q[(m_first + row) * p.q_n + (from + col) * p.q_d]) : 0.0f;
                reinterpret_cast<float*>(qt)[col * 4 * ROW + row] = x;
            }
            for (u32 e = thread; e < DEPTH * BLOCK_N; e += THREADS) {
                const u32 row = k_along_d ? e / DEPTH : e % BLOCK_N, col = k_along_d ? e % DEPTH : e / BLOCK_N;
                const bool inside = first + row < u32(head.k_length) && from + col < p.d;
                kt[col * BLOCK_N + row] = inside ? to_f32(k[k_place(first + row) + (from + col) * p.k_d]) : 0.0f;
            }
            __syncthreads();  // the slices are complete
#pragma unroll 4
            for (u32 e = 0; e < DEPTH; ++e) {
                const float4 a = qt[e * ROW + ty];
#pragma unroll
                for (u32 j = 0; j < KEYS; ++j) add_product(s[j], a, kt[e * BLOCK_N + tx * KEYS + j]);
            }
        }
        float4 top = m;
#pragma unroll
        for (u32 j = 0; j < KEYS; ++j) {
            s[j] = s[j] * p.scale_log2e;
            const int key = first + tx * KEYS + j;
#if CHANGED
            // Rows and keys outside are not read: what becomes of them is of no account.
            const auto of_row = [&](float x, u32 i) {
                return changed(x, min(m_first + 4 * ty + i, p.nq - 1), min(u32(key), p.nk - 1), head, bias, mask, slope, p);
            };
            s[j] = make_float4(of_row(s[j].x, 0), of_row(s[j].y, 1), of_row(s[j].z, 2), of_row(s[j].w, 3));
#endif
#if BAND
            const auto visible = [&](float x, u32 i) {
                const Seen seen = seen_by(m_first + 4 * ty + i, head, p);
                return key >= seen.from && key < seen.until ? x : lowest;
            };
            s[j] = make_float4(visible(s[j].x, 0), visible(s[j].y, 1), visible(s[j].z, 2), visible(s[j].w, 3));
#else
            if (key >= head.k_length) s[j] = make_float4(lowest, lowest, lowest, lowest);
#endif
            top = max4(top, s[j]);
        }
        // The 16 threads of a row are neighbours in a warp.
#pragma unroll
        for (int lane = 8; lane > 0; lane >>= 1) top = max4(top, shuffle4(top, lane));
        const float4 shift = make_float4(shift_of(top.x), shift_of(top.y), shift_of(top.z), shift_of(top.w));
        const float4 alpha = exp2_of_difference(m, shift);
        m = top;
        l = l * alpha;
#pragma unroll
        for (u32 j = 0; j < KEYS; ++j) {
            const float4 w = exp2_of_difference(s[j], shift);
            l = make_float4(l.x + w.x, l.y + w.y, l.z + w.z, l.w + w.w);
            // The tile before was read before the barriers above.
            scores[(tx * KEYS + j) * ROW + ty] = w;
        }
#pragma unroll
        for (u32 c = 0; c < CHUNKS; ++c) {
            __syncthreads();  // everyone is done with the slices of Q and K, or with the slice of V before
            for (u32 e = thread; e < BLOCK_N * COLS; e += THREADS) {
                const u32 row = v_along_d ? e / COLS : e % BLOCK_N, col = v_along_d ? e % COLS : e / BLOCK_N;
                const bool inside = first + row < u32(head.k_length) && c * COLS + col < p.dv;
                vt[row * COLS + col] = inside ? to_f32(v[v_place(first + row) + (c * COLS + col) * p.v_d]) : 0.0f;
            }
            __syncthreads();  // V and, the first time, the scores are complete
            float4 o0 = o[c][0] * alpha, o1 = o[c][1] * alpha;
#pragma unroll 4
            for (u32 e = 0; e < BLOCK_N; ++e) {
                const float4 w = scores[e * ROW + ty];
                const float2 x = *reinterpret_cast<const float2*>(vt + e * COLS + 2 * tx);
                add_product(o0, w, x.x);
                add_product(o1, w, x.y);
            }
            o[c][0] = o0;
            o[c][1] = o1;
        }
    }

#pragma unroll
    for (int lane = 8; lane > 0; lane >>= 1) {
        const float4 other = shuffle4(l, lane);
        l = make_float4(l.x + other.x, l.y + other.y, l.z + other.z, l.w + other.w);
    }
    const float sums[4] = {l.x, l.y, l.z, l.w};
#if HAS_LSE
    const float maxima[4] = {m.x, m.y, m.z, m.w};
    const u32 lse_base = Q_BATCH * p.lse_b + h * p.lse_h + head.q_start * p.lse_n + head.split * p.lse_s;
#endif
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = m_first + 4 * ty + i;
        if (row >= head.q_rows) continue;
        // Without a key that it sees, a query's result is 0, as is that of one past the end of its sequence, whatever its
        // place in memory holds.
        const float sum = inside(row, head) ? sums[i] : 0.0f, scale = 1.0f / sum;
#if HAS_LSE
        if (tx == 0) lse[lse_base + row * p.lse_n] = lse_of(maxima[i], sum);
#endif
#pragma unroll
        for (u32 c = 0; c < CHUNKS; ++c) {
#pragma unroll
            for (u32 j = 0; j < 2; ++j) {
                const u32 col = c * COLS + 2 * tx + j;
                const float4 x = o[c][j];
                const float of_row[4] = {x.x, x.y, x.z, x.w};
                if (col < p.dv) out[row * p.out_n + col * p.out_d] = from_f32<out_t>(sum == 0.0f ? 0.0f : of_row[i] * scale);
            }
        }
    }
}

#endif
