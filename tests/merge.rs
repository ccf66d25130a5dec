//! Merging, cross-checked on every device; and attention over parts of the keys, merged, against attention over all.

use advect::ops::{Attention, AttentionArgs, Merge, MergeArgs};
use advect::reference::{self, Dense};
use advect::{Device, Dtype, Tensor, View, verify};

#[test]
fn cross_check() {
    verify::assert_op::<Merge>(40);
}

/// Sizes of queries, keys, and where the keys are cut.
const SHAPE: [usize; 4] = [2, 3, 9, 24];
const KEYS: usize = 50;
const CUTS: [usize; 4] = [0, 7, 40, 50];

/// Within twice the bound of attention: the weights of a part are off by its scores, and all together by its sum.
fn close(device: &Device, got: &Tensor, expected: &reference::Expected) {
    for ((got, want), bound) in got.to_f32(device).unwrap().iter().zip(&expected.value).zip(&expected.error) {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= 2.0 * bound, "{}: {got} {want} {error:e} {bound:e}", device.name());
    }
}

/// Merges parts, whose result is to be attention over all keys.
fn merge_to(device: &Device, parts: &Tensor, lses: &Tensor, [exact, exact_lse]: &[reference::Expected; 2]) {
    let zeros = |shape: &[usize]| Tensor::new(device, Dtype::F32, shape).unwrap();
    let (mut out, mut lse) = (zeros(&SHAPE), zeros(&SHAPE[..3]));
    let args =
        MergeArgs { parts: parts.view(), lses: lses.view(), out: out.view_mut(), lse: Some(lse.view_mut()) };
    device.run(&Merge, args).unwrap();
    close(device, &out, exact);
    close(device, &lse, exact_lse);
}

#[test]
fn parts_of_the_keys_merge_to_all_of_them() {
    let [b, h, n, d] = SHAPE;
    let op = Attention::new(d).softcap(6.0);
    let values = |len: usize, seed: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 4001) as f32 / 1000.0 - 2.0).collect()
    };
    let (q, k, v) = (values(b * h * n * d, 1), values(b * h * KEYS * d, 2), values(b * h * KEYS * d, 3));
    let dense = |shape: &[usize], values: &[f32]| {
        let data = values.iter().map(|&x| f64::from(x)).collect();
        View::contiguous(Dense { shape: shape.to_vec(), data }, Dtype::F32, shape).unwrap()
    };
    let keys = [b, h, KEYS, d];
    let out = View::contiguous((), Dtype::F32, &SHAPE).unwrap();
    let args = AttentionArgs::new(dense(&SHAPE, &q), dense(&keys, &k), dense(&keys, &v), out);
    let exact = reference::attention::attention(&op, &args);
    for device in verify::devices().unwrap() {
        let tensor = |shape: &[usize], values| Tensor::from_f32(&device, Dtype::F32, shape, values).unwrap();
        let zeros = |shape: &[usize]| Tensor::new(&device, Dtype::F32, shape).unwrap();
        let (q, k, v) = (tensor(&SHAPE, &q), tensor(&keys, &k), tensor(&keys, &v));
        let (mut parts, mut lses) = (Vec::new(), Vec::new());
        for cut in CUTS.windows(2) {
            let (mut out, mut lse) = (zeros(&SHAPE), zeros(&SHAPE[..3]));
            let [k, v] = [&k, &v].map(|t| t.view().slice(2, cut[0]..cut[1]).unwrap());
            let mut args = AttentionArgs::new(q.view(), k, v, out.view_mut());
            args.lse = Some(lse.view_mut());
            device.run(&op, args).unwrap();
            parts.extend(out.to_f32(&device).unwrap());
            lses.extend(lse.to_f32(&device).unwrap());
        }
        let count = CUTS.len() - 1;
        let (parts, lses) = (tensor(&[count, b, h, n, d], &parts), tensor(&[count, b, h, n], &lses));
        merge_to(&device, &parts, &lses, &exact);
    }
}

/// Any number of parts costs time and no memory: one of them, repeated.
#[test]
fn parts_may_be_repeated() {
    // lavapipe ends a loop after 65536 turns, those of loops before counted.
    const PARTS: usize = 30_000;
    for device in verify::devices().unwrap() {
        let tensor = |shape: &[usize], value| Tensor::from_f32(&device, Dtype::F32, shape, &[value]).unwrap();
        let (part, part_lse) = (tensor(&[1; 5], 2.0), tensor(&[1; 4], 0.5));
        let (mut out, mut lse) = (tensor(&[1; 4], 0.0), tensor(&[1; 3], 0.0));
        let args = MergeArgs {
            parts: part.view().expand(&[PARTS, 1, 1, 1, 1]).unwrap(),
            lses: part_lse.view().expand(&[PARTS, 1, 1, 1]).unwrap(),
            out: out.view_mut(),
            lse: Some(lse.view_mut()),
        };
        device.run(&Merge, args).unwrap();
        // Every weight is 1 and both sums are whole numbers, which f32 holds: few roundings are left.
        let exact = [2.0, 0.5 + (PARTS as f64).ln()];
        for (got, exact) in [&out, &lse].map(|t| t.to_f32(&device).unwrap()[0]).into_iter().zip(exact) {
            assert!((f64::from(got) - exact).abs() < 1e-5, "{}: {got} {exact}", device.name());
        }
    }
}

/// Split attention, merged, is attention over all keys: with windows, slopes and sinks too, of which a part alone knows less.
#[test]
fn splits_merge_to_the_whole() {
    let [b, h, n, d] = SHAPE;
    let keys = [b, h, 200, d];
    let values = |len: usize, seed: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 4001) as f32 / 1000.0 - 2.0).collect()
    };
    let (q, kv) = (values(b * h * n * d, 1), values(b * h * 200 * d, 2));
    let (sinks, slopes) = ([0.5, -1.0, 2.0], [0.1, 0.02, 0.3, 0.2, 0.01, 0.0]);
    let dense = |shape: &[usize], values: &[f32]| {
        let data = values.iter().map(|&x| f64::from(x)).collect();
        View::contiguous(Dense { shape: shape.to_vec(), data }, Dtype::F32, shape).unwrap()
    };
    for op in [Attention::new(d).causal(), Attention::new(d).window(Some(90), Some(0))] {
        let out = View::contiguous((), Dtype::F32, &SHAPE).unwrap();
        let mut args = AttentionArgs::new(dense(&SHAPE, &q), dense(&keys, &kv), dense(&keys, &kv), out);
        (args.sinks, args.slopes) = (Some(dense(&[h], &sinks)), Some(dense(&[b, h], &slopes)));
        let exact = reference::attention::attention(&op, &args);
        for device in verify::devices().unwrap() {
            let tensor = |shape: &[usize], values: &[f32]| {
                Tensor::from_f32(&device, Dtype::F32, shape, values).unwrap()
            };
            let zeros = |shape: &[usize]| Tensor::new(&device, Dtype::F32, shape).unwrap();
            let (q, kv) = (tensor(&SHAPE, &q), tensor(&keys, &kv));
            let (sinks, slopes) = (tensor(&[h], &sinks), tensor(&[b, h], &slopes));
            let (mut parts, mut lses) = (zeros(&[4, b, h, n, d]), zeros(&[4, b, h, n]));
            let mut args = AttentionArgs::new(q.view(), kv.view(), kv.view(), parts.view_mut());
            (args.sinks, args.slopes) = (Some(sinks.view()), Some(slopes.view()));
            args.lse = Some(lses.view_mut());
            device.run(&op.splits(4), args).unwrap();
            merge_to(&device, &parts, &lses, &exact);
        }
    }
}
