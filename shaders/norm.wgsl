// Group, layer and root-mean-square normalisation with FiLM and activation.
//
//   y   = (x - mean) / sqrt(variance + eps)                        CENTER 0: x / sqrt(mean of x^2 + eps)
//   out = act((y * weight + bias) * (1 + scale) + shift)
//
// Wu and He 2018 (arXiv:1803.08494); Ba, Kiros and Hinton 2016 (arXiv:1607.06450); Zhang and Sennrich
// 2019 (arXiv:1910.07467). Variance in two passes over the row, the second correcting the mean of the
// first (Chan, Golub and LeVeque 1983): exact to rounding however large the mean is.
//
// A row is what one mean is taken over: a (sample, group) or a token. Its elements lie along up to three
// axes, inner (densest), mid and outer, with free strides on both sides; see NormParams. Neighbours along
// the inner axis come in spans of WIDTH: two where 16-bit elements share a word.
//
//   span v of a row  ->  i = v % (inner / WIDTH) * WIDTH,  m = v / (inner / WIDTH) % mid,  o = the rest
//   row  = workgroup * (THREADS / LANES) + invocation / LANES
//   lane = invocation % LANES takes spans lane, lane + LANES, .., three times over
//
// Consts: THREADS and LANES powers of two, LANES <= THREADS; SUBGROUP_SUM 1 where they are equal and the
// adapter has subgroups; WIDTH 1|2; PAIRS 1 when WIDTH is 2; FLAT 1 when there is an inner axis only;
// CHANNEL_INNER 1 when the inner axis is the channels; CENTER 0|1; ACT.
// Workgroup memory: THREADS floats, one partial sum an invocation (or a subgroup).

#include "common/activation.wgsl"

var<workgroup> sums: array<f32, THREADS>;

#if SUBGROUP_SUM
struct Subgroup { index: u32, count: u32, lane: u32 }
var<private> subgroup: Subgroup;
#endif

// The sum over a row, given to each of its lanes. Every invocation of the workgroup takes part.
fn row_sum(value: f32, thread: u32) -> f32 {
    var total = 0.0;
#if SUBGROUP_SUM
    let sum = subgroupAdd(value);
    if (subgroup.lane == 0u) { sums[subgroup.index] = sum; }
    workgroupBarrier(); // every subgroup's sum is there before anyone adds them up
    for (var s = 0u; s < subgroup.count; s += 1u) { total += sums[s]; }
    workgroupBarrier(); // everyone has read before the next sum overwrites them
#else
    let lane = thread % LANES;
    sums[thread] = value;
    workgroupBarrier(); // every lane's value is there
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if (lane < step) { sums[thread] += sums[thread + step]; }
        workgroupBarrier(); // this level of the tree is done
    }
    total = sums[thread - lane];
    workgroupBarrier(); // everyone has read before the next sum overwrites it
#endif
    return total;
}

struct Place { x: u32, out: u32, channel: u32 }

// Where span v of a row is, relative to the row.
fn place(v: u32) -> Place {
#if FLAT
    let i = v * WIDTH;
    return Place(i * p.x_i, i * p.out_i, i * p.ch_i);
#else
    let spans = p.inner / WIDTH;
    let i = v % spans * WIDTH;
    let m = v / spans % p.mid;
    let o = v / spans / p.mid;
    return Place(
        i * p.x_i + m * p.x_m + o * p.x_o,
        i * p.out_i + m * p.out_m + o * p.out_o,
        i * p.ch_i + m * p.ch_m + o * p.ch_o,
    );
#endif
}

// Factor and summand that the deviation, divided by its standard deviation, gets in channel c of sample n.
fn affine(n: u32, c: u32) -> vec2<f32> {
    var factor = 1.0;
    var summand = 0.0;
#if HAS_WEIGHT
    factor = load_weight(c * p.weight_c);
#endif
#if HAS_BIAS
    summand = load_bias(c * p.bias_c);
#endif
#if HAS_SCALE
    let scale = load_scale(n * p.scale_n + c * p.scale_c);
    factor = fma(factor, scale, factor);
    summand = fma(summand, scale, summand);
#endif
#if HAS_SHIFT
    summand += load_shift(n * p.shift_n + c * p.shift_c);
#endif
    return vec2<f32>(factor, summand);
}

@compute @workgroup_size(THREADS)
fn normalize(
    @builtin(workgroup_id) block: vec3<u32>,
    @builtin(num_workgroups) blocks: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
#if SUBGROUP_SUM
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(num_subgroups) num_subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
) {
#if SUBGROUP_SUM
    subgroup = Subgroup(subgroup_id, num_subgroups, subgroup_lane);
#endif
    let row = (block.x + block.y * blocks.x) * (THREADS / LANES) + thread / LANES;
    let n = row / p.per_sample;
    let r = row % p.per_sample;
    let lane = thread % LANES;
    let x_row = n * p.x_n + r * p.x_r;
    let out_row = n * p.out_n + r * p.out_r;
    // Rows past the last have no spans, but their lanes meet the others at the barriers.
    let spans = select(0u, p.len / WIDTH, row < p.rows);
    let count = f32(p.len);

    var mean = 0.0;
#if CENTER
    for (var v = lane; v < spans; v += LANES) {
        let at = x_row + place(v).x;
        for (var i = 0u; i < WIDTH; i += 1u) { mean += load_x(at + i); }
    }
    mean = row_sum(mean, thread) / count;
#endif
    var first = 0.0;
    var second = 0.0;
    for (var v = lane; v < spans; v += LANES) {
        let at = x_row + place(v).x;
        for (var i = 0u; i < WIDTH; i += 1u) {
            let d = load_x(at + i) - mean;
            first += d;
            second = fma(d, d, second);
        }
    }
    var variance = row_sum(second, thread) / count;
#if CENTER
    let correction = row_sum(first, thread) / count;
    mean += correction;
    variance = max(variance - correction * correction, 0.0);
#endif
    let inverse = inverseSqrt(variance + p.eps);

    for (var v = lane; v < spans; v += LANES) {
        let at = place(v);
        let c = r * p.ch_r + at.channel;
        var y: array<f32, WIDTH>;
        var map = affine(n, c);
        for (var i = 0u; i < WIDTH; i += 1u) {
#if CHANNEL_INNER
            if (i > 0u) { map = affine(n, c + i); }
#endif
            y[i] = activate(fma((load_x(x_row + at.x + i) - mean) * inverse, map.x, map.y), ACT);
        }
#if PAIRS
        store2_out(out_row + at.out, y[0], y[1]);
#else
        store_out(out_row + at.out, y[0]);
#endif
    }
}
