// Attention over parts of the keys, made whole:
//
//   m = max over s of lses[s]     w[s] = exp(lses[s] - m)     l = sum of w
//   out = sum over s of w[s] parts[s] / l                     lse = m + ln l
//
// and 0 and -infinity where every lses[s] is -infinity: such parts are not read (FlashAttention, Dao et al. 2022,
// arXiv:2205.14135, section 2.3).
//
//   parts (s, b, h, n, d)   lses (s, b, h, n)   out (b, h, n, d)   lse (b, h, n)   strides free
//
// One invocation an element of out; no workgroup memory. The exponentials are computed by each invocation of a row: there
// are few.
//
//   e = workgroup * THREADS + invocation   ->  (b, h, i, j), the last axis of the decoding being the dense one:
//                                              j, the element, or i, the query (ALONG_N)
//
// Consts: THREADS 32..1024 (speed only), ALONG_N 0|1.

// What counts as minus infinity: shaders have none.
const LOWEST: f32 = -3e38;

@compute @workgroup_size(THREADS)
fn merge(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let e = (block.x + block.y * blocks.x) * THREADS + thread;
    if (e >= p.total) { return; }
#if ALONG_N
    let i = e % p.n;
    let j = e / p.n % p.columns;
#else
    let j = e % p.columns;
    let i = e / p.columns % p.n;
#endif
    let h = e / p.columns / p.n % p.heads;
    let b = e / p.columns / p.n / p.heads;
    let parts_base = b * p.parts_b + h * p.parts_h + i * p.parts_n + j * p.parts_d;
    let lses_base = b * p.lses_b + h * p.lses_h + i * p.lses_n;
    var m = LOWEST;
    for (var s = 0u; s < p.parts; s++) { m = max(m, load_lses(lses_base + s * p.lses_s)); }
    var l = 0.0;
    var sum = 0.0;
    for (var s = 0u; s < p.parts; s++) {
        let of_part = load_lses(lses_base + s * p.lses_s);
        if (of_part <= LOWEST) { continue; }
        let w = exp(of_part - m);
        l += w;
        if (j < p.d) { sum = fma(w, load_parts(parts_base + s * p.parts_s), sum); }
    }
    if (j < p.d) {
        var x = 0.0;
        if (l != 0.0) { x = sum / l; }
        store_out(b * p.out_b + h * p.out_h + i * p.out_n + j * p.out_d, x);
    }
#if HAS_LSE
    if (j == 0u) {
        // Minus infinity, which is not to be known when shaders are compiled.
        var none = 0xff800000u;
        var x = bitcast<f32>(none);
        if (l != 0.0) { x = m + log(l); }
        store_lse(b * p.lse_b + h * p.lse_h + i * p.lse_n, x);
    }
#endif
}
