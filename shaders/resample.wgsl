// Resampling by two along height and width.
//
//   up:    out[n, c, i, j] = x[n, c, i/2, j/2]
//   down:  out[n, c, i, j] = (x[.., 2i, 2j] + x[.., 2i, 2j+1] + x[.., 2i+1, 2j] + x[.., 2i+1, 2j+1]) / 4
//
// x and out are (batch, channel, row, column) with free strides. One invocation an element of out; no
// workgroup memory.
//
//   e = workgroup * THREADS + invocation   ->  (n, c, i, j), the last axis of the decoding being the
//                                              dense one: j for NCHW, c for NHWC (CHANNELS_LAST)
//
// Consts: THREADS 32..1024 (speed only), DOWN 0|1, CHANNELS_LAST 0|1.

@compute @workgroup_size(THREADS)
fn resample(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let e = (block.x + block.y * blocks.x) * THREADS + thread;
    if (e >= p.total) { return; }
#if CHANNELS_LAST
    let c = e % p.c;
    let j = e / p.c % p.w;
    let i = e / p.c / p.w % p.h;
    let n = e / p.c / p.w / p.h;
#else
    let j = e % p.w;
    let i = e / p.w % p.h;
    let c = e / p.w / p.h % p.c;
    let n = e / p.w / p.h / p.c;
#endif
    let to = n * p.out_n + c * p.out_c + i * p.out_h + j * p.out_w;
#if DOWN
    let source = n * p.x_n + c * p.x_c + 2u * i * p.x_h + 2u * j * p.x_w;
    let top = load_x(source) + load_x(source + p.x_w);
    let bottom = load_x(source + p.x_h) + load_x(source + p.x_h + p.x_w);
    store_out(to, 0.25 * (top + bottom));
#else
    store_out(to, load_x(n * p.x_n + c * p.x_c + i / 2u * p.x_h + j / 2u * p.x_w));
#endif
}
