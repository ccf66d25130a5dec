//! Cases of the solver step: every number of buffers, by value and from a table, with and without noise;
//! dense, gapped and permuted buffers; tails of a span, one element, nothing at all.

use crate::dtype::Dtype;
use crate::ops::step::{Coefficients, MAX_BUFFERS, Noise, Step, StepArgs};
use crate::reference::{self, Dense, Expected};
use crate::verify::{Case, Fill, Layout, Verified, view};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

const SEED: u64 = 0x0123_4567_89ab_cdef;

/// Coefficients like those of a solver: one near 1, small ones of both signs.
const C: [f32; MAX_BUFFERS] = [0.9375, -0.31, 0.125, 1.5, -0.02, 0.7, -1.1, 0.33];

/// Coefficients of tables, of which there are 9 a sample: rows differ. A 0 among them: that buffer is not read.
const ROWS: [f32; 11] = [0.5, -1.25, 0.0, 2.0, 0.3, -0.7, 1.0, 0.9, 1.5, -0.25, 0.8];

/// How the buffers lie.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    Dense,
    Gaps,
    /// The first axis of a sample is stored last, everywhere.
    Last,
    /// Rows padded to a multiple of 8 elements.
    Pitched,
    /// Each buffer another way.
    Mixed,
}

fn layout(lie: Lie, rank: usize, buffer: usize) -> Layout {
    let first: Vec<usize> = (0..rank).collect();
    let last: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).take(rank).collect();
    match (lie, buffer % 3) {
        (Lie::Dense, _) | (Lie::Mixed, 0) => Layout::Contiguous,
        (Lie::Gaps, _) => Layout::Gaps(first),
        (Lie::Pitched, _) => Layout::Pitched(first),
        (Lie::Last, _) | (Lie::Mixed, 1) => Layout::Order(last),
        (Lie::Mixed, _) => Layout::Gaps(last),
    }
}

struct Given {
    dtype: Dtype,
    shape: Vec<usize>,
    buffers: usize,
    lie: Lie,
    table: Option<Layout>,
    noise: Option<u64>,
    fill: (&'static str, Fill),
    /// Coefficients by value.
    c: [f32; MAX_BUFFERS],
    /// Coefficients of a table, repeated from sample to sample.
    rows: Vec<f32>,
}

fn case(g: Given) -> Case<Step> {
    let Given { dtype, shape, buffers, lie, table, noise, fill: (filling, fill), c, rows } = g;
    let rank = shape.len();
    let name = match lie {
        Lie::Dense => "dense",
        Lie::Gaps => "gaps",
        Lie::Last => "last",
        Lie::Pitched => "pitched",
        Lie::Mixed => "mixed",
    };
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    let by = match &table {
        None => format!("values:{}", c[..buffers].iter().filter(|&&c| c != 0.0).count()),
        Some(layout) => format!("table:{}", if *layout == Layout::Contiguous { "dense" } else { "gaps" }),
    };
    let x = |j: usize| (j < buffers).then(|| view(dtype, &shape, &layout(lie, rank, j), fill.clone()));
    let values = std::array::from_fn(|j| if j < buffers { c[j] } else { 0.0 });
    let given = noise.map(|stream| Noise { seed: SEED, stream });
    Case {
        name: format!(
            "x={} buffers={buffers} by={by} layout={name} noise={} values={filling}",
            sizes.join("x"),
            noise.map_or("none".into(), |s| format!("{s:#x}"))
        ),
        op: Step {
            coefficients: match table {
                Some(_) => Coefficients::Table,
                None => Coefficients::Values { x: values, noise: if noise.is_some() { 0.625 } else { 0.0 } },
            },
            noise: given,
        },
        args: StepArgs {
            x0: view(dtype, &shape, &layout(lie, rank, 0), fill.clone()),
            x1: x(1),
            x2: x(2),
            x3: x(3),
            x4: x(4),
            x5: x(5),
            x6: x(6),
            x7: x(7),
            table: table.map(|l| view(Dtype::F32, &[shape[0], MAX_BUFFERS + 1], &l, Fill::Values(rows))),
            out: view(dtype, &shape, &layout(lie, rank, 3), ()),
        },
    }
}

impl Verified for Step {
    fn cases(dtype: Dtype) -> Vec<Case<Self>> {
        let plain = |shape: &[usize], buffers| Given {
            dtype,
            shape: shape.to_vec(),
            buffers,
            lie: Lie::Dense,
            table: None,
            noise: None,
            fill: ("normal", Fill::Normal(1.0)),
            c: C,
            rows: ROWS.to_vec(),
        };
        let mut all = Vec::new();
        // Every number of buffers, each way; 9 operands and a table are more than some devices bind.
        for buffers in 1..=MAX_BUFFERS {
            all.push(case(plain(&[2, 3, 5, 7], buffers)));
            all.push(case(Given { table: Some(Layout::Contiguous), ..plain(&[3, 40], buffers) }));
            all.push(case(Given { noise: Some(5), ..plain(&[2, 64], buffers) }));
        }
        // Every layout, with and without noise, by value and from a table.
        for lie in [Lie::Dense, Lie::Gaps, Lie::Last, Lie::Pitched, Lie::Mixed] {
            for noise in [None, Some(0), Some(u64::MAX - 1)] {
                for table in [None, Some(Layout::Gaps(vec![0, 1]))] {
                    for shape in [&[3, 4, 6, 5][..], &[2, 7, 9], &[4, 33]] {
                        all.push(case(Given { lie, noise, table: table.clone(), ..plain(shape, 4) }));
                    }
                }
            }
        }
        // Tails of a span of four and of eight; one sample, one element, none.
        for shape in
            [&[1, 1][..], &[1, 2], &[1, 3], &[2, 4], &[3, 5], &[1, 8], &[2, 15], &[1, 16], &[7], &[1]]
        {
            all.push(case(plain(shape, 2)));
            all.push(case(Given { noise: Some(1 << 40), ..plain(shape, 1) }));
        }
        for shape in [&[0, 5][..], &[4, 0], &[2, 3, 0, 2], &[0]] {
            all.push(case(Given { noise: Some(1), ..plain(shape, 3) }));
        }
        // More than one task and more than one block.
        all.push(case(plain(&[2, 20_001], 3)));
        all.push(case(Given { noise: Some(9), ..plain(&[2, 20_001], 2) }));
        all.push(case(Given { noise: Some(9), ..plain(&[40, 1, 28, 28], 2) }));
        // Pure noise: the buffer has coefficient 0 and is not read. Also a hole among the buffers.
        let fences = ("not-a-number", Fill::Constant(f32::NAN));
        all.push(case(Given { noise: Some(2), c: [0.0; 8], fill: fences.clone(), ..plain(&[3, 1000], 1) }));
        for shape in [&[3, 1000][..], &[2, 7]] {
            let rows = vec![0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75];
            let table = Some(Layout::Contiguous);
            let noise = Some(2);
            all.push(case(Given { noise, table, rows, fill: fences.clone(), ..plain(shape, MAX_BUFFERS) }));
        }
        all.push(case(Given { c: [1.0, 0.0, 0.0, -1.0, 0.0, 0.5, 0.0, 0.0], ..plain(&[2, 100], 6) }));
        // Cancellation, overflow to infinity or the largest number, small numbers, zeros.
        let largest = dtype.largest() as f32;
        let opposite = [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        for (name, fill, c) in [
            ("cancelling", Fill::Constant(1234.5), opposite),
            ("large", Fill::Values(vec![largest * 0.25, -largest * 0.125]), C),
            ("overflowing", Fill::Values(vec![largest, -largest]), [1.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            ("small", Fill::Normal(1e-6), C),
            ("zero", Fill::Constant(0.0), C),
        ] {
            all.push(case(Given { fill: (name, fill), c, ..plain(&[2, 50], 2) }));
        }
        all
    }

    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self> {
        let rank = rng.random_range(1..5);
        let shape = (0..rank).map(|_| rng.random_range(0..10)).collect();
        let lies = [Lie::Dense, Lie::Gaps, Lie::Last, Lie::Pitched, Lie::Mixed];
        let gaps = if rng.random() { Layout::Gaps(vec![1, 0]) } else { Layout::Contiguous };
        let mut c = C;
        c.iter_mut().for_each(|c| *c *= f32::from(rng.random::<bool>()) * rng.random_range(-2.0..2.0));
        case(Given {
            dtype,
            shape,
            buffers: rng.random_range(1..=MAX_BUFFERS),
            lie: lies[rng.random_range(0..lies.len())],
            table: rng.random::<bool>().then_some(gaps),
            noise: rng.random::<bool>().then(|| rng.random()),
            fill: ("uniform", Fill::Uniform(-2.0, 2.0)),
            c,
            rows: ROWS.to_vec(),
        })
    }

    fn reference(&self, args: &StepArgs<Dense, ()>) -> Vec<Expected> {
        vec![reference::step::step(self, args)]
    }
}
