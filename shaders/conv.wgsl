// Two-dimensional convolutions with a fused epilogue.
//
//   out[n, o, y, x] = act(sum_cij weight[o, c, i, j] * x[n, g C + c, y s + i d - pad, x s + j d - pad]
//                         + bias[o] + sample_bias[n, o]) + residual[n, o, y, x]
//
// x (n, groups C, h, w), weight (groups O, C, kh, kw), bias (groups O), sample_bias (n, groups O), residual
// and out (n, groups O, oh, ow), all with free strides; output channel o is in group g = o / O; x is 0
// outside the image.
//
// conv_tile (TILED): an implicit matrix product for each group. Rows are the pixels of out (m: n, y, x),
// columns the output channels of the group, the sum runs over k = (i, j, c), c fastest. A workgroup makes
// a BLOCK_M x BLOCK_N tile, an invocation 4 x 4 elements of it; along k both factors come through
// workgroup memory, BLOCK_K at a time, in groups of four elements:
//
//                 weight_tile [BLOCK_K][BLOCK_N / 4 + 1] vec4, along n
//                  +--+--+--+--+
//                  |  |b |  |  |       The + 1 keeps neighbours that write one column of a tile (the
//   x_tile         +--+--+--+--+       operand is dense along k) off one memory bank.
//   (along m)      |  |  |  |  |
//      +--+        +--+--+--+--+
//      |a |        |  |##|  |  |  4 x 4    acc[r] += a[r] * b
//      +--+        +--+--+--+--+
//
// Where a pixel's window starts is worked out once per pixel and kept in workgroup memory (`windows`).
//
// conv_depthwise (one input channel a group): an invocation an element of out.
//
//   e = workgroup * THREADS + invocation   ->  (n, o, y, x), the last axis of the decoding being the dense
//                                              one: x for NCHW, o for NHWC (CHANNELS_LAST)
//
// Consts: TILED 0|1, ACT (common/activation.wgsl), THREADS (TILED: BLOCK_M * BLOCK_N / 16), BLOCK_M and
// BLOCK_N 16|32|64, BLOCK_K a multiple of 4. X_ALONG_K 0|1: x is denser along channels than along
// columns; WEIGHT_ALONG_K 0|1: weight is denser along input than along output channels; CHANNELS_LAST
// 0|1; all three speed only. TILE_F16 0|1: the tiles hold f16, which must be the dtype.
// Workgroup memory: x_tile, weight_tile, windows.

#include "common/activation.wgsl"

// One element of out from its sum.
fn finish(n: u32, o: u32, y: u32, x: u32, sum: f32) {
    var v = sum;
    if (HAS_BIAS) { v += load_bias(o * p.bias_o); }
    if (HAS_SAMPLE_BIAS) { v += load_sample_bias(n * p.sample_bias_n + o * p.sample_bias_o); }
    v = activate(v, ACT);
    if (HAS_RESIDUAL) {
        v += load_residual(n * p.residual_n + o * p.residual_c + y * p.residual_h + x * p.residual_w);
    }
    store_out(n * p.out_n + o * p.out_c + y * p.out_h + x * p.out_w, v);
}

#if TILED

#if TILE_F16
alias tile4 = vec4<f16>;
#else
alias tile4 = vec4<f32>;
#endif

const X_GROUPS: u32 = BLOCK_M / 4u;
const X_PITCH: u32 = X_GROUPS + 1u;
const WEIGHT_GROUPS: u32 = BLOCK_N / 4u;
const WEIGHT_PITCH: u32 = WEIGHT_GROUPS + 1u;

var<workgroup> x_tile: array<tile4, BLOCK_K * X_PITCH>;
var<workgroup> weight_tile: array<tile4, BLOCK_K * WEIGHT_PITCH>;
// Of each pixel of the tile: where its sample and group start in x, and the row and column of its
// window's first tap. Rows and columns above or left of the image wrap round to very large numbers.
var<workgroup> windows: array<array<u32, 3>, BLOCK_M>;

// The position of one step of the sum: of its tap in the window, in x and in weight.
struct Step { inside: bool, row: u32, column: u32, x: u32, weight: u32 }

fn step_at(k: u32, terms: u32) -> Step {
    let c = k % p.c_in;
    let tap = k / p.c_in;
    let i = tap / p.kw;
    let j = tap % p.kw;
    return Step(k < terms, i * p.dilation_h, j * p.dilation_w, c * p.x_c, c * p.weight_c + i * p.weight_h + j * p.weight_w);
}

fn x_at(step: Step, pixel: u32) -> f32 {
    let row = windows[pixel][1] + step.row;
    let column = windows[pixel][2] + step.column;
    if (!step.inside || row >= p.h || column >= p.w) { return 0.0; }
    return load_x(windows[pixel][0] + step.x + row * p.x_h + column * p.x_w);
}

fn weight_at(step: Step, group: u32, n: u32) -> f32 {
    if (!step.inside || n >= p.c_out) { return 0.0; }
    return load_weight((group * p.c_out + n) * p.weight_o + step.weight);
}

@compute @workgroup_size(THREADS)
fn conv_tile(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let pixels = p.batch * p.oh * p.ow;
    let tiles_m = (pixels + BLOCK_M - 1u) / BLOCK_M;
    let tiles_n = (p.c_out + BLOCK_N - 1u) / BLOCK_N;
    let tile = block.x + block.y * blocks.x;
    let group = tile / (tiles_m * tiles_n);
    if (group >= p.groups) { return; }
    let m0 = tile / tiles_n % tiles_m * BLOCK_M;
    let n0 = tile % tiles_n * BLOCK_N;

    for (var e = thread; e < BLOCK_M; e += THREADS) {
        // Past the last pixel the first is read: its sums are dropped.
        let m = select(0u, m0 + e, m0 + e < pixels);
        let sample = m / p.ow / p.oh;
        windows[e][0] = sample * p.x_n + group * p.c_in * p.x_c;
        windows[e][1] = m / p.ow % p.oh * p.stride_h - p.pad_h;
        windows[e][2] = m % p.ow * p.stride_w - p.pad_w;
    }
    workgroupBarrier();  // all windows are known before anyone reads x

    let row = thread / WEIGHT_GROUPS;
    let column = thread % WEIGHT_GROUPS;
    var acc0 = vec4<f32>();
    var acc1 = vec4<f32>();
    var acc2 = vec4<f32>();
    var acc3 = vec4<f32>();
    let terms = p.kh * p.kw * p.c_in;
    for (var k0 = 0u; k0 < terms; k0 += BLOCK_K) {
        for (var e = thread; e < BLOCK_K * X_GROUPS; e += THREADS) {
#if X_ALONG_K
            let ka = e % BLOCK_K;
            let ga = e / BLOCK_K;
#else
            let ka = e / X_GROUPS;
            let ga = e % X_GROUPS;
#endif
            let step = step_at(k0 + ka, terms);
            let m = ga * 4u;
            x_tile[ka * X_PITCH + ga] =
                tile4(vec4(x_at(step, m), x_at(step, m + 1u), x_at(step, m + 2u), x_at(step, m + 3u)));
        }
        for (var e = thread; e < BLOCK_K * WEIGHT_GROUPS; e += THREADS) {
#if WEIGHT_ALONG_K
            let kb = e % BLOCK_K;
            let gb = e / BLOCK_K;
#else
            let kb = e / WEIGHT_GROUPS;
            let gb = e % WEIGHT_GROUPS;
#endif
            let step = step_at(k0 + kb, terms);
            let n = n0 + gb * 4u;
            weight_tile[kb * WEIGHT_PITCH + gb] = tile4(vec4(
                weight_at(step, group, n),
                weight_at(step, group, n + 1u),
                weight_at(step, group, n + 2u),
                weight_at(step, group, n + 3u),
            ));
        }
        workgroupBarrier();  // both tiles are complete before anyone multiplies
        for (var k = 0u; k < BLOCK_K; k += 1u) {
            let a = vec4<f32>(x_tile[k * X_PITCH + row]);
            let b = vec4<f32>(weight_tile[k * WEIGHT_PITCH + column]);
            acc0 += a.x * b;
            acc1 += a.y * b;
            acc2 += a.z * b;
            acc3 += a.w * b;
        }
        workgroupBarrier();  // everyone has multiplied before the tiles are overwritten
    }

    let acc = array<vec4<f32>, 4>(acc0, acc1, acc2, acc3);
    for (var r = 0u; r < 4u; r += 1u) {
        let m = m0 + row * 4u + r;
        if (m >= pixels) { break; }
        for (var c = 0u; c < 4u; c += 1u) {
            let n = n0 + column * 4u + c;
            if (n < p.c_out) {
                finish(m / p.ow / p.oh, group * p.c_out + n, m / p.ow % p.oh, m % p.ow, acc[r][c]);
            }
        }
    }
}

#else

@compute @workgroup_size(THREADS)
fn conv_depthwise(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let channels = p.groups * p.c_out;
    let e = (block.x + block.y * blocks.x) * THREADS + thread;
    if (e >= p.batch * channels * p.oh * p.ow) { return; }
#if CHANNELS_LAST
    let o = e % channels;
    let x = e / channels % p.ow;
    let y = e / channels / p.ow % p.oh;
    let n = e / channels / p.ow / p.oh;
#else
    let x = e % p.ow;
    let y = e / p.ow % p.oh;
    let o = e / p.ow / p.oh % channels;
    let n = e / p.ow / p.oh / channels;
#endif
    // Rows and columns above or left of the image wrap round to very large numbers.
    let first_row = y * p.stride_h - p.pad_h;
    let first_column = x * p.stride_w - p.pad_w;
    let source = n * p.x_n + o / p.c_out * p.x_c;
    var sum = 0.0;
    for (var i = 0u; i < p.kh; i += 1u) {
        let row = first_row + i * p.dilation_h;
        if (row >= p.h) { continue; }
        for (var j = 0u; j < p.kw; j += 1u) {
            let column = first_column + j * p.dilation_w;
            if (column >= p.w) { continue; }
            sum += load_x(source + row * p.x_h + column * p.x_w)
                * load_weight(o * p.weight_o + i * p.weight_h + j * p.weight_w);
        }
    }
    finish(n, o, y, x, sum);
}

#endif
