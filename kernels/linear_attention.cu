// Linear attention: a state S of d channels by dv columns, into which keys write and of which queries read, for each batch
// entry and head (Katharopoulos et al. 2020, arXiv:2006.16236):
//
//   S[t] = a[t] * S[t - 1] + k[t] u[t]^T       a = exp(log_decay)       out[t] = scale * S[t]^T q[t]
//   u[t] = v[t]                                or, by the delta rule,   beta[t] (v[t] - (a[t] * S[t - 1])^T k[t])
//
//   q (b, h / g, n, d)   k (b, h / g, nk, d)   v (b, h / g, nk, dv)   out (b, h, n, dv)   log_decay (b, hs, nk [, d])
//   beta (b, hs, nk)     initial_state, final_state (b, hs, d, dv [+ 1])              strides free, each its own group g
//   block -> (pair = b * heads + h, tile of columns)
//
// CAUSAL 0: all keys write before a query reads. NORMALIZE 1: one column more, the last of the block, whose value is 1; out
// is divided by what a query reads of it, plus eps. The column of the state is dv, and the first tile stores it.
//
// The state of a block stays in registers while tokens pass, TOKENS at a time through shared memory: a chunk. A thread has one
// column, and of each slice of DEPTH channels the ROWS = DEPTH / PARTS of its part. Decays meet the state one at a time: no
// product of them is larger than 1, and none is divided by.
//
//              columns -> COLS                      for each chunk of tokens:
//            +---------------+                        by the delta rule:
//   channels | part 0        | thread = part * COLS     sums = what the old state holds under each key, by parts
//   DEPTH    | part 1        |          + column        gram[t][s] = (a[s + 1] .. a[t] k[s]) . k[t],  s < t
//            | ..            |                          u[t] = beta[t] (v[t] - sums[t] - sum over s of gram[t][s] u[s])
//            +---------------+                        sums = what each query reads while u is written, by parts
//   SLICES of these                                   out  = scale * the sum of parts
//
// The second step is the WY form of the delta rule (Yang et al. 2024, arXiv:2406.06484), solved forward: what keys of the
// chunk write under each other is known before any of it is written. Queries read the state itself, and not scores of keys
// of the chunk: without tensor cores that takes fewer operations.
//
// Consts: FEATURE 0 identity, 1 ReLU, 2 ELU + 1; DECAY 0 none, 1 a token (PER_TOKEN), 2 a channel (PER_CHANNEL); CAUSAL,
//   NORMALIZE, DELTA 0|1; TOKENS 1.. and PARTS a power of two (speed and shared memory); DEPTH a multiple of 4 PARTS,
//   SLICES DEPTH >= d; COLS; THREADS = PARTS COLS, at most 1024.
//
// Shared memory (static), rows of q, k and a of PITCH = DEPTH + 4 floats, so that eight rows at one column lie in different
// banks:
//
//   q, k, a [TOKENS][PITCH]   a slice of the chunk; of a [TOKENS] with PER_TOKEN
//   u       [TOKENS][COLS]    the values, which the delta rule changes in place
//   sums    [TOKENS][THREADS] what each thread has read
//   gram    [TOKENS][TOKENS]  beta [TOKENS]       DELTA

#define ROWS (DEPTH / PARTS)
#define QUADS (ROWS / 4)
#define PITCH (DEPTH + 4)
#define REAL (COLS - NORMALIZE)

struct alignas(16) Quad { float x[4]; };

struct Chunk {
    Quad q[TOKENS * PITCH / 4];
    Quad k[TOKENS * PITCH / 4];
#if PER_CHANNEL
    Quad a[TOKENS * PITCH / 4];
#endif
#if PER_TOKEN
    float a[TOKENS];
#endif
    float u[TOKENS * COLS];
    float sums[TOKENS * THREADS];
#if DELTA
    float gram[TOKENS * TOKENS];
    float beta[TOKENS];
#endif
};

__device__ __forceinline__ float feature(float x) {
    if (FEATURE == 1) return fmaxf(x, 0.0f);
    if (FEATURE == 2) return x > 0.0f ? x + 1.0f : expf(x);
    return x;
}

struct Feature { __device__ __forceinline__ float operator()(float x) const { return feature(x); } };
struct Decay { __device__ __forceinline__ float operator()(float x) const { return expf(x); } };

// Brings slice `slice` of tokens first..first + count to rows of PITCH, mapped; channels past d are zeros.
template <class T, class Map>
__device__ __forceinline__ void load_rows(Quad* rows, const T* from, u32 first, u32 count, u32 slice, u32 s_n, u32 s_d, u32 d,
                                          Map map) {
    // Neighbouring threads walk the denser axis.
    const bool along_d = s_d <= s_n;
    for (u32 e = threadIdx.x; e < count * (DEPTH / 4); e += THREADS) {
        const u32 t = along_d ? e / (DEPTH / 4) : e % count;
        const u32 c = along_d ? e % (DEPTH / 4) : e / count;
        Quad quad;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 channel = slice * DEPTH + c * 4 + i;
            quad.x[i] = channel < d ? map(to_f32(from[(first + t) * s_n + channel * s_d])) : 0.0f;
        }
        rows[t * (PITCH / 4) + c] = quad;
    }
}

// Brings the values of tokens first..first + count, of columns from `column` on.
__device__ __forceinline__ void load_values(Chunk& chunk, const v_t* v, u32 first, u32 count, u32 column, const Params& p) {
    const bool along_d = p.v_d <= p.v_n;
    for (u32 e = threadIdx.x; e < count * COLS; e += THREADS) {
        const u32 t = along_d ? e / COLS : e % count, col = along_d ? e % COLS : e / count;
        float x = 0.0f;
        if (NORMALIZE && col == REAL) {
            x = 1.0f;
        } else if (column + col < p.dv) {
            x = to_f32(v[(first + t) * p.v_n + (column + col) * p.v_d]);
        }
        chunk.u[t * COLS + col] = x;
    }
}

// The decays of quad `c` of a row.
__device__ __forceinline__ Quad decays(const Chunk& chunk, u32 t, u32 c) {
#if PER_CHANNEL
    return chunk.a[t * (PITCH / 4) + c];
#else
    float a = 1.0f;
#if PER_TOKEN
    a = chunk.a[t];
#endif
    return {{a, a, a, a}};
#endif
}

// What a thread reads at token t: the first slice of channels sets the sum, the others add to it.
__device__ __forceinline__ void add_sum(Chunk& chunk, u32 t, u32 slice, const Quad& read) {
    const float sum = (read.x[0] + read.x[1]) + (read.x[2] + read.x[3]);
    float& total = chunk.sums[t * THREADS + threadIdx.x];
    total = slice == 0 ? sum : total + sum;
}

// Takes the rows of a slice through the chunk: each token writes (WRITE), then its query reads (READ).
template <bool WRITE, bool READ>
__device__ __forceinline__ void scan(float (&state)[ROWS], Chunk& chunk, u32 count, u32 slice, u32 part, u32 col) {
    for (u32 t = 0; t < count; ++t) {
        const float u = WRITE ? chunk.u[t * COLS + col] : 0.0f;
        Quad read = {{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            const u32 c = part * QUADS + i;
            if (WRITE) {
                const Quad k = chunk.k[t * (PITCH / 4) + c], a = decays(chunk, t, c);
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    float& s = state[i * 4 + j];
                    s = fmaf(k.x[j], u, DECAY ? a.x[j] * s : s);
                }
            }
            if (READ) {
                const Quad q = chunk.q[t * (PITCH / 4) + c];
#pragma unroll
                for (u32 j = 0; j < 4; ++j) read.x[j] = fmaf(q.x[j], state[i * 4 + j], read.x[j]);
            }
        }
        if (READ) add_sum(chunk, t, slice, read);
    }
}

#if DELTA

// What the state before the chunk, decayed, holds under each key.
__device__ __forceinline__ void predict(const float (&state)[ROWS], Chunk& chunk, u32 count, u32 slice, u32 part) {
    float decayed[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) decayed[r] = state[r];
    for (u32 t = 0; t < count; ++t) {
        Quad read = {{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
        for (u32 i = 0; i < QUADS; ++i) {
            const u32 c = part * QUADS + i;
            const Quad k = chunk.k[t * (PITCH / 4) + c], a = decays(chunk, t, c);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                float& s = decayed[i * 4 + j];
                if (DECAY) s *= a.x[j];
                read.x[j] = fmaf(k.x[j], s, read.x[j]);
            }
        }
        add_sum(chunk, t, slice, read);
    }
}

// gram[t][s], s < t: how much of what key s writes is under key t when that comes.
__device__ __forceinline__ void add_gram(Chunk& chunk, u32 count, u32 slice) {
    for (u32 e = threadIdx.x; e < count * TOKENS; e += THREADS) {
        const u32 t = e / TOKENS, s = e % TOKENS;
        if (s >= t) continue;
        Quad sum = {{0.0f, 0.0f, 0.0f, 0.0f}};
        for (u32 c = 0; c < DEPTH / 4; ++c) {
            Quad k = chunk.k[s * (PITCH / 4) + c];
            const Quad other = chunk.k[t * (PITCH / 4) + c];
#if PER_CHANNEL
            for (u32 r = s + 1; r <= t; ++r) {
                const Quad a = chunk.a[r * (PITCH / 4) + c];
#pragma unroll
                for (u32 j = 0; j < 4; ++j) k.x[j] *= a.x[j];
            }
#endif
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sum.x[j] = fmaf(k.x[j], other.x[j], sum.x[j]);
        }
        float total = (sum.x[0] + sum.x[1]) + (sum.x[2] + sum.x[3]);
#if PER_TOKEN
        for (u32 r = s + 1; r <= t; ++r) total *= chunk.a[r];
#endif
        float& gram = chunk.gram[t * TOKENS + s];
        gram = slice == 0 ? total : gram + total;
    }
}

// Turns the values of a column into what the delta rule writes.
__device__ __forceinline__ void solve(Chunk& chunk, u32 count, u32 col) {
    for (u32 t = 0; t < count; ++t) {
        float held = 0.0f;
        for (u32 part = 0; part < PARTS; ++part) held += chunk.sums[t * THREADS + part * COLS + col];
        for (u32 s = 0; s < t; ++s) held = fmaf(chunk.gram[t * TOKENS + s], chunk.u[s * COLS + col], held);
        float& u = chunk.u[t * COLS + col];
        u = chunk.beta[t] * (u - held);
    }
}

#endif

// What all parts have read of tokens first..first + count, as the result.
__device__ __forceinline__ void store_out(out_t* out, const Chunk& chunk, u32 first, u32 count, u32 column, const Params& p) {
    const bool along_d = p.out_d <= p.out_n;
    for (u32 e = threadIdx.x; e < count * REAL; e += THREADS) {
        const u32 t = along_d ? e / REAL : e % count, col = along_d ? e % REAL : e / count;
        if (column + col >= p.dv) continue;
        const float* sums = chunk.sums + t * THREADS;
        float x = 0.0f, by = 0.0f;
#pragma unroll
        for (u32 part = 0; part < PARTS; ++part) {
            x += sums[part * COLS + col];
            if (NORMALIZE) by += sums[part * COLS + REAL];
        }
        if (NORMALIZE) x /= by + p.eps;
        out[(first + t) * p.out_n + (column + col) * p.out_d] = from_f32<out_t>(p.scale * x);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) linear_attention(OPERANDS, const Params p) {
    __shared__ Chunk chunk;
    const u32 block = blockIdx.x + blockIdx.y * gridDim.x;
    const u32 tiles = max((p.dv + REAL - 1) / REAL, 1);
    const u32 pair = block / tiles, column = block % tiles * REAL;
    if (pair >= p.pairs) return;
    const u32 b = pair / p.heads, h = pair % p.heads, of_state = h / p.state_group;
    const u32 part = threadIdx.x / COLS, col = threadIdx.x % COLS;
    q += b * p.q_b + h / p.q_group * p.q_h;
    k += b * p.k_b + h / p.k_group * p.k_h;
    v += b * p.v_b + h / p.v_group * p.v_h;
    out += b * p.out_b + h * p.out_h;
#if HAS_LOG_DECAY
    log_decay += b * p.log_decay_b + of_state * p.log_decay_h;
#endif
#if HAS_BETA
    beta += b * p.beta_b + of_state * p.beta_h;
#endif

    // The thread's column of the state, and its first channel of a slice.
    const bool normalizer = NORMALIZE && col == REAL;
    const u32 mine = normalizer ? p.dv : column + col, first_channel = part * ROWS;
    const bool live = normalizer || mine < p.dv;
    float state[SLICES][ROWS];
#pragma unroll
    for (u32 slice = 0; slice < SLICES; ++slice) {
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            state[slice][r] = 0.0f;
#if HAS_INITIAL_STATE
            const u32 channel = slice * DEPTH + first_channel + r;
            if (live && channel < p.d) {
                state[slice][r] = initial_state[b * p.initial_b + of_state * p.initial_h + channel * p.initial_d
                                                + mine * p.initial_v];
            }
#endif
        }
    }

    const auto load_keys = [&](u32 start, u32 count, u32 slice) {
        load_rows(chunk.k, k, start, count, slice, p.k_n, p.k_d, p.d, Feature());
#if PER_CHANNEL
        load_rows(chunk.a, log_decay, start, count, slice, p.log_decay_n, p.log_decay_d, p.d, Decay());
#endif
    };
    const auto load_queries = [&](u32 start, u32 count, u32 slice) {
        load_rows(chunk.q, q, start, count, slice, p.q_n, p.q_d, p.d, Feature());
    };
    // What a chunk has besides its slices.
    const auto load_tokens = [&](u32 start, u32 count) {
        load_values(chunk, v, start, count, column, p);
        for (u32 t = threadIdx.x; t < count; t += THREADS) {
#if PER_TOKEN
            chunk.a[t] = expf(to_f32(log_decay[(start + t) * p.log_decay_n]));
#endif
#if DELTA
            chunk.beta[t] = to_f32(beta[(start + t) * p.beta_n]);
#endif
        }
    };

#if CAUSAL
    for (u32 start = 0; start < p.n; start += TOKENS) {
        const u32 count = min(u32(TOKENS), p.n - start);
        load_tokens(start, count);
#if DELTA
#pragma unroll
        for (u32 slice = 0; slice < SLICES; ++slice) {
            if (slice > 0) __syncthreads();  // all have read the slice before
            load_keys(start, count, slice);
            if (SLICES == 1) load_queries(start, count, slice);
            __syncthreads();  // the slice is complete, and everyone has left the sums of the chunk before
            predict(state[slice], chunk, count, slice, part);
            add_gram(chunk, count, slice);
        }
        __syncthreads();  // sums and gram are complete
        if (part == 0) solve(chunk, count, col);
        __syncthreads();  // u is complete, and the sums are read
#endif
#pragma unroll
        for (u32 slice = 0; slice < SLICES; ++slice) {
            if (!DELTA || SLICES > 1) {
                load_keys(start, count, slice);
                load_queries(start, count, slice);
                __syncthreads();  // the slice is complete, and everyone has left the sums of the chunk before
            }
            scan<true, true>(state[slice], chunk, count, slice, part, col);
            __syncthreads();  // all have read the slice; after the last, the sums are complete
        }
        store_out(out, chunk, start, count, column, p);
    }
#else
    for (u32 start = 0; start < p.nk; start += TOKENS) {
        const u32 count = min(u32(TOKENS), p.nk - start);
        load_tokens(start, count);
#pragma unroll
        for (u32 slice = 0; slice < SLICES; ++slice) {
            load_keys(start, count, slice);
            __syncthreads();  // the slice is complete
            scan<true, false>(state[slice], chunk, count, slice, part, col);
            __syncthreads();  // all have read it
        }
    }
    for (u32 start = 0; start < p.n; start += TOKENS) {
        const u32 count = min(u32(TOKENS), p.n - start);
#pragma unroll
        for (u32 slice = 0; slice < SLICES; ++slice) {
            load_queries(start, count, slice);
            __syncthreads();  // the slice is complete, and everyone has left the sums of the chunk before
            scan<false, true>(state[slice], chunk, count, slice, part, col);
            __syncthreads();  // all have read the slice; after the last, the sums are complete
        }
        store_out(out, chunk, start, count, column, p);
    }
#endif

#if HAS_FINAL_STATE
    // One head of those that share the state stores it, and one block the normalizer.
    if (h % p.state_group == 0 && live && !(normalizer && column > 0)) {
#pragma unroll
        for (u32 slice = 0; slice < SLICES; ++slice) {
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
                const u32 channel = slice * DEPTH + first_channel + r;
                if (channel < p.d) {
                    final_state[b * p.final_b + of_state * p.final_h + channel * p.final_d + mine * p.final_v] =
                        state[slice][r];
                }
            }
        }
    }
#endif
}
