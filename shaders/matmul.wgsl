// Matrix products with a fused epilogue.
//
//   out[b, i, j] = act(sum_k a[b, i, k] * b[b, k, j] + bias[j]) + residual[b, i, j]
//
// a (batch, m, k), b (batch, k, n), bias (n), residual and out (batch, m, n), all with free strides: a
// transposed operand has its strides swapped, a shared one a batch stride of 0.
//
// matmul_tile (TILED): a workgroup makes a BLOCK x BLOCK tile of out, an invocation 4 x 4 elements of
// it. Along k the factors come through workgroup memory, BLOCK_K at a time, in groups of four elements:
//
//             b_tile [BLOCK_K][BLOCK / 4 + 1] vec4, along n
//              +--+--+--+--+
//              |  |b |  |  |           The + 1 keeps neighbours that write one column of a tile (the
//   a_tile     +--+--+--+--+           operand is dense along k) off one memory bank.
//   (along m)  |  |  |  |  |
//      +--+    +--+--+--+--+
//      |a |    |  |##|  |  |  4 x 4    acc[r] += a[r] * b
//      +--+    +--+--+--+--+
//
// matmul_rows (m is small): a workgroup makes ROWS rows of 4 * COLUMN_LANES columns. Invocation
// (s, c) sums every K_LANES-th term, from s on, for columns c, c + COLUMN_LANES, ..; then the K_LANES
// partial sums are added, by subgroup where lanes of a subgroup share their columns (BY_SUBGROUP).
//
// Consts: TILED 0|1, THREADS (TILED: BLOCK^2 / 16), BLOCK 8|16|32|64, BLOCK_K a multiple of 4, A_ROWS_K
// 0|1: a is dense along k (else along m), B_ROWS_N 0|1: b is dense along n (else along k); both speed
// only. TILE_F16 0|1: the tiles hold f16, which must be the dtype. ROWS 1..4, COLUMN_LANES a power of
// two that divides THREADS (1 if BY_SUBGROUP), PARTIALS >= ROWS * (BY_SUBGROUP ? subgroups : THREADS).
// Workgroup memory: a_tile and b_tile, or `partials`.

#include "common/activation.wgsl"

// One element of out from its sum.
fn finish(batch: u32, i: u32, j: u32, sum: f32) {
    var v = sum;
    if (HAS_BIAS) { v += load_bias(j * p.bias_j); }
    v = activate(v, ACT);
    if (HAS_RESIDUAL) {
        v += load_residual(batch * p.residual_b + i * p.residual_i + j * p.residual_j);
    }
    store_out(batch * p.out_b + i * p.out_i + j * p.out_j, v);
}

#if TILED

#if TILE_F16
alias tile4 = vec4<f16>;
#else
alias tile4 = vec4<f32>;
#endif

const GROUPS: u32 = BLOCK / 4u;
const PITCH: u32 = GROUPS + 1u;

var<workgroup> a_tile: array<tile4, BLOCK_K * PITCH>;
var<workgroup> b_tile: array<tile4, BLOCK_K * PITCH>;

fn a_at(batch: u32, i: u32, k: u32) -> f32 {
    if (i >= p.m || k >= p.k) { return 0.0; }
    return load_a(batch * p.a_b + i * p.a_i + k * p.a_k);
}

fn b_at(batch: u32, k: u32, j: u32) -> f32 {
    if (k >= p.k || j >= p.n) { return 0.0; }
    return load_b(batch * p.b_b + k * p.b_k + j * p.b_j);
}

@compute @workgroup_size(THREADS)
fn matmul_tile(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let tiles_m = (p.m + BLOCK - 1u) / BLOCK;
    let tiles_n = (p.n + BLOCK - 1u) / BLOCK;
    let tile = block.x + block.y * blocks.x;
    let batch = tile / (tiles_m * tiles_n);
    if (batch >= p.batch) { return; }
    let i0 = tile / tiles_n % tiles_m * BLOCK;
    let j0 = tile % tiles_n * BLOCK;
    let row = thread / GROUPS;
    let column = thread % GROUPS;

    var acc0 = vec4<f32>();
    var acc1 = vec4<f32>();
    var acc2 = vec4<f32>();
    var acc3 = vec4<f32>();
    for (var k0 = 0u; k0 < p.k; k0 += BLOCK_K) {
        for (var e = thread; e < BLOCK_K * GROUPS; e += THREADS) {
#if A_ROWS_K
            let ka = e % BLOCK_K;
            let ga = e / BLOCK_K;
#else
            let ka = e / GROUPS;
            let ga = e % GROUPS;
#endif
            let i = i0 + ga * 4u;
            let k = k0 + ka;
            a_tile[ka * PITCH + ga] =
                tile4(vec4(a_at(batch, i, k), a_at(batch, i + 1u, k), a_at(batch, i + 2u, k), a_at(batch, i + 3u, k)));
        }
        for (var e = thread; e < BLOCK_K * GROUPS; e += THREADS) {
#if B_ROWS_N
            let kb = e / GROUPS;
            let gb = e % GROUPS;
#else
            let kb = e % BLOCK_K;
            let gb = e / BLOCK_K;
#endif
            let j = j0 + gb * 4u;
            let k = k0 + kb;
            b_tile[kb * PITCH + gb] =
                tile4(vec4(b_at(batch, k, j), b_at(batch, k, j + 1u), b_at(batch, k, j + 2u), b_at(batch, k, j + 3u)));
        }
        workgroupBarrier();  // both tiles are complete before anyone multiplies
        for (var k = 0u; k < BLOCK_K; k += 1u) {
            let a = vec4<f32>(a_tile[k * PITCH + row]);
            let b = vec4<f32>(b_tile[k * PITCH + column]);
            acc0 += a.x * b;
            acc1 += a.y * b;
            acc2 += a.z * b;
            acc3 += a.w * b;
        }
        workgroupBarrier();  // everyone has multiplied before the tiles are overwritten
    }

    let acc = array<vec4<f32>, 4>(acc0, acc1, acc2, acc3);
    for (var r = 0u; r < 4u; r += 1u) {
        let i = i0 + row * 4u + r;
        if (i >= p.m) { break; }
        for (var c = 0u; c < 4u; c += 1u) {
            let j = j0 + column * 4u + c;
            if (j < p.n) { finish(batch, i, j, acc[r][c]); }
        }
    }
}

#else

const K_LANES: u32 = THREADS / COLUMN_LANES;

var<workgroup> partials: array<vec4<f32>, PARTIALS>;

@compute @workgroup_size(THREADS)
fn matmul_rows(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
#if BY_SUBGROUP
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
#endif
) {
    let tiles_m = (p.m + ROWS - 1u) / ROWS;
    let tiles_n = (p.n + 4u * COLUMN_LANES - 1u) / (4u * COLUMN_LANES);
    let tile = block.x + block.y * blocks.x;
    let batch = tile / (tiles_m * tiles_n);
    if (batch >= p.batch) { return; }
    let i0 = tile / tiles_n % tiles_m * ROWS;
    let j0 = tile % tiles_n * 4u * COLUMN_LANES;
    // Past the last column the last one is read again: its sum is dropped at the end.
    let j = min(vec4(0u, 1u, 2u, 3u) * COLUMN_LANES + j0 + thread % COLUMN_LANES, vec4(p.n - 1u)) * p.b_j + batch * p.b_b;

    var acc: array<vec4<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r += 1u) { acc[r] = vec4<f32>(); }
    for (var k = thread / COLUMN_LANES; k < p.k; k += K_LANES) {
        let at = j + k * p.b_k;
        let b = vec4(load_b(at.x), load_b(at.y), load_b(at.z), load_b(at.w));
        for (var r = 0u; r < ROWS; r += 1u) {
            acc[r] += load_a(batch * p.a_b + min(i0 + r, p.m - 1u) * p.a_i + k * p.a_k) * b;
        }
    }

#if BY_SUBGROUP
    for (var r = 0u; r < ROWS; r += 1u) {
        let sum = subgroupAdd(acc[r]);
        if (lane == 0u) { partials[subgroup * ROWS + r] = sum; }
    }
    workgroupBarrier();  // every subgroup has left its sums
    let shares = subgroups;
#else
    for (var r = 0u; r < ROWS; r += 1u) { partials[thread * ROWS + r] = acc[r]; }
    workgroupBarrier();  // every invocation has left its sums
    let shares = K_LANES;
#endif
    // An output an invocation: row r, column group q, lane c, whose shares lie COLUMN_LANES apart.
    for (var e = thread; e < ROWS * 4u * COLUMN_LANES; e += THREADS) {
        let c = e % COLUMN_LANES;
        let q = e / COLUMN_LANES % 4u;
        let r = e / COLUMN_LANES / 4u;
        if (i0 + r < p.m && j0 + q * COLUMN_LANES + c < p.n) {
            var sum = 0.0;
            for (var s = 0u; s < shares; s += 1u) { sum += partials[(s * COLUMN_LANES + c) * ROWS + r][q]; }
            finish(batch, i0 + r, j0 + q * COLUMN_LANES + c, sum);
        }
    }
}

#endif
