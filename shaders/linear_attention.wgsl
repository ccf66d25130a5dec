// Linear attention: a state S of d channels by dv columns, into which keys write and of which queries read, for each batch
// entry and head (Katharopoulos et al. 2020, arXiv:2006.16236):
//
//   S[t] = a[t] * S[t - 1] + k[t] u[t]^T       a = exp(log_decay)       out[t] = scale * S[t]^T q[t]
//   u[t] = v[t]                                or, by the delta rule,   beta[t] (v[t] - (a[t] * S[t - 1])^T k[t])
//
//   q (b, h / g, n, d)   k (b, h / g, nk, d)   v (b, h / g, nk, dv)   out (b, h, n, dv)   log_decay (b, hs, nk [, d])
//   beta (b, hs, nk)     initial_state, final_state (b, hs, d, dv [+ 1])              strides free, each its own group g
//   workgroup -> (pair = b * heads + h, tile of columns)
//
// CAUSAL 0: all keys write before a query reads. NORMALIZE 1: one column more, the last of the workgroup, whose value is 1;
// out is divided by what a query reads of it, plus eps. The column of the state is dv, and the first tile stores it.
//
// The state of a workgroup stays in registers while tokens pass, TOKENS at a time through workgroup memory: a chunk. An
// invocation has one column, and of each slice of DEPTH channels the DEPTH / PARTS of its part, in QUADS vectors. Decays meet
// the state one at a time: no product of them is larger than 1, and none is divided by. The twin of
// kernels/linear_attention.cu.
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
// chunk write under each other is known before any of it is written.
//
// Consts: FEATURE 0 identity, 1 ReLU, 2 ELU + 1; DECAY 0 none, 1 a token (PER_TOKEN), 2 a channel (PER_CHANNEL); CAUSAL,
//   NORMALIZE, DELTA 0|1; TOKENS 1.. and PARTS a power of two (speed and workgroup memory); DEPTH a multiple of 4 PARTS,
//   SLICES DEPTH >= d; COLS; THREADS = PARTS COLS, at most 256.
//
// Workgroup memory, rows of q, k and a of PITCH = DEPTH / 4 + 1 vectors:
//
//   q, k, a rows [TOKENS][PITCH]  a slice of the chunk; a_tokens [TOKENS] with PER_TOKEN
//   u       [TOKENS][COLS]        the values, which the delta rule changes in place
//   sums    [TOKENS][THREADS]     what each invocation has read
//   gram    [TOKENS][TOKENS]      betas [TOKENS]       DELTA

const QUADS: u32 = DEPTH / PARTS / 4u;
const ROW: u32 = DEPTH / 4u;
const PITCH: u32 = ROW + 1u;
const REAL: u32 = COLS - NORMALIZE;

var<workgroup> q_rows: array<vec4<f32>, TOKENS * PITCH>;
var<workgroup> k_rows: array<vec4<f32>, TOKENS * PITCH>;
#if PER_CHANNEL
var<workgroup> a_rows: array<vec4<f32>, TOKENS * PITCH>;
#endif
#if PER_TOKEN
var<workgroup> a_tokens: array<f32, TOKENS>;
#endif
var<workgroup> u: array<f32, TOKENS * COLS>;
var<workgroup> sums: array<f32, TOKENS * THREADS>;
#if DELTA
var<workgroup> gram: array<f32, TOKENS * TOKENS>;
var<workgroup> betas: array<f32, TOKENS>;
#endif

// The invocation's part of its column: quad i of a slice at slice * QUADS + i.
var<private> state: array<vec4<f32>, SLICES * QUADS>;

fn feature(x: f32) -> f32 {
    if (FEATURE == 1u) { return max(x, 0.0); }
    if (FEATURE == 2u) { return select(exp(min(x, 0.0)), x + 1.0, x > 0.0); }
    return x;
}

// Where element e of `count` rows of `width` lies: token and place in the row. Neighbouring invocations walk the denser axis.
fn walked(e: u32, count: u32, width: u32, along_d: bool) -> vec2<u32> {
    if (along_d) { return vec2<u32>(e / width, e % width); }
    return vec2<u32>(e % count, e / count);
}

// Bring slice `slice` of tokens first..first + count to rows, mapped; channels past d are zeros.
fn load_queries(base: u32, first: u32, count: u32, slice: u32, thread: u32) {
    for (var e = thread; e < count * ROW; e += THREADS) {
        let at = walked(e, count, ROW, p.q_d <= p.q_n);
        let channel = slice * DEPTH + at.y * 4u;
        var quad = vec4<f32>();
        for (var i = 0u; i < 4u && channel + i < p.d; i++) {
            quad[i] = feature(load_q(base + (first + at.x) * p.q_n + (channel + i) * p.q_d));
        }
        q_rows[at.x * PITCH + at.y] = quad;
    }
}
fn load_keys(base: u32, decay_base: u32, first: u32, count: u32, slice: u32, thread: u32) {
    for (var e = thread; e < count * ROW; e += THREADS) {
        let at = walked(e, count, ROW, p.k_d <= p.k_n);
        let channel = slice * DEPTH + at.y * 4u;
        var quad = vec4<f32>();
        for (var i = 0u; i < 4u && channel + i < p.d; i++) {
            quad[i] = feature(load_k(base + (first + at.x) * p.k_n + (channel + i) * p.k_d));
        }
        k_rows[at.x * PITCH + at.y] = quad;
    }
#if PER_CHANNEL
    for (var e = thread; e < count * ROW; e += THREADS) {
        let at = walked(e, count, ROW, p.log_decay_d <= p.log_decay_n);
        let channel = slice * DEPTH + at.y * 4u;
        var quad = vec4<f32>();
        for (var i = 0u; i < 4u && channel + i < p.d; i++) {
            quad[i] = exp(load_log_decay(decay_base + (first + at.x) * p.log_decay_n + (channel + i) * p.log_decay_d));
        }
        a_rows[at.x * PITCH + at.y] = quad;
    }
#endif
}

// Brings what a chunk has besides its slices: the values of columns from `column` on, decays of tokens, betas.
fn load_tokens(v_base: u32, decay_base: u32, beta_base: u32, first: u32, count: u32, column: u32, thread: u32) {
    for (var e = thread; e < count * COLS; e += THREADS) {
        let at = walked(e, count, COLS, p.v_d <= p.v_n);
        var x = 0.0;
        if (NORMALIZE == 1u && at.y == REAL) {
            x = 1.0;
        } else if (column + at.y < p.dv) {
            x = load_v(v_base + (first + at.x) * p.v_n + (column + at.y) * p.v_d);
        }
        u[at.x * COLS + at.y] = x;
    }
    for (var t = thread; t < count; t += THREADS) {
#if PER_TOKEN
        a_tokens[t] = exp(load_log_decay(decay_base + (first + t) * p.log_decay_n));
#endif
#if DELTA
        betas[t] = load_beta(beta_base + (first + t) * p.beta_n);
#endif
    }
}

// The decays of quad c of a row.
fn decays(t: u32, c: u32) -> vec4<f32> {
#if PER_CHANNEL
    return a_rows[t * PITCH + c];
#else
    var a = 1.0;
#if PER_TOKEN
    a = a_tokens[t];
#endif
    return vec4<f32>(a);
#endif
}

// What an invocation reads at token t: the first slice of channels sets the sum, the others add to it.
fn add_sum(t: u32, slice: u32, thread: u32, seen: vec4<f32>) {
    let sum = (seen.x + seen.y) + (seen.z + seen.w);
    let at = t * THREADS + thread;
    if (slice == 0u) { sums[at] = sum; } else { sums[at] += sum; }
}

// Takes a slice through the chunk: each token writes, then its query reads.
fn scan(count: u32, slice: u32, thread: u32, writes: bool, reads: bool) {
    let part = thread / COLS;
    let col = thread % COLS;
    for (var t = 0u; t < count; t++) {
        var seen = vec4<f32>();
        for (var i = 0u; i < QUADS; i++) {
            let c = part * QUADS + i;
            var s = state[slice * QUADS + i];
            if (writes) {
                if (DECAY > 0u) { s *= decays(t, c); }
                s = fma(k_rows[t * PITCH + c], vec4<f32>(u[t * COLS + col]), s);
                state[slice * QUADS + i] = s;
            }
            if (reads) { seen = fma(q_rows[t * PITCH + c], s, seen); }
        }
        if (reads) { add_sum(t, slice, thread, seen); }
    }
}

#if DELTA
// What the state before the chunk, decayed, holds under each key.
fn predict(count: u32, slice: u32, thread: u32) {
    let part = thread / COLS;
    var decayed: array<vec4<f32>, QUADS>;
    for (var i = 0u; i < QUADS; i++) { decayed[i] = state[slice * QUADS + i]; }
    for (var t = 0u; t < count; t++) {
        var seen = vec4<f32>();
        for (var i = 0u; i < QUADS; i++) {
            let c = part * QUADS + i;
            if (DECAY > 0u) { decayed[i] *= decays(t, c); }
            seen = fma(k_rows[t * PITCH + c], decayed[i], seen);
        }
        add_sum(t, slice, thread, seen);
    }
}

// gram[t][s], s < t: how much of what key s writes is under key t when that comes.
fn add_gram(count: u32, slice: u32, thread: u32) {
    for (var e = thread; e < count * TOKENS; e += THREADS) {
        let t = e / TOKENS;
        let s = e % TOKENS;
        if (s >= t) { continue; }
        var sum = vec4<f32>();
        for (var c = 0u; c < ROW; c++) {
            var key = k_rows[s * PITCH + c];
#if PER_CHANNEL
            for (var r = s + 1u; r <= t; r++) { key *= a_rows[r * PITCH + c]; }
#endif
            sum = fma(key, k_rows[t * PITCH + c], sum);
        }
        var total = (sum.x + sum.y) + (sum.z + sum.w);
#if PER_TOKEN
        for (var r = s + 1u; r <= t; r++) { total *= a_tokens[r]; }
#endif
        if (slice == 0u) { gram[e] = total; } else { gram[e] += total; }
    }
}

// Turns the values of a column into what the delta rule writes.
fn solve(count: u32, col: u32) {
    for (var t = 0u; t < count; t++) {
        var held = 0.0;
        for (var part = 0u; part < PARTS; part++) { held += sums[t * THREADS + part * COLS + col]; }
        for (var s = 0u; s < t; s++) { held = fma(gram[t * TOKENS + s], u[s * COLS + col], held); }
        u[t * COLS + col] = betas[t] * (u[t * COLS + col] - held);
    }
}
#endif

// What all parts have read of tokens first..first + count, as the result.
fn store_tokens(base: u32, first: u32, count: u32, column: u32, thread: u32) {
    for (var e = thread; e < count * REAL; e += THREADS) {
        let at = walked(e, count, REAL, p.out_d <= p.out_n);
        if (column + at.y >= p.dv) { continue; }
        var x = 0.0;
        var by = 0.0;
        for (var part = 0u; part < PARTS; part++) {
            let row = at.x * THREADS + part * COLS;
            x += sums[row + at.y];
            if (NORMALIZE == 1u) { by += sums[row + REAL]; }
        }
        if (NORMALIZE == 1u) { x /= by + p.eps; }
        store_out(base + (first + at.x) * p.out_n + (column + at.y) * p.out_d, p.scale * x);
    }
}

@compute @workgroup_size(THREADS)
fn linear_attention(
    @builtin(workgroup_id) block_id: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_id.x + block_id.y * blocks.x;
    let tiles = max((p.dv + REAL - 1u) / REAL, 1u);
    let pair = block / tiles;
    let column = block % tiles * REAL;
    if (pair >= p.pairs) { return; }
    let b = pair / p.heads;
    let h = pair % p.heads;
    let of_state = h / p.state_group;
    let part = thread / COLS;
    let col = thread % COLS;
    let q_base = b * p.q_b + h / p.q_group * p.q_h;
    let k_base = b * p.k_b + h / p.k_group * p.k_h;
    let v_base = b * p.v_b + h / p.v_group * p.v_h;
    let out_base = b * p.out_b + h * p.out_h;
    let decay_base = b * p.log_decay_b + of_state * p.log_decay_h;
    let beta_base = b * p.beta_b + of_state * p.beta_h;

    // The invocation's column of the state.
    let normalizer = NORMALIZE == 1u && col == REAL;
    let mine = select(column + col, p.dv, normalizer);
    let live = normalizer || mine < p.dv;
#if HAS_INITIAL_STATE
    let initial_base = b * p.initial_b + of_state * p.initial_h + mine * p.initial_v;
    for (var i = 0u; i < SLICES * QUADS; i++) {
        let channel = i / QUADS * DEPTH + part * (QUADS * 4u) + i % QUADS * 4u;
        var quad = vec4<f32>();
        for (var j = 0u; j < 4u && live && channel + j < p.d; j++) {
            quad[j] = load_initial_state(initial_base + (channel + j) * p.initial_d);
        }
        state[i] = quad;
    }
#endif

#if CAUSAL
    for (var start = 0u; start < p.n; start += TOKENS) {
        let count = min(TOKENS, p.n - start);
        load_tokens(v_base, decay_base, beta_base, start, count, column, thread);
#if DELTA
        for (var slice = 0u; slice < SLICES; slice++) {
            if (slice > 0u) { workgroupBarrier(); }  // all have read the slice before
            load_keys(k_base, decay_base, start, count, slice, thread);
            if (SLICES == 1u) { load_queries(q_base, start, count, slice, thread); }
            workgroupBarrier();  // the slice is complete, and everyone has left the sums of the chunk before
            predict(count, slice, thread);
            add_gram(count, slice, thread);
        }
        workgroupBarrier();  // sums and gram are complete
        if (part == 0u) { solve(count, col); }
        workgroupBarrier();  // u is complete, and the sums are read
#endif
        for (var slice = 0u; slice < SLICES; slice++) {
            if (DELTA == 0u || SLICES > 1u) {
                load_keys(k_base, decay_base, start, count, slice, thread);
                load_queries(q_base, start, count, slice, thread);
                workgroupBarrier();  // the slice is complete, and everyone has left the sums of the chunk before
            }
            scan(count, slice, thread, true, true);
            workgroupBarrier();  // all have read the slice; after the last, the sums are complete
        }
        store_tokens(out_base, start, count, column, thread);
    }
#else
    for (var start = 0u; start < p.nk; start += TOKENS) {
        let count = min(TOKENS, p.nk - start);
        load_tokens(v_base, decay_base, beta_base, start, count, column, thread);
        for (var slice = 0u; slice < SLICES; slice++) {
            load_keys(k_base, decay_base, start, count, slice, thread);
            workgroupBarrier();  // the slice is complete
            scan(count, slice, thread, true, false);
            workgroupBarrier();  // all have read it
        }
    }
    for (var start = 0u; start < p.n; start += TOKENS) {
        let count = min(TOKENS, p.n - start);
        for (var slice = 0u; slice < SLICES; slice++) {
            load_queries(q_base, start, count, slice, thread);
            workgroupBarrier();  // the slice is complete, and everyone has left the sums of the chunk before
            scan(count, slice, thread, false, true);
            workgroupBarrier();  // all have read the slice; after the last, the sums are complete
        }
        store_tokens(out_base, start, count, column, thread);
    }
#endif

#if HAS_FINAL_STATE
    // One head of those that share the state stores it, and one workgroup the normalizer.
    if (h % p.state_group == 0u && live && !(normalizer && column > 0u)) {
        let final_base = b * p.final_b + of_state * p.final_h + mine * p.final_v;
        for (var i = 0u; i < SLICES * QUADS; i++) {
            let channel = i / QUADS * DEPTH + part * (QUADS * 4u) + i % QUADS * 4u;
            for (var j = 0u; j < 4u && channel + j < p.d; j++) {
                store_final_state(final_base + (channel + j) * p.final_d, state[i][j]);
            }
        }
    }
#endif
}
