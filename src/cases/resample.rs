//! Cases of resampling: odd sizes on both sides, one row, one channel, nothing at all.

use crate::dtype::Dtype;
use crate::ops::{Resample, ResampleArgs};
use crate::reference::{self, Dense, Expected};
use crate::verify::{Case, Fill, Layout, Verified, view};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

const NCHW: [usize; 4] = [0, 1, 2, 3];
const NHWC: [usize; 4] = [0, 2, 3, 1];

fn case(
    op: Resample,
    dtype: Dtype,
    shape: [usize; 4],
    lay: (&str, Layout, Layout),
    fill: Fill,
) -> Case<Resample> {
    let [n, c, h, w] = shape;
    let (mode, oh, ow) = match op {
        Resample::Up2 => ("up", 2 * h, 2 * w),
        Resample::Down2 => ("down", h / 2, w / 2),
    };
    let (layout, x, out) = lay;
    Case {
        name: format!("mode={mode} n={n} c={c} h={h} w={w} layout={layout}"),
        op,
        args: ResampleArgs { x: view(dtype, &shape, &x, fill), out: view(dtype, &[n, c, oh, ow], &out, ()) },
    }
}

impl Verified for Resample {
    fn cases(dtype: Dtype) -> Vec<Case<Self>> {
        let order = |o: [usize; 4]| Layout::Order(o.to_vec());
        let layouts = [
            ("nchw", order(NCHW), order(NCHW)),
            ("nhwc", order(NHWC), order(NHWC)),
            ("mixed", order(NHWC), order(NCHW)),
            ("gaps", Layout::Gaps(NHWC.to_vec()), Layout::Gaps(NCHW.to_vec())),
        ];
        let shapes = [
            [2, 3, 4, 6],
            [1, 1, 1, 1],
            [2, 5, 7, 3],
            [1, 17, 9, 14],
            [3, 2, 2, 1],
            [0, 3, 4, 4],
            [1, 4, 0, 5],
        ];
        let mut all = Vec::new();
        for op in [Self::Up2, Self::Down2] {
            for shape in shapes {
                for layout in &layouts {
                    all.push(case(op, dtype, shape, layout.clone(), Fill::Normal(1.0)));
                }
            }
            let big = Fill::Constant(dtype.largest() as f32 * 0.2);
            all.push(case(op, dtype, [1, 2, 6, 6], ("large-values", order(NCHW), order(NCHW)), big));
        }
        all
    }

    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self> {
        let op = if rng.random() { Self::Up2 } else { Self::Down2 };
        let shape = [0; 4].map(|_| rng.random_range(0..9));
        let mut layout = || Layout::Gaps(if rng.random() { NCHW.to_vec() } else { NHWC.to_vec() });
        let lay = ("random", layout(), layout());
        case(op, dtype, shape, lay, Fill::Uniform(-2.0, 2.0))
    }

    fn reference(&self, args: &ResampleArgs<Dense, ()>) -> Vec<Expected> {
        vec![reference::resample::resample(self, args)]
    }
}
