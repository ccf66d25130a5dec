//! Cases of merging: one part and many, queries that no part has seen, sums far apart, all strides.

use crate::dtype::Dtype;
use crate::ops::{Merge, MergeArgs};
use crate::reference::{self, Dense, Expected};
use crate::verify::{Case, Fill, Layout, Verified, view};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Parts, batch, heads, queries, elements of a head.
type Sizes = [usize; 5];

/// How the operands lie: parts, logarithms, result.
fn layouts() -> [(&'static str, Layout, Layout, Layout); 4] {
    let order = |o: &[usize]| Layout::Order(o.to_vec());
    let gaps = |o: &[usize]| Layout::Gaps(o.to_vec());
    [
        ("heads", order(&[0, 1, 2, 3, 4]), order(&[0, 1, 2, 3]), order(&[0, 1, 2, 3])),
        // Tokens before heads, as attention has them; the parts innermost but for the elements.
        ("tokens", order(&[1, 3, 2, 0, 4]), order(&[1, 3, 2, 0]), order(&[0, 2, 1, 3])),
        ("channels", order(&[0, 1, 2, 4, 3]), order(&[0, 1, 2, 3]), order(&[0, 1, 3, 2])),
        ("gaps", gaps(&[4, 0, 3, 1, 2]), gaps(&[3, 0, 1, 2]), gaps(&[2, 0, 3, 1])),
    ]
}

fn case(
    dtype: Dtype,
    single: bool,
    sizes: Sizes,
    layout: (&str, Layout, Layout, Layout),
    with_lse: bool,
    values: (&str, Fill),
) -> Case<Merge> {
    let [s, b, h, n, d] = sizes;
    let (lay, parts, lses, out) = layout;
    let from = if single { Dtype::F32 } else { dtype };
    // What a part holds that has seen no key is of no account.
    let held = match &values.1 {
        Fill::Values(sums) if d > 0 => {
            let of = |e: usize| {
                if sums[e / d] == f32::NEG_INFINITY { f32::NAN } else { (e * 7 % 23) as f32 - 11.0 }
            };
            Fill::Values((0..sums.len() * d).map(of).collect())
        }
        _ => Fill::Normal(1.0),
    };
    Case {
        name: format!(
            "s={s} b={b} h={h} n={n} d={d} parts={from} layout={lay} lses={}{}",
            values.0,
            if with_lse { " lse" } else { "" }
        ),
        op: Merge,
        args: MergeArgs {
            parts: view(from, &sizes, &parts, held),
            lses: view(Dtype::F32, &[s, b, h, n], &lses, values.1),
            out: view(dtype, &[b, h, n, d], &out, ()),
            lse: with_lse.then(|| view(Dtype::F32, &[b, h, n], &Layout::Gaps(vec![2, 0, 1]), ())),
        },
    }
}

/// Logarithms of sums, of `s` parts with `each` queries a part.
fn sums(s: usize, each: usize) -> Vec<(&'static str, Fill)> {
    // Of every third query no part has seen a key, of others some have not.
    let unseen = |at: usize| {
        let (part, query) = (at / each.max(1), at % each.max(1));
        if query % 3 == 1 || (part + query) % 4 == 0 { f32::NEG_INFINITY } else { (at % 7) as f32 - 3.0 }
    };
    let far = |at: usize| [1e4f32, -1e4, 9.99e3, 0.0, -3e30, 88.0, -90.0][at % 7];
    let count = (s * each).max(1);
    vec![
        ("normal", Fill::Normal(3.0)),
        ("equal", Fill::Constant(-1.25)),
        ("unseen", Fill::Values((0..count).map(unseen).collect())),
        ("far", Fill::Values((0..count).map(far).collect())),
        ("none", Fill::Constant(f32::NEG_INFINITY)),
    ]
}

impl Verified for Merge {
    fn cases(dtype: Dtype) -> Vec<Case<Self>> {
        let mut all = Vec::new();
        for sizes in
            [[2, 2, 3, 5, 40], [1, 1, 1, 1, 1], [3, 1, 2, 33, 7], [8, 1, 4, 1, 128], [17, 2, 1, 9, 20]]
        {
            let [s, b, h, n, _] = sizes;
            for (i, values) in sums(s, b * h * n).into_iter().enumerate() {
                let layout = layouts()[i % 4].clone();
                all.push(case(dtype, i % 2 == 0, sizes, layout, i != 1, values));
            }
            for layout in layouts() {
                all.push(case(dtype, false, sizes, layout, true, ("wide", Fill::Uniform(-20.0, 20.0))));
            }
        }
        // Nothing: no parts, no batch, no queries, no elements.
        for sizes in [[0, 2, 1, 3, 8], [2, 0, 1, 3, 8], [2, 1, 2, 0, 8], [2, 1, 2, 3, 0]] {
            let layout = layouts()[0].clone();
            all.push(case(dtype, false, sizes, layout, true, ("normal", Fill::Normal(1.0))));
        }
        all
    }

    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self> {
        let sizes = [
            rng.random_range(0..6),
            rng.random_range(0..3),
            rng.random_range(0..4),
            rng.random_range(0..20),
            rng.random_range(0..70),
        ];
        let layout = layouts()[rng.random_range(0..4)].clone();
        let [s, b, h, n, _] = sizes;
        let values = sums(s, b * h * n);
        let values = values[rng.random_range(0..values.len())].clone();
        case(dtype, rng.random(), sizes, layout, rng.random(), values)
    }

    fn reference(&self, args: &MergeArgs<Dense, ()>) -> Vec<Expected> {
        let [out, lse] = reference::merge::merge(args);
        if args.lse.is_some() { vec![out, lse] } else { vec![out] }
    }
}
