//! Cases of attention: token counts around every tile size, heads of all kinds, the strides of packed
//! projections and of images, scores that overflow a careless softmax.

use crate::dtype::Dtype;
use crate::ops::attention::Places;
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
pub(super) enum Lay {
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
    pub(super) const ALL: [(&'static str, Self); 9] = [
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

    /// The same for an operand of its own sizes, which is no part of one projection.
    pub(super) fn apart(self) -> Self {
        match self {
            Self::Packed => Self::Tokens,
            Self::PackedChannels => Self::Channels,
            other => other,
        }
    }

    /// One operand: 0, 1, 2 for Q, K, V and 3 for the result.
    pub(super) fn view<M>(self, operand: usize, dtype: Dtype, shape: [usize; 4], memory: M) -> View<M> {
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
        args: AttentionArgs::new(
            lay.view(0, dtype, [b, h, nq, d], q),
            lay.view(1, dtype, [b, kv, nk, d], k),
            lay.view(2, dtype, [b, kv, nk, d], v),
            lay.view(3, dtype, [b, h, nq, d], ()),
        ),
    }
}

/// What a case has besides the necessary.
#[derive(Debug, Clone)]
enum Extra {
    /// Heads of V of another size.
    ValueDim(usize),
    /// A bias: whether it is in f32 or in the dtype of the others, how it lies, what fills it.
    Bias(bool, Layout, Fill),
    /// A mask that hides keys here and there, and all of them from some queries.
    Mask(Layout),
    /// Lengths of the sequences, repeated.
    QueryLengths(&'static [i32]),
    KeyLengths(&'static [i32]),
    Slopes,
    Sinks(&'static [f32]),
    Lse,
    /// Queries, or keys, of all sequences in a row: how many each has. Keys with others around them.
    PackedQueries(&'static [usize]),
    PackedKeys(&'static [usize]),
    /// Of packed sequences, how long the longest are, said.
    MaxSeqlens,
    /// Starts of packed sequences before the first token and after the last, and of keys one that is less than before.
    WildStarts,
    /// The start of the last sequence, far behind the last token.
    LateStarts,
    /// Keys in pages of so many tokens, in no order, and how many keys each sequence has.
    Pages(usize, &'static [i32]),
    /// The first pages of such keys before the pool and behind it.
    WildPages,
    /// Parts of the keys, each with a result. To be the last.
    Splits(u32),
}

impl Extra {
    /// The case with it.
    fn to(&self, mut case: Case<Attention>, lay: Lay) -> Case<Attention> {
        let Places { b, nq, nk, .. } = Places::of(&case.op, &case.args).expect("a case that is right so far");
        let args = &mut case.args;
        let dtype = args.q.dtype();
        let (&[q_b, h, q_n, d], &[k_b, kv, k_n, _]) = (args.q.shape(), args.k.shape()) else {
            unreachable!("four axes")
        };
        let scores = [b, h, nq, nk];
        let lengths = |list: &[i32]| {
            let values = Fill::Values(list.iter().map(|&n| n as f32).collect());
            Some(view(Dtype::I32, &[b], &Layout::Contiguous, values))
        };
        let name = match self {
            Self::ValueDim(dv) => {
                args.v = lay.view(2, dtype, [k_b, kv, k_n, *dv], args.v.memory().clone());
                args.out = lay.view(3, dtype, [q_b, h, q_n, *dv], ());
                format!("dv={dv}")
            }
            Self::Bias(single, layout, fill) => {
                let dtype = if *single { Dtype::F32 } else { dtype };
                args.bias = Some(view(dtype, &scores, layout, fill.clone()));
                let values = match fill {
                    Fill::Normal(deviation) => format!("{deviation}"),
                    _ => "hiding".into(),
                };
                format!("bias={dtype},{layout:?},{values}")
            }
            Self::Mask(layout) => {
                let one = |at: usize| {
                    let (row, j) = (at / nk.max(1), at % nk.max(1));
                    let i = row % nq.max(1);
                    let some = (i * 7 + j * 3 + row) % 5 < 3 || j % 37 == 5;
                    f32::from(if some && i % 4 != 1 { (1 + j % 255) as u8 } else { 0 })
                };
                let values = Fill::Values((0..(b * h * nq * nk).max(1)).map(one).collect());
                args.mask = Some(view(Dtype::U8, &scores, layout, values));
                format!("mask={layout:?}")
            }
            Self::QueryLengths(list) => {
                args.q_lengths = lengths(list);
                // What lies past the end of a sequence may be anything.
                if args.cu_seqlens_q.is_none() {
                    let one = |at: usize| {
                        let (b, i) = (at / d.max(1) / nq.max(1) / h.max(1), at / d.max(1) % nq.max(1));
                        if (i as i32) < list[b % list.len()] { some(at) } else { f32::NAN }
                    };
                    *args.q.memory_mut() = Fill::Values((0..(b * h * nq * d).max(1)).map(one).collect());
                }
                format!("q_lengths={list:?}")
            }
            Self::KeyLengths(list) => {
                args.k_lengths = lengths(list);
                if args.cu_seqlens_k.is_some() {
                    case.name += &format!(" k_lengths={list:?}").replace(", ", ",");
                    return case;
                }
                // What lies past the end of a sequence may be anything.
                for view in [&mut args.k, &mut args.v] {
                    let d = view.shape()[3].max(1);
                    let one = |at: usize| {
                        let (b, j) = (at / d / nk.max(1) / kv.max(1), at / d % nk.max(1));
                        if (j as i32) < list[b % list.len()] { some(at) } else { f32::NAN }
                    };
                    *view.memory_mut() = Fill::Values((0..(b * kv * nk * d).max(1)).map(one).collect());
                }
                format!("k_lengths={list:?}")
            }
            Self::Slopes => {
                let slopes = Fill::Values((0..h.max(1)).map(|i| 0.5f32.powi(1 + i as i32)).collect());
                args.slopes = Some(view(Dtype::F32, &[b, h], &Layout::Broadcast(vec![0]), slopes));
                "slopes".into()
            }
            Self::Sinks(list) => {
                let sinks = Fill::Values(list.to_vec());
                args.sinks = Some(view(Dtype::F32, &[h], &Layout::Contiguous, sinks));
                format!("sinks={list:?}")
            }
            Self::Lse => {
                args.lse = Some(view(Dtype::F32, &[q_b, h, q_n], &Layout::Gaps(vec![0, 2, 1]), ()));
                "lse".into()
            }
            Self::PackedQueries(list) => {
                let (starts, total) = packed(list, 0);
                args.cu_seqlens_q = Some(starts);
                args.q = lay.view(0, dtype, [1, h, total, d], args.q.memory().clone());
                args.out = lay.view(3, dtype, [1, h, total, args.out.shape()[3]], ());
                format!("packed_q={list:?}")
            }
            Self::PackedKeys(list) => {
                const BEFORE: usize = 3;
                let (starts, end) = packed(list, BEFORE);
                args.cu_seqlens_k = Some(starts);
                for (operand, view) in [(1, &mut args.k), (2, &mut args.v)] {
                    let d = view.shape()[3];
                    let one = |at: usize| {
                        let live = (BEFORE..end).contains(&(at / d.max(1) % (end + 2)));
                        if live { some(at) } else { f32::NAN }
                    };
                    let values = Fill::Values((0..(kv * (end + 2) * d).max(1)).map(one).collect());
                    *view = lay.view(operand, dtype, [1, kv, end + 2, d], values);
                }
                format!("packed_k={list:?}")
            }
            Self::WildStarts => {
                let wild = |starts: &mut Option<View<Fill>>, last: Option<f32>| {
                    let Some(Fill::Values(starts)) = starts.as_mut().map(View::memory_mut) else { return };
                    let n = starts.len();
                    (starts[0], starts[n - 1]) = (-7.0, i32::MAX as f32);
                    starts[n - 2] = last.unwrap_or(starts[n - 2]);
                };
                wild(&mut args.cu_seqlens_q, None);
                wild(&mut args.cu_seqlens_k, Some(1.0));
                any_key(args);
                "wild".into()
            }
            Self::LateStarts => {
                for starts in [&mut args.cu_seqlens_q, &mut args.cu_seqlens_k] {
                    let Some(Fill::Values(starts)) = starts.as_mut().map(View::memory_mut) else { continue };
                    let n = starts.len();
                    starts[n - 2] = i32::MAX as f32;
                }
                any_key(args);
                "late".into()
            }
            Self::WildPages => {
                if let Some(Fill::Values(table)) = args.block_table.as_mut().map(View::memory_mut) {
                    table[0] = -5.0;
                    table[1] = i32::MAX as f32;
                }
                any_key(args);
                "wild".into()
            }
            Self::MaxSeqlens => {
                let longest = |starts: &Option<View<Fill>>| {
                    let Some(Fill::Values(starts)) = starts.as_ref().map(View::memory) else { return None };
                    starts.windows(2).map(|w| (w[1] - w[0]) as u32).max()
                };
                let (q, k) = (longest(&args.cu_seqlens_q), longest(&args.cu_seqlens_k));
                (case.op.max_seqlen_q, case.op.max_seqlen_k) = (q, k);
                format!("max={q:?},{k:?}")
            }
            Self::Pages(page, list) => {
                let pages = nk.div_ceil(*page);
                // A few that belong to nobody; 7 and their number have no divisor in common.
                let pool = (b * pages + 2..).find(|n| n % 7 != 0).unwrap_or(1);
                let length = |b: usize| list[b % list.len()].max(0) as usize;
                let entry = |b: usize, i: usize| (b * pages + i) * 7 % pool;
                let mut live = vec![0; pool];
                let mut table = Vec::new();
                for b in 0..b {
                    for i in 0..pages {
                        live[entry(b, i)] = length(b).saturating_sub(i * page).min(*page);
                        // What is past the end is not read.
                        table.push(if i * page < length(b) { entry(b, i) as f32 } else { -1e9 });
                    }
                }
                let table = if table.is_empty() { vec![0.0] } else { table };
                let order = Layout::Order(vec![1, 0]);
                args.block_table = Some(view(Dtype::I32, &[b, pages], &order, Fill::Values(table)));
                args.k_lengths = lengths(list);
                for (operand, view) in [(1, &mut args.k), (2, &mut args.v)] {
                    let d = view.shape()[3];
                    let row = d.max(1);
                    let one = |at: usize| {
                        let (token, entry) = (at / row % page, at / row / page / kv.max(1));
                        if live.get(entry).is_some_and(|&live| token < live) { some(at) } else { f32::NAN }
                    };
                    let values = Fill::Values((0..(pool * kv * page * row).max(1)).map(one).collect());
                    *view = lay.view(operand, dtype, [pool, kv, *page, d], values);
                }
                format!("page={page} k_lengths={list:?}")
            }
            Self::Splits(splits) => {
                let s = *splits as usize;
                let (batch, tokens, dv) = (args.out.shape()[0], args.out.shape()[2], args.out.shape()[3]);
                case.op.splits = *splits;
                let shape = [s, batch, h, tokens, dv];
                args.out = match splits {
                    2 => view(dtype, &shape, &Layout::Contiguous, ()),
                    // Parts an odd number of elements apart: aligned is only the first.
                    4 => {
                        let part = batch * h * tokens * dv;
                        let strides = [part + 1 + part % 2, h * tokens * dv, tokens * dv, dv, 1];
                        View::strided((), dtype, &shape, &strides, 0).expect("five sizes, five strides")
                    }
                    _ => view(dtype, &shape, &Layout::Gaps(vec![1, 0, 3, 2, 4]), ()),
                };
                args.lse =
                    Some(view(Dtype::F32, &[s, batch, h, tokens], &Layout::Gaps(vec![2, 0, 1, 3]), ()));
                format!("splits={splits}")
            }
        };
        case.name = format!("{} {}", case.name, name.replace(' ', ""));
        case
    }
}

/// Any token of K and V may be seen: none is NaN.
fn any_key(args: &mut AttentionArgs<Fill, ()>) {
    for view in [&mut args.k, &mut args.v] {
        let values = Fill::Values((0..view.shape().iter().product()).map(some).collect());
        *view.memory_mut() = values;
    }
}

/// Some numbers, by where they are.
fn some(at: usize) -> f32 {
    (at * 7919 % 1999) as f32 / 1000.0 - 1.0
}

/// Where sequences of these lengths start, the first at token `first`, and where the last ends.
fn packed(lengths: &[usize], first: usize) -> (View<Fill>, usize) {
    let mut starts = vec![first];
    for length in lengths {
        starts.push(starts[starts.len() - 1] + length);
    }
    let end = starts[starts.len() - 1];
    let values = Fill::Values(starts.iter().map(|&n| n as f32).collect());
    (view(Dtype::I32, &[starts.len()], &Layout::Gaps(vec![0]), values), end)
}

/// Biases whose values hide some keys: infinite, the least number, and around what hides.
fn hiding() -> Fill {
    Fill::Values(vec![0.5, f32::NEG_INFINITY, -1.0, -1e38, 2.0, f32::MIN, -3.0, 0.0, -0.25, -9e3, 1.0])
}

/// Extras alone and as models combine them: sizes, heads of K and V, the op, the extras.
fn extras() -> Vec<(Sizes, usize, Attention, Vec<Extra>)> {
    use Extra::{
        Bias, KeyLengths, LateStarts, Lse, Mask, MaxSeqlens, PackedKeys, PackedQueries, Pages, QueryLengths,
        Sinks, Slopes, Splits, ValueDim, WildPages, WildStarts,
    };
    let rows = || Layout::Contiguous;
    let per_head = || Layout::Broadcast(vec![0]);
    let per_key = || Layout::Broadcast(vec![1, 2]);
    let soft = || Fill::Normal(2.0);
    let plain = Attention::scaled(0.2);
    let causal = plain.causal();
    let small: Sizes = [2, 3, 37, 70, 40];
    // Blocks enough that a warp takes two tiles of queries.
    let large: Sizes = [5, 4, 66, 70, 64];
    vec![
        (small, 3, plain, vec![Bias(true, rows(), soft())]),
        (small, 3, plain, vec![Bias(false, rows(), soft())]),
        (small, 3, plain, vec![Bias(true, Layout::Gaps(vec![3, 0, 2, 1]), hiding()), Lse]),
        (small, 3, plain, vec![Mask(rows())]),
        (small, 3, plain, vec![Mask(Layout::Gaps(vec![3, 1, 0, 2])), Lse]),
        (small, 3, plain, vec![Slopes]),
        (small, 3, plain, vec![Sinks(&[0.5, -4.0, 30.0])]),
        (small, 3, plain, vec![Lse]),
        (small, 3, plain, vec![QueryLengths(&[20, 37]), Lse]),
        (small, 3, plain, vec![KeyLengths(&[70, 33]), Lse]),
        (
            [4, 1, 40, 50, 16],
            1,
            causal,
            vec![QueryLengths(&[40, 7, 0, -3]), KeyLengths(&[20, 99, 50, 0]), Lse],
        ),
        // The bias of T5, over two tiles of queries a warp.
        (large, 4, Attention::scaled(1.0), vec![Bias(false, per_head(), soft())]),
        // Keys that only pad: a mask, a bias or lengths.
        (large, 4, plain, vec![Mask(per_key())]),
        (large, 4, plain, vec![Bias(false, per_key(), hiding())]),
        (large, 2, causal, vec![KeyLengths(&[1, 70, 64, 0, 69]), QueryLengths(&[1, 66, 64, 5, 0]), Lse]),
        // Windows of Swin: a bias for each head, and a mask for each window.
        (
            [4, 3, 49, 49, 32],
            3,
            plain,
            vec![Bias(true, per_head(), soft()), Mask(Layout::Broadcast(vec![1]))],
        ),
        // ALiBi, sinks (gpt-oss), decoding from caches of several lengths.
        ([2, 4, 70, 70, 32], 4, causal, vec![Slopes, Lse]),
        (
            [1, 8, 70, 130, 64],
            2,
            plain.window(Some(31), Some(0)),
            vec![Sinks(&[1.0, -2.0, f32::NEG_INFINITY])],
        ),
        ([3, 8, 1, 200, 64], 2, causal, vec![KeyLengths(&[200, 17, 64]), Lse]),
        // Past a part of the CPU's few queries.
        ([1, 4, 2, 1300, 40], 2, causal, vec![Lse, Slopes, Sinks(&[2.0, -3.0, 0.5])]),
        (
            [2, 2, 3, 1100, 20],
            1,
            causal.softcap(3.0),
            vec![ValueDim(70), KeyLengths(&[1030, 9]), Mask(rows())],
        ),
        ([2, 2, 5, 100, 80], 1, causal, vec![KeyLengths(&[64, 100]), Sinks(&[0.0]), Slopes]),
        // Other heads of V (MLA has 192 and 128), and nothing of one of them.
        ([1, 2, 33, 50, 192], 1, causal, vec![ValueDim(128), Lse]),
        ([1, 2, 33, 50, 64], 2, plain, vec![ValueDim(24)]),
        ([5, 4, 66, 50, 32], 4, plain, vec![ValueDim(100), Lse]),
        ([1, 2, 20, 33, 7], 2, plain, vec![ValueDim(300)]),
        ([1, 2, 20, 33, 8], 2, plain, vec![ValueDim(0), Lse]),
        ([1, 2, 20, 33, 0], 2, plain, vec![ValueDim(8), Bias(true, rows(), soft())]),
        ([1, 1, 70, 200, 0], 1, plain, vec![ValueDim(40)]),
        ([1, 2, 3, 200, 0], 2, causal, vec![ValueDim(8), Sinks(&[-2e38, 1.0]), Lse]),
        ([1, 2, 5, 0, 8], 2, plain, vec![Lse, Sinks(&[0.5]), Mask(rows())]),
        // Large heads that have a bias and a mask.
        ([1, 1, 20, 70, 128], 1, causal, vec![Bias(false, rows(), soft()), Mask(rows()), Slopes, Lse]),
        ([1, 1, 20, 70, 256], 1, plain.softcap(9.0), vec![Bias(true, rows(), soft()), Mask(rows()), Slopes]),
        // Packed sequences: of many lengths, of none, over several tiles of queries; alone, causal, with what is sized for the
        // longest; queries packed and keys from a cache.
        ([3, 3, 1, 1, 32], 3, plain, vec![PackedQueries(&[5, 0, 70]), PackedKeys(&[9, 20, 66])]),
        (
            [3, 4, 1, 1, 64],
            2,
            causal,
            vec![PackedQueries(&[70, 3, 64]), PackedKeys(&[70, 40, 1]), MaxSeqlens, Lse],
        ),
        (
            [2, 2, 1, 1, 40],
            1,
            causal.window(Some(20), Some(0)),
            vec![
                PackedQueries(&[33, 12]),
                PackedKeys(&[50, 12]),
                MaxSeqlens,
                QueryLengths(&[30, 99]),
                KeyLengths(&[45, 7]),
                Bias(true, per_head(), soft()),
                Slopes,
                Sinks(&[1.0, -2.0]),
            ],
        ),
        (
            [3, 2, 1, 60, 24],
            2,
            causal,
            vec![PackedQueries(&[2, 0, 1]), MaxSeqlens, KeyLengths(&[60, 9, 33]), Lse],
        ),
        ([2, 2, 20, 1, 16], 2, plain, vec![PackedKeys(&[0, 40]), Mask(rows()), Lse]),
        // What starts say is not believed: no token is read that is not there.
        ([3, 2, 1, 1, 16], 1, plain, vec![PackedQueries(&[3, 4, 2]), PackedKeys(&[4, 6, 3]), WildStarts]),
        ([3, 2, 1, 1, 16], 2, plain, vec![PackedQueries(&[3, 4, 2]), PackedKeys(&[4, 6, 3]), LateStarts]),
        ([2, 2, 20, 70, 16], 2, plain, vec![KeyLengths(&[70, -3]), Lse]),
        // Nor what they say beside `max_seqlen_k`.
        (
            [3, 2, 1, 1, 32],
            2,
            causal,
            vec![PackedQueries(&[3, 4, 2]), PackedKeys(&[4, 6, 3]), MaxSeqlens, WildStarts],
        ),
        (
            [4, 4, 1, 1, 64],
            2,
            causal,
            vec![PackedQueries(&[70, 0, 9, 20]), PackedKeys(&[40, 33, 0, 60]), WildStarts, Lse],
        ),
        (
            large,
            4,
            causal,
            vec![PackedQueries(&[66, 1, 50, 66, 40]), PackedKeys(&[70, 64, 0, 66, 65]), MaxSeqlens],
        ),
        ([0, 2, 1, 1, 8], 2, plain, vec![PackedQueries(&[]), PackedKeys(&[])]),
        // Pages: of few tokens and of as many as a tile, decoding and not, whole sequences and none.
        ([3, 4, 1, 200, 64], 2, causal, vec![Pages(16, &[200, 17, 64]), Lse]),
        ([2, 2, 3, 70, 40], 1, causal, vec![Pages(5, &[70, 33]), Slopes]),
        ([3, 2, 37, 130, 32], 2, causal, vec![Pages(64, &[130, 0, 128]), Lse]),
        ([2, 2, 20, 24, 8], 2, plain, vec![Pages(1, &[24, 24]), Mask(rows())]),
        (large, 2, causal, vec![Pages(32, &[70, 64, 33, 1, 0])]),
        // Pages that are not there.
        ([2, 2, 3, 40, 24], 1, plain, vec![Pages(8, &[40, 33]), WildPages]),
        ([2, 2, 1, 70, 32], 2, causal, vec![PackedQueries(&[9, 20]), MaxSeqlens, Pages(8, &[70, 20]), Lse]),
        // Parts of the keys: of whole and ragged tiles, parts that have none; windows that some parts do not reach.
        ([1, 4, 1, 300, 64], 2, causal, vec![Sinks(&[0.5, -3.0]), Splits(3)]),
        ([2, 2, 3, 130, 40], 1, causal, vec![KeyLengths(&[130, 20]), Splits(2)]),
        ([1, 2, 70, 200, 32], 2, causal, vec![Bias(false, rows(), hiding()), Sinks(&[2.0]), Splits(4)]),
        (large, 2, plain, vec![ValueDim(40), Splits(2)]),
        ([1, 2, 20, 260, 16], 2, causal.window(Some(70), Some(0)), vec![QueryLengths(&[11]), Splits(5)]),
        (
            [2, 2, 1, 150, 24],
            1,
            causal,
            vec![PackedQueries(&[3, 5]), MaxSeqlens, Pages(16, &[150, 70]), Splits(2)],
        ),
        ([1, 2, 5, 0, 8], 2, plain, vec![Splits(3)]),
        // Sinks that part of the keys count: that leave the others no weight, of several queries.
        ([1, 1, 20, 130, 32], 1, plain, vec![Sinks(&[300.0]), Splits(2)]),
        ([1, 2, 3, 70, 16], 2, plain, vec![Sinks(&[0.5, -3.0]), Splits(3)]),
        // Exactly what hides: sinks of no keys, the bias of all of them.
        ([1, 1, 3, 0, 8], 1, plain, vec![Sinks(&[-1e38]), Lse]),
        ([1, 11, 1, 1, 8], 11, plain, vec![Bias(true, rows(), Fill::Constant(-1e38)), Lse]),
        ([1, 2, 20, 33, 8], 2, plain, vec![Bias(true, rows(), Fill::Constant(-1e38)), Lse]),
        // A sink, and one block more than there are queries.
        ([1, 53, 3, 5, 8], 53, plain, vec![Sinks(&[0.5, 3.0, -1.0])]),
        // All of it.
        (
            [2, 4, 66, 90, 40],
            2,
            causal.window(Some(50), Some(3)).softcap(4.0),
            vec![
                ValueDim(72),
                Bias(true, Layout::Broadcast(vec![1]), hiding()),
                Mask(Layout::Broadcast(vec![0])),
                QueryLengths(&[66, 40]),
                KeyLengths(&[80, 90]),
                Slopes,
                Sinks(&[-1.0, 3.0]),
                Lse,
            ],
        ),
    ]
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

/// Scores up to 1e9 and more, an ulp of which is a power of two beyond what is exponentiated, in other ranges for each query.
/// One key has all the weight, and values are such that no result near 0 is near a right one.
fn large_scores([b, h, nq, nk, d]: Sizes) -> Fills {
    let q = |at: usize| 2f32.powi(15 - (at / d % nq % 8) as i32);
    let k = |at: usize| 256.0 * (1 + at / d % nk * 3 % 70) as f32;
    let all = |n: usize, of: &dyn Fn(usize) -> f32| Fill::Values((0..b * h * n * d).map(of).collect());
    [all(nq, &q), all(nk, &k), Fill::Uniform(3.0, 4.0)]
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
        // Hidden by more than a score can make up for, and hidden whatever the score is.
        let huge = Self::scaled(1.0);
        let fills = |x: f32| [Fill::Constant(x), Fill::Constant(x), Fill::Normal(1.0)];
        if dtype == Dtype::F32 {
            for nq in [3, 20] {
                let high = case(huge, dtype, [1, 2, nq, 70, 1], heads, "1e37", fills(3e18));
                all.push(Extra::Lse.to(Extra::Mask(Layout::Contiguous).to(high, heads.1), heads.1));
                let high = case(huge, dtype, [1, 2, nq, 70, 1], heads, "1e37", fills(3e18));
                all.push(
                    Extra::Lse.to(Extra::Bias(true, Layout::Contiguous, hiding()).to(high, heads.1), heads.1),
                );
                all.push(case(
                    huge.window(Some(3), Some(0)),
                    dtype,
                    [1, 2, nq, 70, 1],
                    heads,
                    "1e37",
                    fills(3e18),
                ));
            }
        }
        for (sizes, op) in [
            ([1, 2, 20, 70, 8], Self::scaled(0.25)),
            ([5, 4, 66, 70, 64], Self::scaled(0.25)),
            ([5, 4, 66, 70, 80], Self::scaled(-0.25)),
        ] {
            all.push(case(op, dtype, sizes, heads, "1e9", large_scores(sizes)));
        }
        // Of a key that no query sees K may be anything. Not V, which a weight of 0 multiplies.
        for nq in [2, 20] {
            let hidden = 65 - nq - 4;
            let k = |at: usize| if at / 16 % 65 == hidden { f32::NAN } else { some(at) };
            let bias = (0..65).map(|key| if key == hidden { f32::MIN } else { some(key) }).collect();
            let fills =
                [Fill::Normal(1.0), Fill::Values((0..2 * 65 * 16).map(k).collect()), Fill::Normal(1.0)];
            let nan = |op| case(op, dtype, [1, 2, nq, 65, 16], heads, "nan-hidden", fills.clone());
            all.push(nan(Self::new(16).window(Some(3), Some(0))));
            let bias = Extra::Bias(true, Layout::Broadcast(vec![0, 1, 2]), Fill::Values(bias));
            all.push(bias.to(nan(Self::new(16)), heads.1));
        }
        all.push(case(Self::scaled(-0.3).softcap(2.0), dtype, [1, 2, 20, 70, 32], heads, "normal", normal()));
        for (name, op, fills) in extremes(dtype, 70, 32) {
            all.push(case(op, dtype, [1, 1, 20, 70, 32], heads, name, fills.clone()));
            let window = op.window(Some(9), Some(2));
            all.push(case(window, dtype, [1, 1, 40, 70, 32], heads, name, fills));
        }
        for (i, (sizes, kv, op, extras)) in extras().into_iter().enumerate() {
            // What is not about layouts goes through some of them in turn.
            let lay = Lay::ALL[[0, 3, 1, 5, 2][i % 5]];
            let case = grouped(op, dtype, sizes, kv, lay, "normal", normal());
            all.push(extras.iter().fold(case, |case, extra| extra.to(case, lay.1)));
        }
        // Extremes, with a mask that leaves some queries nothing.
        for (name, op, fills) in extremes(dtype, 33, 8) {
            let case = case(op, dtype, [1, 1, 20, 33, 8], heads, name, fills);
            let extras = [Extra::Mask(Layout::Contiguous), Extra::Sinks(&[2.5]), Extra::Lse];
            all.push(extras.iter().fold(case, |case, extra| extra.to(case, heads.1)));
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
        let mut case = grouped(op, dtype, sizes, kv, lay, name, fills);
        let layouts = [
            Layout::Contiguous,
            Layout::Broadcast(vec![0]),
            Layout::Broadcast(vec![1, 2]),
            Layout::Gaps(vec![0, 3, 1, 2]),
        ];
        let layout = |rng: &mut ChaCha8Rng| layouts[rng.random_range(0..layouts.len())].clone();
        // One case in two has none of these, others a few.
        let extras = if rng.random() { 0.0 } else { 0.35 };
        let all = [
            Extra::ValueDim(rng.random_range(1..90)),
            Extra::Bias(rng.random(), layout(rng), if rng.random() { Fill::Normal(3.0) } else { hiding() }),
            Extra::Mask(layout(rng)),
            Extra::QueryLengths(&[50, 3, 70]),
            Extra::KeyLengths(&[100, 0, 37]),
            Extra::Slopes,
            Extra::Sinks(&[0.5, -7.0, 4.0]),
            Extra::Lse,
        ];
        // The keys of a third of these lie elsewhere, and a third of them are cut in parts.
        let lies = [
            vec![],
            vec![Extra::Pages([1, 7, 16, 64][rng.random_range(0..4)], &[100, 0, 37])],
            vec![
                Extra::PackedQueries(&[50, 3, 70][..sizes[0]]),
                Extra::PackedKeys(&[90, 20, 37][..sizes[0]]),
            ],
        ];
        if extras > 0.0 {
            for extra in &lies[rng.random_range(0..3)] {
                case = extra.to(case, lay.1);
            }
        }
        let laid = case.args.block_table.is_some() || case.args.cu_seqlens_k.is_some();
        for extra in all {
            // What lies around the keys was filled for these.
            let twice = laid && matches!(extra, Extra::KeyLengths(_) | Extra::ValueDim(_));
            if rng.random_bool(extras) && !twice {
                case = extra.to(case, lay.1);
            }
        }
        if extras > 0.0 && rng.random_range(0..3) == 0 {
            case = Extra::Splits(rng.random_range(2..5)).to(case, lay.1);
        }
        case
    }

    fn reference(&self, args: &AttentionArgs<Dense, ()>) -> Vec<Expected> {
        let [out, lse] = reference::attention::attention(self, args);
        if args.lse.is_some() { vec![out, lse] } else { vec![out] }
    }
}
