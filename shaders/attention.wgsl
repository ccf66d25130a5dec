// Attention: out = softmax(softmax_scale * Q K^T + bias) V, the softmax over the keys, for each batch entry and head.
//
// The online softmax of FlashAttention-2 (Dao 2023, arXiv:2307.08691): a workgroup owns BLOCK_M queries of
// one head and walks over the keys, BLOCK_N at a time. Of each query it keeps the largest score so far (m),
// the sum of exponentials (l) and the weighted sum of V (o); when m rises, l and o shrink by
// alpha = 2^(m_old - m_new). Scores are in units of log2(e): p.scale_log2e is the scale times that.
//
//   q (b, h, nq, d)   k (b, h / group, nk, d)   v (b, h / group, nk, dv)   out (b, h, nq, dv)   bias, mask (b, h, nq, nk)
//   lse (b, h, nq)    q_lengths, k_lengths (b)   slopes (b, h)   sinks (h)     strides free
//   workgroup -> (split, pair = b * heads + h, tile of queries)
//
// Packed sequences: cu_seqlens (b + 1) holds the token at which each starts, and the batch of q and out, or of k and v, is 1.
// Pages: token j of a sequence is token j % page of entry block_table[b][j / page] of k and v.
// SPLIT: a workgroup takes one of p.splits parts of the keys, and out and lse have an axis of parts.
//
// BAND: query i sees the keys max(0, i + band_from) .. min(nk, i + band_until); tiles that no query of the block sees are
// skipped. SOFTCAP: scores s become cap * tanh(s / cap) first. HIDES: a tile may hide all its keys from a query, by a band,
// a bias or a mask.
//
// 16 x 16 invocations (ty, tx); one owns queries 4ty..4ty+3, in each tile keys KEYS tx..KEYS tx + KEYS-1
// (KEYS = BLOCK_N / 16), and of the result elements 2tx, 2tx + 1 of each COLS. Vectors of four hold one
// number for each of its queries. The head is taken in slices: DEPTH elements of Q and K at a time, then
// COLS of V, so that workgroup memory does not grow with it. The twin of attention_tile in
// kernels/attention.cu.
//
// Consts: BLOCK_M 64; BLOCK_N 32 or 64 (workgroup memory); DEPTH 16; COLS 32; CHUNKS = ceil(dv / COLS);
//   THREADS 256; TILE_F16: slices of Q, K and V are kept in f16, which the operands are as well;
//   LANES 1, 2, 4, 8 or 16: invocations that are certain to share a subgroup; SHUFFLE: LANES > 1;
//   ACROSS: LANES < 16, row maxima of several subgroups meet in workgroup memory; BAND, SOFTCAP,
//   CHANGED (any of softcap, bias, mask, slopes), HIDES, SPLIT 0|1.
//
// Workgroup memory:
//
//   scores  [BLOCK_N][17] vec4   P transposed; a row holds 64 queries and 4 numbers of padding.
//                                Before P is written, row maxima lie there: [16 ty][16 / LANES]
//   tile    qt [DEPTH][68], kt [DEPTH][BLOCK_N]   a slice of Q and of K, transposed
//           vt [BLOCK_N][COLS]                    later: a slice of V, in the same place

#if TILE_F16
alias element = f16;
#else
alias element = f32;
#endif

const KEYS: u32 = BLOCK_N / 16u;
const ROW: u32 = 17u;
const KT: u32 = DEPTH * 4u * ROW;
const TILE: u32 = max(KT + DEPTH * BLOCK_N, BLOCK_N * COLS);
// The score of a hidden key: shaders have no infinity.
const LOWEST: f32 = -3e38;
const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// A bias that is no more than this hides its key, a sink is none.
const HIDING_BIAS: f32 = -1e38;

var<workgroup> scores: array<vec4<f32>, BLOCK_N * ROW>;
var<workgroup> tile: array<element, TILE>;

// The largest of each row over its 16 invocations.
fn row_max(mine: vec4<f32>, tx: u32, ty: u32) -> vec4<f32> {
    var top = mine;
#if SHUFFLE
    for (var lane = LANES / 2u; lane > 0u; lane >>= 1u) { top = max(top, subgroupShuffleXor(top, lane)); }
#endif
#if ACROSS
    if (tx % LANES == 0u) { scores[ty * (16u / LANES) + tx / LANES] = top; }
    workgroupBarrier();  // the maxima are complete
    for (var i = 0u; i < 16u / LANES; i++) { top = max(top, scores[ty * (16u / LANES) + i]); }
    workgroupBarrier();  // everyone has read them before P overwrites them
#endif
    return top;
}

#if SOFTCAP
// cap * tanh(s / cap), with e = 2^(-cap_rate |s|): (1 - e) / (1 + e), and near 0, where that difference would cost digits,
// the series of tanh.
fn capped(s: vec4<f32>) -> vec4<f32> {
    let x = abs(s) * p.cap_rate;
    let t = x * (0.5 * LN_2);
    let square = t * t;
    let e = exp2(-x);
    var series = fma(square, vec4<f32>(62.0 / 2835.0), vec4<f32>(-17.0 / 315.0));
    series = fma(square, series, vec4<f32>(2.0 / 15.0));
    series = fma(square, series, vec4<f32>(-1.0 / 3.0));
    series = fma(square, series, vec4<f32>(1.0));
    return sign(s) * (p.cap * select((1.0 - e) / (1.0 + e), t * series, t <= vec4<f32>(0.25)));
}
#endif

// Tokens of a sequence: the first of them, how many rows of memory they have, and how many there are.
struct Tokens { start: u32, rows: u32, length: i32 }

// The tokens of a packed sequence that starts at token `start` and ends before `end`, of `total`: `most` at most.
fn tokens_of(start: i32, end: i32, total: u32, most: u32) -> Tokens {
    let first = clamp(start, 0, i32(total));
    let rows = min(clamp(end, first, i32(total)) - first, i32(most));
    return Tokens(u32(first), u32(rows), rows);
}

// The queries and the keys of batch entry b.
fn queries_of(b: u32) -> Tokens {
    var queries = Tokens(0u, p.nq, i32(p.nq));
#if HAS_CU_SEQLENS_Q
    let at = b * p.cu_seqlens_q_b;
    queries = tokens_of(load_cu_seqlens_q(at), load_cu_seqlens_q(at + p.cu_seqlens_q_b), p.q_total, p.nq);
#endif
#if HAS_Q_LENGTHS
    queries.length = clamp(load_q_lengths(b * p.q_lengths_b), 0, queries.length);
#endif
    return queries;
}
fn keys_of(b: u32) -> Tokens {
    var keys = Tokens(0u, p.nk, i32(p.nk));
#if HAS_CU_SEQLENS_K
    let at = b * p.cu_seqlens_k_b;
    keys = tokens_of(load_cu_seqlens_k(at), load_cu_seqlens_k(at + p.cu_seqlens_k_b), p.k_total, p.nk);
#endif
#if HAS_K_LENGTHS
    keys.length = clamp(load_k_lengths(b * p.k_lengths_b), 0, keys.length);
#endif
    return keys;
}

// How far a token of a sequence lies from the first of k or v, in elements, pages and tokens being so far apart.
fn place_of(b: u32, token: u32, page_stride: u32, stride: u32) -> u32 {
#if HAS_BLOCK_TABLE
    let entry = load_block_table(b * p.block_table_b + token / p.page * p.block_table_p);
    return u32(clamp(entry, 0, i32(p.k_total) - 1)) * page_stride + token % p.page * stride;
#else
    return token * stride;
#endif
}

// The batch entry that operands have, of which packed ones and pages have one.
fn q_batch(b: u32) -> u32 {
    var entry = b;
#if HAS_CU_SEQLENS_Q
    entry = 0u;
#endif
    return entry;
}
fn k_batch(b: u32) -> u32 {
    var entry = b;
#if HAS_CU_SEQLENS_K
    entry = 0u;
#endif
#if HAS_BLOCK_TABLE
    entry = 0u;
#endif
    return entry;
}

// The score s of query i and a key as bias, mask and slope change it: these of one head, the slope times log2(e). The
// place of query 0 among the keys is `place`. Queries and keys outside are not read.
fn changed(s: f32, i: u32, key: u32, place: i32, bias_base: u32, mask_base: u32, slope: f32) -> f32 {
    var x = s;
    let row = min(i, p.nq - 1u);
    let col = min(key, p.nk - 1u);
#if HAS_SLOPES
    x = fma(-slope, f32(abs(i32(row) + place - i32(col))), x);
#endif
#if HAS_BIAS
    let added = load_bias(bias_base + row * p.bias_q + col * p.bias_k);
    x = select(fma(added, LOG2_E, x), LOWEST, added <= HIDING_BIAS);
#endif
#if HAS_MASK
    x = select(x, LOWEST, load_mask(mask_base + row * p.mask_q + col * p.mask_k) == 0u);
#endif
    return x;
}

@compute @workgroup_size(THREADS)
fn attention_tile(
    @builtin(workgroup_id) block_id: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_id.x + block_id.y * blocks.x;
    let q_tiles = (p.nq + BLOCK_M - 1u) / BLOCK_M;
    let pair_of_all = block / q_tiles;
    if (pair_of_all >= p.splits * p.pairs) { return; }
    let split = pair_of_all / p.pairs;
    let pair = pair_of_all % p.pairs;
    let b = pair / p.heads;
    let h = pair % p.heads;
    let tx = thread % 16u;
    let ty = thread / 16u;
    let m_first = block % q_tiles * BLOCK_M;
    let queries = queries_of(b);
    let keys = keys_of(b);
    let q_base = q_batch(b) * p.q_b + h * p.q_h + queries.start * p.q_n;
    let k_base = k_batch(b) * p.k_b + h / p.group * p.k_h + keys.start * p.k_n;
    let v_base = k_batch(b) * p.v_b + h / p.group * p.v_h + keys.start * p.v_n;
    let out_base = q_batch(b) * p.out_b + h * p.out_h + queries.start * p.out_n + split * p.out_s;
    // Neighbouring invocations walk the denser axis.
    let q_along_d = p.q_d <= p.q_n;
    let k_along_d = p.k_d <= p.k_n;
    let v_along_d = p.v_d <= p.v_n;

    let q_length = queries.length;
    let k_length = keys.length;
    let rows = vec4<i32>(i32(m_first + 4u * ty)) + vec4<i32>(0, 1, 2, 3);
#if HAS_BIAS
    let bias_base = b * p.bias_b + h * p.bias_h;
#else
    let bias_base = 0u;
#endif
#if HAS_MASK
    let mask_base = b * p.mask_b + h * p.mask_h;
#else
    let mask_base = 0u;
#endif
#if HAS_SLOPES
    let slope = load_slopes(b * p.slopes_b + h * p.slopes_h) * LOG2_E;
#else
    let slope = 0.0;
#endif

    var o: array<array<vec4<f32>, 2>, CHUNKS>;
    var m = vec4<f32>(LOWEST);
    var l = vec4<f32>(0.0);
#if HAS_SINKS
    // A sink was seen before all keys, in the first part: its exponential is 2^(sink - m) = 1.
    let sink = load_sinks(h * p.sinks_h);
    if (split == 0u) { m = vec4<f32>(select(sink * LOG2_E, LOWEST, sink <= HIDING_BIAS)); }
    if (tx == 0u && m.x > LOWEST) { l = vec4<f32>(1.0); }
#endif

    // The keys that some query of the block sees, and what each of this invocation's queries does.
    var since = 0;
    var until = k_length;
#if BAND
    let moved = k_length - i32(p.nk) - (q_length - i32(p.nq));
    let last = min(i32(m_first + BLOCK_M), q_length) - 1;
    since = max(i32(m_first) + moved + i32(p.band_from), 0);
    until = clamp(last + moved + i32(p.band_until), 0, k_length);
    let seen_from = rows + moved + i32(p.band_from);
    let seen_until = min(rows + moved + i32(p.band_until), vec4<i32>(k_length));
#endif
#if SPLIT
    // Parts are multiples of 64 keys, and so of tiles.
    let part = i32(((u32(k_length) + p.splits - 1u) / p.splits + 63u) / 64u * 64u);
    since = max(since, i32(split) * part);
    until = min(until, i32(split + 1u) * part);
#endif
    let begin = u32(since) / BLOCK_N * BLOCK_N;
    let end = select(0u, u32(until), i32(m_first) < q_length);
    for (var first = begin; first < end; first += BLOCK_N) {
        var s: array<vec4<f32>, KEYS>;
        for (var j = 0u; j < KEYS; j++) { s[j] = vec4<f32>(0.0); }
        // Once at least: the barriers also keep the scores until all have read them.
        for (var slice = 0u; slice < max(p.d, 1u); slice += DEPTH) {
            workgroupBarrier();  // everyone is done with the slice before (of V, or of Q and K)
            for (var e = thread; e < DEPTH * BLOCK_M; e += THREADS) {
                let row = select(e % BLOCK_M, e / DEPTH, q_along_d);
                let col = select(e / BLOCK_M, e % DEPTH, q_along_d);
                var x = 0.0;
                if (m_first + row < queries.rows && slice + col < p.d) {
                    x = load_q(q_base + (m_first + row) * p.q_n + (slice + col) * p.q_d);
                }
                tile[col * 4u * ROW + row] = element(x);
            }
            for (var e = thread; e < DEPTH * BLOCK_N; e += THREADS) {
                let row = select(e % BLOCK_N, e / DEPTH, k_along_d);
                let col = select(e / BLOCK_N, e % DEPTH, k_along_d);
                var x = 0.0;
                if (first + row < u32(k_length) && slice + col < p.d) {
                    x = load_k(k_base + place_of(b, first + row, p.k_b, p.k_n) + (slice + col) * p.k_d);
                }
                tile[KT + col * BLOCK_N + row] = element(x);
            }
            workgroupBarrier();  // the slices are complete
            for (var e = 0u; e < DEPTH; e++) {
                let at = e * 4u * ROW + 4u * ty;
                let a = vec4<f32>(f32(tile[at]), f32(tile[at + 1u]), f32(tile[at + 2u]), f32(tile[at + 3u]));
                for (var j = 0u; j < KEYS; j++) {
                    s[j] = fma(a, vec4<f32>(f32(tile[KT + e * BLOCK_N + tx * KEYS + j])), s[j]);
                }
            }
        }
        var top = m;
        for (var j = 0u; j < KEYS; j++) {
            s[j] *= p.scale_log2e;
#if SOFTCAP
            s[j] = capped(s[j]);
#endif
            let key = first + tx * KEYS + j;
#if CHANGED
            for (var i = 0u; i < 4u; i++) {
                s[j][i] = changed(s[j][i], u32(rows[i]), key, k_length - q_length, bias_base, mask_base, slope);
            }
#endif
#if BAND
            let at = vec4<i32>(i32(key));
            s[j] = select(vec4<f32>(LOWEST), s[j], (at >= seen_from) & (at < seen_until));
#else
            s[j] = select(vec4<f32>(LOWEST), s[j], i32(key) < k_length);
#endif
            top = max(top, s[j]);
        }
        top = row_max(top, tx, ty);
#if HIDES
        // Of a query that has seen no key yet every weight is 0, and not 1 for being equal to the maximum.
        let shift = select(top, vec4<f32>(0.0), top <= vec4<f32>(LOWEST));
#else
        let shift = top;
#endif
        let alpha = exp2(m - shift);
        m = top;
        l *= alpha;
        for (var j = 0u; j < KEYS; j++) {
            let w = exp2(s[j] - shift);
            l += w;
            // The tile before was read before the barriers above.
            scores[(tx * KEYS + j) * ROW + ty] = w;
        }
        for (var c = 0u; c < CHUNKS; c++) {
            workgroupBarrier();  // everyone is done with the slices of Q and K, or with the slice of V before
            for (var e = thread; e < BLOCK_N * COLS; e += THREADS) {
                let row = select(e % BLOCK_N, e / COLS, v_along_d);
                let col = select(e / BLOCK_N, e % COLS, v_along_d);
                var x = 0.0;
                if (first + row < u32(k_length) && c * COLS + col < p.dv) {
                    x = load_v(v_base + place_of(b, first + row, p.v_b, p.v_n) + (c * COLS + col) * p.v_d);
                }
                tile[row * COLS + col] = element(x);
            }
            workgroupBarrier();  // V and, the first time, the scores are complete
            var o0 = o[c][0] * alpha;
            var o1 = o[c][1] * alpha;
            for (var e = 0u; e < BLOCK_N; e++) {
                let w = scores[e * ROW + ty];
                o0 = fma(w, vec4<f32>(f32(tile[e * COLS + 2u * tx])), o0);
                o1 = fma(w, vec4<f32>(f32(tile[e * COLS + 2u * tx + 1u])), o1);
            }
            o[c][0] = o0;
            o[c][1] = o1;
        }
    }

    // The sums of each row over its 16 invocations.
    workgroupBarrier();  // everyone is done with the scores
    scores[ty * 16u + tx] = l;
    workgroupBarrier();  // the sums are complete
    l = vec4<f32>(0.0);
    for (var i = 0u; i < 16u; i++) { l += scores[ty * 16u + i]; }
    // Without a key that it sees, a query's result is 0, as is that of one past the end of its sequence.
    l = select(vec4<f32>(0.0), l, rows < vec4<i32>(q_length));
#if HAS_LSE
    if (tx == 0u) {
        // Minus infinity, which is not to be known when shaders are compiled.
        var none = 0xff800000u;
        let lse_base = q_batch(b) * p.lse_b + h * p.lse_h + queries.start * p.lse_n + split * p.lse_s;
        for (var i = 0u; i < 4u; i++) {
            let row = m_first + 4u * ty + i;
            let sum = select((m[i] + log2(l[i])) * LN_2, bitcast<f32>(none), l[i] == 0.0);
            if (row < queries.rows) { store_lse(lse_base + row * p.lse_n, sum); }
        }
    }
#endif
    let scale = 1.0 / l;
    for (var c = 0u; c < CHUNKS; c++) {
        for (var j = 0u; j < 2u; j++) {
            // Whatever the place of such a query in memory holds.
            let x = select(o[c][j] * scale, vec4<f32>(0.0), l == vec4<f32>(0.0));
            let col = c * COLS + 2u * tx + j;
            for (var i = 0u; i < 4u; i++) {
                let row = m_first + 4u * ty + i;
                if (row < queries.rows && col < p.dv) {
                    store_out(out_base + row * p.out_n + col * p.out_d, x[i]);
                }
            }
        }
    }
}
