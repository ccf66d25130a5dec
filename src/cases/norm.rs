//! Cases of normalisation: every kind, layout and epilogue; odd sizes, tails, one element, nothing at
//! all; rows short enough for a warp and long enough for a block; means far from 0.

use crate::dtype::Dtype;
use crate::ops::{Activation, Norm, NormArgs, NormKind};
use crate::reference::{self, Dense, Expected};
use crate::verify::{Case, Fill, Layout, Verified, view};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Which optional operands are given.
#[derive(Clone, Copy)]
struct Given {
    weight: bool,
    bias: bool,
    scale: bool,
    shift: bool,
}

const NONE: Given = Given { weight: false, bias: false, scale: false, shift: false };
const AFFINE: Given = Given { weight: true, bias: true, ..NONE };
const FILM: Given = Given { weight: true, bias: true, scale: true, shift: true };

impl Given {
    fn name(self) -> String {
        let all = [('w', self.weight), ('b', self.bias), ('s', self.scale), ('t', self.shift)];
        let given: String = all.into_iter().filter(|g| g.1).map(|g| g.0).collect();
        if given.is_empty() { "none".into() } else { given }
    }
}

/// What lies how: a name, the layouts of `x` and `out`, and those of per-channel and per-sample operands.
#[derive(Clone)]
struct Lay {
    name: &'static str,
    x: Layout,
    out: Layout,
    channel: Layout,
    sample: Layout,
}

fn layout(name: &'static str, rank: usize) -> Lay {
    let first: Vec<usize> = (0..rank).collect();
    let last: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).take(rank).collect();
    let (x, out) = match name {
        "dense" => (Layout::Contiguous, Layout::Contiguous),
        "last" => (Layout::Order(last.clone()), Layout::Order(last)),
        "mixed" => (Layout::Order(last), Layout::Contiguous),
        "gaps" => (Layout::Gaps(first.clone()), Layout::Gaps(first)),
        "pitched" => (Layout::Pitched(first.clone()), Layout::Pitched(first)),
        "pitched-last" => (Layout::Pitched(last.clone()), Layout::Pitched(last)),
        "gaps-last" => (Layout::Gaps(last.clone()), Layout::Gaps(last)),
        _ => (Layout::Gaps(last), Layout::Gaps(first)),
    };
    let strided = name.starts_with("gaps") || name == "mixed-gaps";
    let small = |order: &[usize]| if strided { Layout::Gaps(order.to_vec()) } else { Layout::Contiguous };
    Lay { name, x, out, channel: small(&[0]), sample: small(&[1, 0][..]) }
}

fn case(op: Norm, dtype: Dtype, shape: &[usize], lay: Lay, given: Given, fill: (&str, Fill)) -> Case<Norm> {
    let (kind, channel) = match op.kind {
        NormKind::Group { groups } => (format!("group:{groups}"), 1),
        NormKind::Layer => ("layer".into(), shape.len() - 1),
        NormKind::Rms => ("rms".into(), shape.len() - 1),
    };
    let (n, c) = (shape[0], shape[channel]);
    let per_channel = |on: bool, fill| on.then(|| view(dtype, &[c], &lay.channel, fill));
    let per_sample = |on: bool| on.then(|| view(dtype, &[n, c], &lay.sample, Fill::Normal(0.5)));
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    Case {
        name: format!(
            "kind={kind} x={} layout={} given={} act={} eps={:e} values={}",
            sizes.join("x"),
            lay.name,
            given.name(),
            op.activation.name(),
            op.eps,
            fill.0
        ),
        op,
        args: NormArgs {
            x: view(dtype, shape, &lay.x, fill.1),
            weight: per_channel(given.weight, Fill::Uniform(0.5, 1.5)),
            bias: per_channel(given.bias, Fill::Normal(0.5)),
            scale: per_sample(given.scale),
            shift: per_sample(given.shift),
            out: view(dtype, shape, &lay.out, ()),
        },
    }
}

impl Verified for Norm {
    fn cases(dtype: Dtype) -> Vec<Case<Self>> {
        let norm = |kind, activation| Self { kind, eps: 1e-5, activation };
        let group = |groups, activation| norm(NormKind::Group { groups }, activation);
        let (plain, silu) = (Activation::None, Activation::Silu);
        let normal = || ("normal", Fill::Normal(1.0));
        let mut all = Vec::new();

        // The layers of a small U-Net, and groups of every size, in every layout.
        for name in ["dense", "last", "mixed", "gaps", "gaps-last", "mixed-gaps", "pitched", "pitched-last"] {
            let mut image = |groups, shape: [usize; 4], given, activation| {
                let op = group(groups, activation);
                all.push(case(op, dtype, &shape, layout(name, 4), given, normal()));
            };
            image(8, [2, 16, 28, 28], FILM, silu);
            image(8, [1, 96, 7, 7], AFFINE, silu);
            image(8, [2, 24, 5, 3], FILM, plain);
            image(1, [2, 5, 3, 7], AFFINE, plain);
            image(3, [3, 3, 6, 2], FILM, Activation::Gelu);
            image(2, [1, 34, 1, 1], NONE, silu);
            image(4, [2, 64, 14, 14], NONE, plain);
        }
        for (shape, groups) in [(vec![3, 12], 4), (vec![2, 12, 31], 3), (vec![2, 8, 1], 8), (vec![1, 1], 1)] {
            for name in ["dense", "gaps"] {
                all.push(case(group(groups, silu), dtype, &shape, layout(name, shape.len()), FILM, normal()));
            }
        }
        // Rows: tails of a register, of a warp and of a block, one token, one channel.
        for kind in [NormKind::Layer, NormKind::Rms] {
            for (shape, given) in [
                (vec![2, 5, 64], FILM),
                (vec![1, 3, 1152], FILM),
                (vec![4, 77], AFFINE),
                (vec![2, 3, 1], AFFINE),
                (vec![1, 2, 4097], NONE),
                (vec![1, 9, 16], NONE),
                (vec![7, 1, 31], FILM),
                (vec![1, 1, 24576], AFFINE),
            ] {
                for name in ["dense", "gaps", "pitched"] {
                    let lay = layout(name, shape.len());
                    all.push(case(norm(kind, plain), dtype, &shape, lay, given, normal()));
                }
                let lay = layout("mixed-gaps", shape.len());
                all.push(case(norm(kind, silu), dtype, &shape, lay, given, normal()));
            }
        }
        // Each optional operand alone, and every activation.
        for given in [
            Given { weight: true, ..NONE },
            Given { bias: true, ..NONE },
            Given { scale: true, ..NONE },
            Given { shift: true, ..NONE },
            Given { weight: true, shift: true, ..NONE },
        ] {
            for activation in Activation::ALL {
                for name in ["dense", "last"] {
                    let lay = layout(name, 4);
                    all.push(case(group(2, activation), dtype, &[2, 6, 4, 5], lay, given, normal()));
                }
            }
            all.push(case(
                norm(NormKind::Layer, silu),
                dtype,
                &[2, 3, 40],
                layout("dense", 3),
                given,
                normal(),
            ));
        }
        // One film output of all samples.
        let shared = Lay { sample: Layout::Broadcast(vec![0]), ..layout("last", 4) };
        let shared = Lay { name: "shared-film", ..shared };
        all.push(case(group(4, silu), dtype, &[3, 8, 6, 6], shared, FILM, normal()));
        // Nothing to do, or nothing to add up.
        for shape in [[0, 4, 3, 3], [2, 0, 3, 3], [2, 4, 0, 3]] {
            all.push(case(group(2, silu), dtype, &shape, layout("last", 4), FILM, normal()));
        }
        all.push(case(norm(NormKind::Layer, plain), dtype, &[2, 0, 8], layout("dense", 3), FILM, normal()));
        all.push(case(norm(NormKind::Rms, plain), dtype, &[2, 3, 0], layout("dense", 3), AFFINE, normal()));
        // Values that cost digits: a large mean, none at all, all equal, far apart, large and small.
        let large = dtype.largest().min(1e15) as f32;
        for (kind, shape, name) in [
            (NormKind::Group { groups: 4 }, vec![2, 16, 14, 14], "dense"),
            (NormKind::Group { groups: 4 }, vec![2, 16, 14, 14], "last"),
            (NormKind::Layer, vec![2, 7, 1000], "dense"),
            (NormKind::Rms, vec![2, 7, 1000], "dense"),
        ] {
            for fill in [
                ("mean-1e4", Fill::Uniform(10_000.0 - 1.7, 10_000.0 + 1.7)),
                ("all-equal", Fill::Constant(-3.25)),
                ("all-zero", Fill::Constant(0.0)),
                ("one-outlier", Fill::Values([[1000.0].as_slice(), &[0.5; 96]].concat())),
                ("large", Fill::Values(vec![large, -large, large, 0.0])),
                ("small", Fill::Normal(1e-6)),
            ] {
                all.push(case(norm(kind, plain), dtype, &shape, layout(name, shape.len()), AFFINE, fill));
            }
        }
        let exact = Self { kind: NormKind::Layer, eps: 0.0, activation: plain };
        all.push(case(exact, dtype, &[2, 3, 50], layout("dense", 3), AFFINE, normal()));
        all
    }

    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self> {
        let rank = rng.random_range(2..5);
        let mut shape: Vec<usize> = (0..rank).map(|_| rng.random_range(0..8)).collect();
        let kind = match rng.random_range(0..3) {
            0 if rank < 4 => NormKind::Layer,
            1 if rank < 4 => NormKind::Rms,
            _ => {
                let groups = rng.random_range(1..5);
                shape[1] = groups * rng.random_range(0..12);
                NormKind::Group { groups }
            }
        };
        if !matches!(kind, NormKind::Group { .. }) {
            shape[rank - 1] = rng.random_range(0..300);
        }
        let names = ["dense", "last", "mixed", "gaps", "gaps-last", "mixed-gaps"];
        let lay = layout(names[rng.random_range(0..names.len())], rank);
        let [weight, bias, scale, shift] = [0; 4].map(|_| rng.random());
        let activation = Activation::ALL[rng.random_range(0..3)];
        let op = Self { kind, eps: 1e-3, activation };
        case(
            op,
            dtype,
            &shape,
            lay,
            Given { weight, bias, scale, shift },
            ("uniform", Fill::Uniform(-2.0, 3.0)),
        )
    }

    fn reference(&self, args: &NormArgs<Dense, ()>) -> Vec<Expected> {
        vec![reference::norm::norm(self, args)]
    }
}
