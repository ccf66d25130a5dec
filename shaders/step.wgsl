// One explicit solver step: a linear combination per sample, with noise made on the way.
//
//   out[b, e] = sum over j of c[b, j] x_j[b, e]  +  c[b, 8] z(seed, stream + b, e)
//
// z is Philox4x32-10 through Box and Muller's transform, see common/philox.wgsl. Buffers are [b, e] with
// e = (i, j, k), last axis fastest, and free strides; DENSE when e itself is the offset. Coefficients come
// by value or, with TABLE, from row b of a table [b, 9]; one of 0 leaves its buffer unread.
//
//   span s of all  ->  b = s / spans, e = s % spans * 4       spans = ceil(len / 4)
//   s = workgroup * THREADS + invocation
//
// One invocation a span: a block of four noise words fills four elements.
// Consts: THREADS 32..1024 (speed only); PAIRS 1 when two neighbours of `out` fill a word; DENSE, NOISE,
// TABLE 0|1; USE_X0..USE_X7 1 for the buffers that are read. No workgroup memory.

#include "common/philox.wgsl"

// Which elements of a sample a span holds, along its three axes.
struct Places { i: vec4<u32>, j: vec4<u32>, k: vec4<u32> }

fn offsets(q: Places, start: u32, strides: vec3<u32>) -> vec4<u32> {
#if DENSE
    return start + q.k;
#else
    return start + q.i * strides.x + q.j * strides.y + q.k * strides.z;
#endif
}

fn coefficient(b: u32, j: u32, value: f32) -> f32 {
#if TABLE
    return load_table(b * p.table_b + j * p.table_c);
#else
    return value;
#endif
}

#if USE_X0
fn term_x0(b: u32, q: Places) -> vec4<f32> {
    let c = coefficient(b, 0u, p.c0);
    if (c == 0.0) { return vec4<f32>(); }
    let at = offsets(q, b * p.x0_b, vec3<u32>(p.x0_i, p.x0_j, p.x0_k));
    return c * vec4<f32>(load_x0(at.x), load_x0(at.y), load_x0(at.z), load_x0(at.w));
}
#endif
#if USE_X1
fn term_x1(b: u32, q: Places) -> vec4<f32> {
    let c = coefficient(b, 1u, p.c1);
    if (c == 0.0) { return vec4<f32>(); }
    let at = offsets(q, b * p.x1_b, vec3<u32>(p.x1_i, p.x1_j, p.x1_k));
    return c * vec4<f32>(load_x1(at.x), load_x1(at.y), load_x1(at.z), load_x1(at.w));
}
#endif
#if USE_X2
fn term_x2(b: u32, q: Places) -> vec4<f32> {
    let c = coefficient(b, 2u, p.c2);
    if (c == 0.0) { return vec4<f32>(); }
    let at = offsets(q, b * p.x2_b, vec3<u32>(p.x2_i, p.x2_j, p.x2_k));
    return c * vec4<f32>(load_x2(at.x), load_x2(at.y), load_x2(at.z), load_x2(at.w));
}
#endif
#if USE_X3
fn term_x3(b: u32, q: Places) -> vec4<f32> {
    let c = coefficient(b, 3u, p.c3);
    if (c == 0.0) { return vec4<f32>(); }
    let at = offsets(q, b * p.x3_b, vec3<u32>(p.x3_i, p.x3_j, p.x3_k));
    return c * vec4<f32>(load_x3(at.x), load_x3(at.y), load_x3(at.z), load_x3(at.w));
}
#endif
#if USE_X4
fn term_x4(b: u32, q: Places) -> vec4<f32> {
    let c = coefficient(b, 4u, p.c4);
    if (c == 0.0) { return vec4<f32>(); }
    let at = offsets(q, b * p.x4_b, vec3<u32>(p.x4_i, p.x4_j, p.x4_k));
    return c * vec4<f32>(load_x4(at.x), load_x4(at.y), load_x4(at.z), load_x4(at.w));
}
#endif
#if USE_X5
fn term_x5(b: u32, q: Places) -> vec4<f32> {
    let c = coefficient(b, 5u, p.c5);
    if (c == 0.0) { return vec4<f32>(); }
    let at = offsets(q, b * p.x5_b, vec3<u32>(p.x5_i, p.x5_j, p.x5_k));
    return c * vec4<f32>(load_x5(at.x), load_x5(at.y), load_x5(at.z), load_x5(at.w));
}
#endif
#if USE_X6
fn term_x6(b: u32, q: Places) -> vec4<f32> {
    let c = coefficient(b, 6u, p.c6);
    if (c == 0.0) { return vec4<f32>(); }
    let at = offsets(q, b * p.x6_b, vec3<u32>(p.x6_i, p.x6_j, p.x6_k));
    return c * vec4<f32>(load_x6(at.x), load_x6(at.y), load_x6(at.z), load_x6(at.w));
}
#endif
#if USE_X7
fn term_x7(b: u32, q: Places) -> vec4<f32> {
    let c = coefficient(b, 7u, p.c7);
    if (c == 0.0) { return vec4<f32>(); }
    let at = offsets(q, b * p.x7_b, vec3<u32>(p.x7_i, p.x7_j, p.x7_k));
    return c * vec4<f32>(load_x7(at.x), load_x7(at.y), load_x7(at.z), load_x7(at.w));
}
#endif

@compute @workgroup_size(THREADS)
fn step(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let s = (block.x + block.y * blocks.x) * THREADS + thread;
    let spans = (p.len + 3u) / 4u;
    if (s >= p.samples * spans) { return; }
    let b = s / spans;
    let e = s % spans * 4u;
    // Past the end of the sample the last element is read again, and not stored.
    let index = min(vec4<u32>(e, e + 1u, e + 2u, e + 3u), vec4<u32>(p.len - 1u));
#if DENSE
    let q = Places(vec4<u32>(), vec4<u32>(), index);
#else
    let q = Places(index / p.size_k / p.size_j, index / p.size_k % p.size_j, index % p.size_k);
#endif
    var sum = vec4<f32>();
#if USE_X0
    sum += term_x0(b, q);
#endif
#if USE_X1
    sum += term_x1(b, q);
#endif
#if USE_X2
    sum += term_x2(b, q);
#endif
#if USE_X3
    sum += term_x3(b, q);
#endif
#if USE_X4
    sum += term_x4(b, q);
#endif
#if USE_X5
    sum += term_x5(b, q);
#endif
#if USE_X6
    sum += term_x6(b, q);
#endif
#if USE_X7
    sum += term_x7(b, q);
#endif
#if NOISE
    let low = p.stream_lo + b;
    let high = p.stream_hi + select(0u, 1u, low < b);
    let seed = vec2<u32>(p.seed_lo, p.seed_hi);
    sum += coefficient(b, 8u, p.c8) * philox_normals(seed, vec2<u32>(low, high), e / 4u);
#endif
    let at = offsets(q, b * p.out_b, vec3<u32>(p.out_i, p.out_j, p.out_k));
#if PAIRS
    if (e + 1u < p.len) { store2_out(at.x, sum.x, sum.y); } else { store_out(at.x, sum.x); }
    if (e + 3u < p.len) {
        store2_out(at.z, sum.z, sum.w);
    } else if (e + 2u < p.len) {
        store_out(at.z, sum.z);
    }
#else
    store_out(at.x, sum.x);
    if (e + 1u < p.len) { store_out(at.y, sum.y); }
    if (e + 2u < p.len) { store_out(at.z, sum.z); }
    if (e + 3u < p.len) { store_out(at.w, sum.w); }
#endif
}
