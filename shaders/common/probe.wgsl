// The ceilings of a device, measured: not an op.
//
//   FMA:   every invocation runs 8 independent chains c <- c * a + b, `loops` times, and writes their sum
//   else:  out = x
//
// Consts: THREADS 32..1024 (speed only), FMA 0|1.

@compute @workgroup_size(THREADS)
fn probe(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let e = (block.x + block.y * blocks.x) * THREADS + thread;
    if (e >= p.total) { return; }
#if FMA
    var low = vec4<f32>(1.0);
    var high = vec4<f32>(1.0);
    for (var i = 0u; i < p.loops; i += 1u) {
        low = fma(low, vec4<f32>(0.9999), vec4<f32>(1e-4));
        high = fma(high, vec4<f32>(0.9999), vec4<f32>(1e-4));
    }
    store_out(e, dot(low + high, vec4<f32>(1.0)));
#else
    store_out(e, load_x(e));
#endif
}
