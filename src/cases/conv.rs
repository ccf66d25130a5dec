//! Cases of convolutions: window sizes, strides, padding, dilation, groups down to one channel, storage
//! orders and slices of channels, tails round the tiles, nothing to sum, every epilogue.

use crate::dtype::Dtype;
use crate::ops::{Activation, Conv, ConvArgs};
use crate::reference::{self, Dense, Expected};
use crate::verify::{Case, Fill, Layout, Verified, view};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// How an image or the weights are stored.
#[derive(Clone, Copy, PartialEq)]
enum Lies {
    /// (n, c, h, w), weights (out, in, row, column).
    Nchw,
    /// (n, h, w, c), weights (out, row, column, in).
    Nhwc,
    /// (c, h, n, w): no kernel's favourite.
    Chnw,
    /// As `Nchw`, with gaps and an odd offset.
    NchwGaps,
    /// As `Nhwc`, with gaps and an odd offset.
    NhwcGaps,
    /// As `Nhwc`, each pixel and each row padded to a multiple of 8 elements.
    NhwcPitch,
    /// (n, h, w, c) where the pixels have eight channels more, of which these are the last: half of a
    /// concatenation.
    Slice,
    /// One sample, used for all (inputs only).
    OneSample,
}

impl Lies {
    const IMAGES: [Self; 7] =
        [Self::Nchw, Self::Nhwc, Self::Chnw, Self::NchwGaps, Self::NhwcGaps, Self::NhwcPitch, Self::Slice];

    fn name(self) -> &'static str {
        match self {
            Self::Nchw => "nchw",
            Self::Nhwc => "nhwc",
            Self::Chnw => "chnw",
            Self::NchwGaps => "nchw-gaps",
            Self::NhwcGaps => "nhwc-gaps",
            Self::NhwcPitch => "nhwc-pitch",
            Self::Slice => "slice",
            Self::OneSample => "one-sample",
        }
    }

    fn view<M>(self, dtype: Dtype, shape: [usize; 4], memory: M) -> crate::View<M> {
        let layout = match self {
            Self::Nchw => Layout::Order(vec![0, 1, 2, 3]),
            Self::Nhwc => Layout::Order(vec![0, 2, 3, 1]),
            Self::Chnw => Layout::Order(vec![1, 2, 0, 3]),
            Self::NchwGaps => Layout::Gaps(vec![0, 1, 2, 3]),
            Self::NhwcGaps => Layout::Gaps(vec![0, 2, 3, 1]),
            Self::NhwcPitch => Layout::Pitched(vec![0, 2, 3, 1]),
            Self::OneSample => Layout::Broadcast(vec![0]),
            Self::Slice => {
                let [_, c, h, w] = shape;
                let pixel = c + 8;
                let strides = [h * w * pixel, 1, w * pixel, pixel];
                return crate::View::strided(memory, dtype, &shape, &strides, 8).expect("four axes");
            }
        };
        view(dtype, &shape, &layout, memory)
    }
}

/// Which operands a case has besides the image and the weights.
#[derive(Clone, Copy, PartialEq)]
struct Epilogue {
    activation: Activation,
    bias: bool,
    sample_bias: bool,
    residual: bool,
}

const BARE: Epilogue =
    Epilogue { activation: Activation::None, bias: false, sample_bias: false, residual: false };

use Lies::{Chnw, Nchw, NchwGaps, Nhwc, NhwcGaps, OneSample, Slice};

/// A case in the making.
#[derive(Clone)]
struct Sketch {
    /// Batch, input channels, output channels, rows, columns.
    size: [usize; 5],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
    /// Of x, weight, residual, out.
    lies: [Lies; 4],
    epilogue: Epilogue,
    fill: Fill,
    note: &'static str,
}

const PLAIN: Sketch = Sketch {
    size: [0; 5],
    kernel: [3, 3],
    stride: [1, 1],
    padding: [1, 1],
    dilation: [1, 1],
    groups: 1,
    lies: [Nhwc, Nchw, Nhwc, Nhwc],
    epilogue: BARE,
    fill: Fill::Normal(1.0),
    note: "",
};

impl Sketch {
    fn case(self, dtype: Dtype) -> Case<Conv> {
        let [n, c, o, h, w] = self.size;
        let [kh, kw] = self.kernel;
        let pair = |[a, b]: [usize; 2]| if a == b { format!("{a}") } else { format!("{a},{b}") };
        let lies: Vec<&str> = self.lies.map(Lies::name).to_vec();
        let mut name = format!(
            "n={n} in={c} out={o} size={h}x{w} k={kh}x{kw} stride={} pad={} dil={} groups={} lies={} act={}",
            pair(self.stride),
            pair(self.padding),
            pair(self.dilation),
            self.groups,
            lies.join(","),
            self.epilogue.activation.name(),
        );
        let Epilogue { activation, bias, sample_bias, residual } = self.epilogue;
        for (on, word) in [(bias, " bias"), (sample_bias, " sample-bias"), (residual, " residual")] {
            name += if on { word } else { "" };
        }
        if !self.note.is_empty() {
            name += &format!(" {}", self.note);
        }
        let op = Conv {
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
            activation,
        };
        let size = |axis: usize, size: usize| {
            let window = (self.kernel[axis] - 1) * self.dilation[axis] + 1;
            (size + 2 * self.padding[axis] - window) / self.stride[axis] + 1
        };
        let shape = [n, o, size(0, h), size(1, w)];
        let [x, weight, from, out] = self.lies;
        // Vectors of parameters lie dense under dense results and with gaps under others.
        let vector = |shape: &[usize]| {
            let natural = (0..shape.len()).collect();
            let gaps = matches!(out, NchwGaps | NhwcGaps);
            let layout = if gaps { Layout::Gaps(natural) } else { Layout::Order(natural) };
            view(dtype, shape, &layout, Fill::Normal(1.0))
        };
        let args = ConvArgs {
            x: x.view(dtype, [n, c, h, w], self.fill.clone()),
            weight: weight.view(dtype, [o, c / self.groups, kh, kw], self.fill),
            bias: bias.then(|| vector(&[o])),
            sample_bias: sample_bias.then(|| vector(&[n, o])),
            residual: residual.then(|| from.view(dtype, shape, Fill::Normal(2.0))),
            out: out.view(dtype, shape, ()),
        };
        Case { name, op, args }
    }
}

impl Verified for Conv {
    fn cases(dtype: Dtype) -> Vec<Case<Self>> {
        let mut all = Vec::new();
        let both = [[Nhwc, Nchw, Nhwc, Nhwc], [Nchw, Nchw, Nchw, Nchw]];
        // Windows, each in both usual orders: [kernel, stride, padding, dilation].
        for [kernel, stride, padding, dilation] in [
            [[1, 1], [1, 1], [0, 0], [1, 1]],
            [[3, 3], [1, 1], [1, 1], [1, 1]],
            [[3, 3], [1, 1], [0, 0], [1, 1]],
            [[3, 3], [2, 2], [1, 1], [1, 1]],
            [[3, 3], [3, 1], [1, 2], [1, 1]],
            [[3, 3], [1, 1], [2, 2], [2, 2]],
            [[3, 2], [1, 2], [3, 0], [3, 2]],
            [[5, 5], [1, 1], [2, 2], [1, 1]],
            [[5, 3], [2, 3], [0, 1], [1, 1]],
            [[7, 7], [1, 1], [3, 3], [1, 1]],
            [[1, 7], [1, 1], [0, 3], [1, 1]],
            [[7, 1], [1, 1], [3, 0], [1, 1]],
            [[1, 1], [2, 2], [0, 0], [1, 1]],
            [[1, 1], [1, 1], [1, 2], [1, 1]],
            [[2, 2], [2, 2], [0, 0], [1, 1]],
            [[4, 4], [2, 2], [1, 1], [1, 1]],
            [[9, 8], [1, 1], [0, 0], [1, 1]],
            [[3, 3], [1, 1], [5, 4], [1, 1]],
        ] {
            for lies in both {
                let base = Sketch { kernel, stride, padding, dilation, lies, ..PLAIN };
                all.push(Sketch { size: [2, 6, 5, 9, 8], ..base });
            }
        }
        // Channels and sizes: empty, one, either side of registers (4, 8, 16, 32) and tiles (14, 16, 32, 64).
        for size in [
            [0, 3, 4, 5, 5],
            [2, 0, 4, 5, 5],
            [2, 3, 0, 5, 5],
            [1, 1, 1, 1, 1],
            [1, 1, 16, 7, 7],
            [3, 1, 1, 4, 6],
            [1, 16, 1, 7, 7],
            [2, 17, 2, 3, 5],
            [1, 8, 4, 1, 9],
            [1, 8, 8, 8, 8],
            [2, 32, 16, 7, 7],
            [1, 16, 33, 4, 4],
            [1, 31, 32, 5, 3],
            [1, 24, 48, 4, 14],
            [1, 9, 15, 2, 29],
            [1, 33, 17, 1, 15],
            [1, 40, 65, 3, 4],
            [2, 3, 7, 13, 1],
            [3, 64, 70, 2, 3],
            [1, 2, 3, 17, 19],
        ] {
            for lies in both {
                all.push(Sketch { size, lies, ..PLAIN });
            }
        }
        // An image without rows is all padding.
        all.push(Sketch { size: [1, 2, 3, 0, 4], kernel: [2, 3], ..PLAIN });
        let point = Sketch { kernel: [1, 1], padding: [0, 0], ..PLAIN };
        for size in
            [[0, 8, 4, 3, 3], [3, 1, 2, 4, 4], [2, 32, 40, 7, 7], [1, 70, 33, 5, 13], [65, 8, 3, 1, 1]]
        {
            for lies in both {
                all.push(Sketch { size, lies, ..point.clone() });
            }
        }
        // Groups, down to one channel, with one or more results a channel.
        for (size, groups) in [
            ([2, 6, 4, 5, 6], 2),
            ([1, 16, 32, 6, 5], 2),
            ([1, 32, 24, 4, 5], 4),
            ([1, 12, 36, 5, 4], 4),
            // A prime number of blocks: the grids of the tests, folded at 3 and 50, have one past the last.
            ([1, 106, 53, 2, 2], 53),
            ([2, 5, 5, 7, 6], 5),
            ([1, 32, 32, 5, 18], 32),
            ([1, 37, 37, 9, 10], 37),
            ([1, 6, 12, 5, 7], 6),
            ([1, 20, 60, 4, 4], 20),
            ([2, 0, 0, 4, 4], 3),
        ] {
            for lies in both {
                all.push(Sketch { size, groups, lies, ..PLAIN });
            }
        }
        for lies in both.into_iter().chain([[NhwcGaps, NchwGaps, Nhwc, NchwGaps], [Slice, Nhwc, Nhwc, Slice]])
        {
            let depthwise = Sketch { size: [1, 18, 18, 11, 13], groups: 18, lies, ..PLAIN };
            let all_on =
                Epilogue { activation: Activation::Silu, bias: true, sample_bias: true, residual: true };
            all.push(Sketch { kernel: [7, 7], padding: [3, 3], ..depthwise.clone() });
            all.push(Sketch { kernel: [5, 3], stride: [2, 3], padding: [4, 0], ..depthwise.clone() });
            all.push(Sketch { kernel: [3, 3], dilation: [2, 3], padding: [2, 3], ..depthwise.clone() });
            all.push(Sketch { epilogue: all_on, ..depthwise.clone() });
            all.push(Sketch { size: [2, 4, 8, 5, 6], groups: 4, epilogue: all_on, ..depthwise });
        }
        // Samples enough for tiles of one pixel in several, on any instruction set; windows that lie wholly on
        // padding; a stride past the last row.
        let many = Sketch { lies: [Nhwc, Nchw, Nhwc, Nhwc], ..PLAIN };
        let all_on = Epilogue { activation: Activation::Gelu, bias: true, sample_bias: true, residual: true };
        all.push(Sketch { size: [13, 3, 18, 5, 4], ..many.clone() });
        all.push(Sketch { size: [28, 8, 33, 3, 3], stride: [2, 2], epilogue: all_on, ..many.clone() });
        all.push(Sketch { size: [12, 4, 40, 4, 5], dilation: [2, 2], padding: [2, 1], ..many.clone() });
        all.push(Sketch { size: [14, 1, 5, 3, 4], kernel: [2, 2], padding: [3, 3], ..many.clone() });
        all.push(Sketch { size: [27, 6, 20, 3, 2], groups: 2, epilogue: all_on, ..many.clone() });
        let lies = [Slice, Nhwc, NchwGaps, Slice];
        all.push(Sketch { size: [25, 5, 24, 3, 4], lies, epilogue: all_on, ..many });
        // Storage orders: every order of the image and of the result, weights of both kinds.
        for x in Lies::IMAGES {
            for out in Lies::IMAGES {
                let weight = if x == out { Nhwc } else { NchwGaps };
                let residual = Epilogue { residual: true, ..BARE };
                let lies = [x, weight, x, out];
                all.push(Sketch { size: [2, 8, 18, 5, 6], lies, epilogue: residual, ..PLAIN });
            }
        }
        for x in [OneSample, Chnw, Slice] {
            let lies = [x, Chnw, OneSample, Nhwc];
            let residual = Epilogue { residual: true, ..BARE };
            all.push(Sketch { size: [3, 5, 34, 4, 4], lies, epilogue: residual, ..PLAIN });
            all.push(Sketch { size: [3, 8, 20, 4, 4], lies, ..point.clone() });
        }
        // Every epilogue; with no input channel it is all there is.
        for activation in Activation::ALL {
            for (bias, sample_bias, residual) in
                [(true, false, false), (false, true, false), (false, false, true), (true, true, true)]
            {
                let epilogue = Epilogue { activation, bias, sample_bias, residual };
                for lies in both {
                    all.push(Sketch { size: [2, 5, 19, 4, 7], lies, epilogue, ..PLAIN });
                }
                let lies = [Nhwc, Nchw, NchwGaps, NhwcGaps];
                all.push(Sketch { size: [2, 0, 6, 3, 3], lies, epilogue, ..PLAIN });
                all.push(Sketch { size: [3, 16, 2, 3, 5], lies, epilogue, ..PLAIN });
            }
            let epilogue = Epilogue { activation, ..BARE };
            all.push(Sketch { size: [1, 4, 9, 5, 5], epilogue, ..PLAIN });
        }
        // Sums near the largest number of the dtype, exact cancellation, zeros.
        let large = dtype.largest().sqrt() as f32 * 0.25;
        let note = |size, fill, note| Sketch { size, fill, note, ..PLAIN };
        all.push(note([1, 1, 3, 3, 3], Fill::Constant(large), "large-values"));
        all.push(note([1, 8, 8, 4, 4], Fill::Values(vec![large, -large]), "cancelling-values"));
        all.push(note([1, 4, 17, 4, 4], Fill::Constant(0.0), "zeros"));
        all.into_iter().map(|sketch| sketch.case(dtype)).collect()
    }

    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self> {
        let mut of = |n: usize| rng.random_range(0..n);
        let groups = [1, 1, 1, 2, 3, 7][of(6)];
        let (mut c, mut o) = (groups * of(4), groups * of(5));
        match of(4) {
            0 if groups == 1 => (c, o) = (of(40), of(40)),
            1 => (c, o) = (groups, groups * (1 + of(2))),
            _ => {}
        }
        let size = [of(4), c, o, of(12), of(12)];
        let [kernel, stride, mut padding, dilation] =
            [[1 + of(4), 1 + of(4)], [1 + of(3), 1 + of(3)], [of(3), of(3)], [1 + of(3), 1 + of(3)]];
        // Windows that do not fit are another test's.
        for axis in 0..2 {
            let window = (kernel[axis] - 1) * dilation[axis] + 1;
            let lacks = window.saturating_sub(size[3 + axis] + 2 * padding[axis]);
            padding[axis] += lacks.div_ceil(2);
        }
        let epilogue = Epilogue {
            activation: Activation::ALL[of(3)],
            bias: of(2) == 0,
            sample_bias: of(2) == 0,
            residual: of(2) == 0,
        };
        let lies = [0; 4].map(|_: usize| Lies::IMAGES[of(Lies::IMAGES.len())]);
        let fill = Fill::Uniform(-2.0, 2.0);
        Sketch { size, kernel, stride, padding, dilation, groups, lies, epilogue, fill, note: "random" }
            .case(dtype)
    }

    fn reference(&self, args: &ConvArgs<Dense, ()>) -> Vec<Expected> {
        vec![reference::conv::conv(self, args)]
    }
}
