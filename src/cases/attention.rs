//! Cases of attention: token counts around every tile size, heads of all kinds, the strides of packed
//! projections and of images, scores that overflow a careless softmax.

use crate::dtype::Dtype;
use crate::ops::{Attention, AttentionArgs};
use crate::reference::{self, Dense, Expected};
use crate::verify::{Case, Fill, Layout, Verified, view};
use crate::view::View;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Batch, heads, queries, keys, elements of a head.
type Sizes = [usize; 5];

/// What the name of a case says of its op besides the scale.
fn scores(op: &Attention) -> String {
    let mut name = String::new();
    let keys = |side: Option<u32>| side.map_or("all".to_owned(), |n| n.to_string());
    if !op.window.is_all() {
        name += &format!(" window={},{}", keys(op.window.left), keys(op.window.right));
    }
    if op.softcap > 0.0 {
        name += &format!(" softcap={}", op.softcap);
    }
    name
}

/// How the operands lie.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lay {
    /// Row-major `[b, h, n, d]`.
    Heads,
    /// Row-major `[b, n, h, d]`: channels-last images, projections of their own.
    Tokens,
    /// Row-major `[b, h, d, n]`: the channels of an NCHW image.
    Channels,
    /// Q, K and V of one projection `[b, n, 3, h, d]`, the result `[b, n, h, d]`.
    Packed,
    /// Q, K and V of the channels of one image `[b, 3, h, d, n]`, the result `[b, h, d, n]`.
    PackedChannels,
    /// Unused elements between the rows of every axis.
    Gaps,
    /// Row-major, each row padded to a multiple of 8 elements.
    Pitched,
    /// Each operand in another order, with gaps: no axis has stride 1.
    Mixed,
    /// One K and V for all heads.
    SharedKeys,
}

impl Lay {
    const ALL: [(&'static str, Self); 9] = [
        ("heads", Self::Heads),
        ("tokens", Self::Tokens),
        ("channels", Self::Channels),
        ("packed", Self::Packed),
        ("packed-channels", Self::PackedChannels),
        ("gaps", Self::Gaps),
        ("pitched", Self::Pitched),
        ("mixed", Self::Mixed),
        ("shared-keys", Self::SharedKeys),
    ];

    /// One operand: 0, 1, 2 for Q, K, V and 3 for the result.
    fn view<M>(self, operand: usize, dtype: Dtype, shape: [usize; 4], memory: M) -> View<M> {
        let [_, h, n, d] = shape;
        let (strides, offset) = match self {
            Self::Packed if operand < 3 => ([n * 3 * h * d, d, 3 * h * d, 1], operand * h * d),
            Self::PackedChannels if operand < 3 => ([3 * h * d * n, d * n, 1, n], operand * h * d * n),
            Self::Mixed => {
                let mut strides = [0; 4];
                let mut next = 2;
                for axis in [[3, 2, 1, 0], [2, 1, 0, 3], [3, 0, 1, 2], [2, 3, 0, 1]][operand] {
                    strides[axis] = next;
                    next = next * shape[axis].max(1) + 1;
                }
                (strides, 1)
            }
            _ => {
                let layout = match self {
                    Self::Tokens | Self::Packed => Layout::Order(vec![0, 2, 1, 3]),
                    Self::Channels | Self::PackedChannels => Layout::Order(vec![0, 1, 3, 2]),
                    Self::Gaps => Layout::Gaps(vec![0, 2, 1, 3]),
                    Self::Pitched => Layout::Pitched(vec![0, 1, 2, 3]),
                    Self::SharedKeys if operand == 1 || operand == 2 => Layout::Broadcast(vec![1]),
                    _ => Layout::Contiguous,
                };
                return view(dtype, &shape, &layout, memory);
            }
        };
        View::strided(memory, dtype, &shape, &strides, offset).expect("four sizes, four strides")
    }
}

/// What fills Q, K and V.
type Fills = [Fill; 3];

fn normal() -> Fills {
    [Fill::Normal(1.0), Fill::Normal(1.0), Fill::Normal(1.0)]
}

fn case(
    op: Attention,
    dtype: Dtype,
    sizes: Sizes,
    lay: (&str, Lay),
    name: &str,
    fills: Fills,
) -> Case<Attention> {
    grouped(op, dtype, sizes, sizes[1], lay, name, fills)
}

/// With fewer heads of K and V.
fn grouped(
    op: Attention,
    dtype: Dtype,
    sizes: Sizes,
    kv: usize,
    lay: (&str, Lay),
    name: &str,
    fills: Fills,
) -> Case<Attention> {
    let [b, h, nq, nk, d] = sizes;
    let [q, k, v] = fills;
    let (layout, lay) = lay;
    let heads = if kv == h { h.to_string() } else { format!("{h}/{kv}") };
    Case {
        name: format!("b={b} h={heads} nq={nq} nk={nk} d={d} layout={layout}{} values={name}", scores(&op)),
        op,
        args: AttentionArgs {
            q: lay.view(0, dtype, [b, h, nq, d], q),
            k: lay.view(1, dtype, [b, kv, nk, d], k),
            v: lay.view(2, dtype, [b, kv, nk, d], v),
            out: lay.view(3, dtype, [b, h, nq, d], ()),
        },
    }
}

/// Windows around the edges of tiles, of 16 to 128 keys and queries: causal with as many keys as queries, with fewer (the
/// first queries see none) and more; sliding; all on one side; nothing at all for anyone.
fn windows() -> Vec<(Sizes, Option<u32>, Option<u32>)> {
    vec![
        ([1, 2, 1, 1, 8], None, Some(0)),
        ([1, 2, 70, 70, 32], None, Some(0)),
        ([2, 1, 65, 130, 40], None, Some(0)),
        ([1, 1, 130, 65, 16], None, Some(0)),
        ([1, 1, 200, 3, 7], None, Some(0)),
        ([1, 2, 1, 90, 64], None, Some(0)),
        ([1, 1, 300, 300, 24], Some(20), Some(0)),
        ([1, 1, 150, 150, 72], Some(0), Some(0)),
        ([1, 1, 129, 140, 8], Some(3), Some(5)),
        ([1, 1, 66, 260, 33], Some(64), Some(64)),
        ([1, 1, 70, 70, 16], Some(31), None),
        ([1, 1, 20, 300, 16], Some(100), Some(0)),
        ([1, 1, 90, 40, 16], Some(7), Some(3)),
        ([1, 1, 40, 40, 16], Some(u32::MAX), Some(u32::MAX)),
        ([1, 1, 5, 0, 16], None, Some(0)),
    ]
}

/// Values whose scores go where a softmax is hurt. `d` is the size of a head.
fn extremes(dtype: Dtype, nk: usize, d: usize) -> Vec<(&'static str, Attention, Fills)> {
    let op = Attention::new(d);
    let exact = Attention::scaled(1.0);
    // One key in five is longer than the others: as Q is positive, it takes nearly all the weight.
    let spiked = (0..nk * d).map(|e| if e / d % 5 == 3 { 8.0 } else { 0.25 }).collect();
    let rising = (0..nk * d).map(|e| (e / d) as f32 * 0.125).collect();
    let falling = (0..nk * d).map(|e| (nk - e / d) as f32 * 0.125).collect();
    // Halves, so that every score is exact and only the exponentials can go wrong.
    let halves = |n: i32| Fill::Values((-n..=n).map(|x| x as f32 * 0.5).collect());
    // Near the top of the dtype, but where a sum over all keys still fits f32.
    let large = Fill::Constant((0.25 * dtype.largest().min(1e36)) as f32);
    vec![
        ("equal", op, [Fill::Constant(0.5), Fill::Constant(-1.5), Fill::Normal(1.0)]),
        ("all-equal", op, [Fill::Constant(1.0), Fill::Constant(1.0), Fill::Constant(-3.25)]),
        ("dominated", op, [Fill::Constant(4.0), Fill::Values(spiked), Fill::Normal(1.0)]),
        ("rising", op, [Fill::Constant(2.0), Fill::Values(rising), Fill::Normal(1.0)]),
        ("falling", op, [Fill::Constant(2.0), Fill::Values(falling), Fill::Normal(1.0)]),
        // Scores of some 1e4 either way: e to that power is past every float.
        ("ten-thousands", exact, [halves(31), halves(40), Fill::Uniform(-1.0, 1.0)]),
        ("minus-ten-thousand", exact, [Fill::Constant(16.0), Fill::Constant(-20.0), Fill::Normal(1.0)]),
        ("large-v", op, [Fill::Normal(1.0), Fill::Normal(1.0), large]),
        ("tiny", op, [Fill::Normal(1e-3), Fill::Normal(1e-3), Fill::Normal(1e-3)]),
        ("scale-negative", Attention::scaled(-0.75), normal()),
        ("scale-zero", Attention::scaled(0.0), normal()),
    ]
}

impl Verified for Attention {
    fn cases(dtype: Dtype) -> Vec<Case<Self>> {
        let mut all = Vec::new();
        let mut add = |sizes: Sizes, lay| {
            all.push(case(Self::new(sizes[4]), dtype, sizes, lay, "normal", normal()));
        };
        let heads = Lay::ALL[0];
        // Token counts on both sides of the tiles of 16, 32, 48 and 64.
        for [nq, nk] in [
            [1, 1],
            [1, 7],
            [7, 1],
            [17, 33],
            [49, 49],
            [63, 64],
            [64, 63],
            [64, 64],
            [65, 65],
            [65, 1],
            [1, 130],
            [130, 7],
            [130, 65],
            [12, 300],
        ] {
            add([1, 1, nq, nk, 32], heads);
        }
        // Every kind of head: odd, not a multiple of 8, of 16, of 32; the largest.
        for d in [1, 2, 7, 8, 16, 24, 40, 64, 72, 80, 96, 128, 160, 200, 256, 300, 512] {
            add([1, 2, 19, 35, d], heads);
        }
        for lay in Lay::ALL {
            add([2, 3, 21, 37, 32], lay);
            add([2, 2, 18, 17, 7], lay);
            add([1, 2, 33, 66, 40], lay);
        }
        // The demonstration model: 14 x 14 and 7 x 7 pixels.
        for lay in [Lay::ALL[3], Lay::ALL[4]] {
            add([1, 1, 196, 196, 32], lay);
            add([2, 3, 49, 49, 32], lay);
        }
        // A prime number of blocks: the grids of the tests, folded at 3 and 50, have one past the last.
        add([1, 53, 3, 5, 8], heads);
        // Nothing: no batch, no heads, no queries, no keys (the result is 0), empty heads.
        for sizes in [[0, 2, 5, 5, 8], [1, 0, 5, 5, 8], [1, 2, 0, 5, 8], [2, 2, 5, 0, 8], [1, 1, 3, 3, 0]] {
            add(sizes, heads);
        }
        add([1, 2, 66, 0, 40], Lay::ALL[4]);
        // Blocks enough that a warp of CUDA takes two tiles of queries: heads whose queries it keeps in registers, and
        // larger ones; whole tiles of keys and ragged ones.
        for (nk, d, lay) in [
            (128, 32, 0),
            (49, 40, 1),
            (70, 64, 0),
            (65, 64, 2),
            (70, 80, 3),
            (64, 96, 5),
            (49, 112, 0),
            (70, 128, 0),
            (33, 128, 2),
        ] {
            add([5, 4, 66, nk, d], Lay::ALL[lay]);
        }
        let negative = Self::scaled(-0.75);
        all.push(case(negative, dtype, [5, 4, 66, 40, 72], heads, "scale-negative", normal()));
        for (sizes, left, right) in windows() {
            let op = Self::new(sizes[4]).window(left, right);
            all.push(case(op, dtype, sizes, heads, "normal", normal()));
        }
        // A window over two tiles of queries a warp, queries in registers and in shared memory; other layouts.
        for (nk, d, lay) in [(66, 64, 0), (130, 40, 1), (70, 128, 0), (50, 80, 2)] {
            let op = Self::new(d).window(Some(40), Some(9));
            all.push(case(op, dtype, [5, 4, 70, nk, d], Lay::ALL[lay], "normal", normal()));
        }
        for (sizes, kv, lay) in [
            ([2, 6, 19, 33, 32], 2, 0),
            ([1, 4, 70, 66, 40], 1, 1),
            ([2, 8, 5, 70, 7], 4, 2),
            ([5, 4, 66, 40, 64], 2, 0),
            ([5, 4, 66, 40, 96], 1, 1),
            ([1, 3, 4, 0, 8], 1, 0),
        ] {
            let (op, lay) = (Self::new(sizes[4]), Lay::ALL[lay]);
            all.push(grouped(op, dtype, sizes, kv, lay, "normal", normal()));
            all.push(grouped(op.causal(), dtype, sizes, kv, lay, "normal", normal()));
        }
        for (softcap, spread) in [(0.5, 1.0), (5.0, 4.0), (50.0, 8.0), (1e-30, 1.0), (1e30, 1.0)] {
            let fills = [Fill::Normal(spread), Fill::Normal(spread), Fill::Normal(1.0)];
            let op = Self::scaled(0.3).softcap(softcap);
            let name = format!("spread-{spread}");
            all.push(case(op, dtype, [1, 2, 33, 70, 32], heads, &name, fills.clone()));
            all.push(case(op.causal(), dtype, [5, 4, 66, 65, 72], heads, &name, fills));
        }
        all.push(case(Self::scaled(-0.3).softcap(2.0), dtype, [1, 2, 20, 70, 32], heads, "normal", normal()));
        for (name, op, fills) in extremes(dtype, 70, 32) {
            all.push(case(op, dtype, [1, 1, 20, 70, 32], heads, name, fills.clone()));
            let window = op.window(Some(9), Some(2));
            all.push(case(window, dtype, [1, 1, 40, 70, 32], heads, name, fills));
        }
        for (name, op, fills) in extremes(dtype, 33, 7) {
            all.push(case(op, dtype, [1, 2, 5, 33, 7], Lay::ALL[2], name, fills));
        }
        all
    }

    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self> {
        let sizes = [
            rng.random_range(0..3),
            rng.random_range(1..4),
            rng.random_range(0..70),
            rng.random_range(0..140),
            if rng.random() { 8 * rng.random_range(1..10) } else { rng.random_range(1..90) },
        ];
        let lay = Lay::ALL[rng.random_range(0..Lay::ALL.len())];
        let deviation = if rng.random() { 1.0 } else { 4.0 };
        let fills = [Fill::Normal(deviation), Fill::Normal(deviation), Fill::Uniform(-2.0, 2.0)];
        let name = if deviation == 1.0 { "normal" } else { "wide" };
        let side = |rng: &mut ChaCha8Rng| rng.random::<bool>().then(|| rng.random_range(0..100));
        let op = match rng.random_range(0..4) {
            0 => Self::new(sizes[4]).causal(),
            1 => Self::new(sizes[4]).window(side(rng), side(rng)),
            2 => Self::new(sizes[4]).softcap(rng.random_range(0.5..30.0)),
            _ => Self::new(sizes[4]),
        };
        // SharedKeys repeats its one head by a stride of 0.
        let kv = if rng.random() { 1 } else { sizes[1] };
        grouped(op, dtype, sizes, kv, lay, name, fills)
    }

    fn reference(&self, args: &AttentionArgs<Dense, ()>) -> Vec<Expected> {
        vec![reference::attention::attention(self, args)]
    }
}
