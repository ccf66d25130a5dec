//! The harness is tested itself: every planted fault must be caught, and a faultless run must pass.

use advect::ops::{Resample, ResampleArgs};
use advect::verify::judge::Rounding;
use advect::verify::run::execute;
use advect::verify::{Case, Fill, Layout, Prepared, view};
use advect::{Device, Dtype};

/// Doubling a 2x3 image of 4 rows and 5 columns, stored with gaps, so that there is something to overrun.
fn doubled(dtype: Dtype) -> (Prepared<Resample>, Vec<u8>) {
    let case = Case {
        name: "planted".into(),
        op: Resample::Up2,
        args: ResampleArgs {
            x: view(dtype, &[2, 3, 4, 5], &Layout::Contiguous, Fill::Normal(1.0)),
            out: view(dtype, &[2, 3, 8, 10], &Layout::Gaps(vec![0, 1, 2, 3]), ()),
        },
    };
    let prepared = Prepared::new(&case);
    let output = execute(&Device::cpu(1).unwrap(), &prepared).unwrap().remove(0);
    (prepared, output)
}

/// Byte range of element (n, c, i, j) of the output.
fn at(prepared: &Prepared<Resample>, index: [usize; 4]) -> std::ops::Range<usize> {
    let out = &prepared.args.out;
    let position: usize = out.offset() + index.iter().zip(out.strides()).map(|(i, s)| i * s).sum::<usize>();
    let size = out.dtype().size();
    position * size..(position + 1) * size
}

fn nan(dtype: Dtype) -> &'static [u8] {
    match dtype {
        Dtype::F32 => &[0, 0, 0xc0, 0x7f],
        Dtype::F16 => &[0, 0x7e],
        Dtype::Bf16 => &[0xc0, 0x7f],
        Dtype::I32 | Dtype::U8 => panic!("no NaN"),
    }
}

/// Applies `fault` to a good output at every dtype; the verdict must name a fault that contains `says`.
fn caught(says: &str, fault: impl Fn(&Prepared<Resample>, &mut Vec<u8>)) {
    for dtype in Dtype::FLOATS {
        let (prepared, mut output) = doubled(dtype);
        let good = prepared.judge(&[output.clone()], Rounding::Exact);
        assert_eq!(good.fault, None, "a faultless run passes");
        fault(&prepared, &mut output);
        let verdict = prepared.judge(&[output], Rounding::Exact);
        let why = verdict.fault.unwrap_or_else(|| panic!("{dtype}: not caught"));
        assert!(why.contains(says), "{dtype}: `{why}` does not say `{says}`");
    }
}

#[test]
fn a_nan_is_caught_and_located() {
    caught("out[1, 2, 7, 9]", |p, out| {
        let range = at(p, [1, 2, 7, 9]);
        out[range].copy_from_slice(nan(p.args.out.dtype()));
    });
}

#[test]
fn one_wrong_element_is_caught() {
    caught("out[0, 1, 3, 4]", |p, out| {
        // One unit in the last place of the mantissa of the storage.
        let range = at(p, [0, 1, 3, 4]);
        out[range.start] ^= 1;
    });
}

#[test]
fn a_zeroed_row_is_caught() {
    caught("wanted", |p, out| {
        for j in 0..10 {
            let range = at(p, [0, 2, 5, j]);
            out[range].fill(0);
        }
    });
}

#[test]
fn a_shifted_row_is_caught() {
    caught("wanted", |p, out| {
        // Nearest neighbour repeats each pixel, so a shift by one moves half of them.
        let row: Vec<Vec<u8>> = (0..10).map(|j| out[at(p, [1, 0, 2, j])].to_vec()).collect();
        for (j, pixel) in row.iter().take(9).enumerate() {
            let range = at(p, [1, 0, 2, j + 1]);
            out[range].copy_from_slice(pixel);
        }
    });
}

#[test]
fn an_overrun_into_the_gaps_is_caught() {
    caught("overwritten", |p, out| {
        let range = at(p, [1, 2, 7, 9]);
        let size = range.len();
        out[range.end..range.end + size].fill(0);
    });
}

#[test]
fn a_write_into_the_fence_is_caught() {
    caught("element 0 of its memory", |_, out| out[0] ^= 0xff);
}

#[test]
fn an_element_never_written_is_caught() {
    caught("never written", |p, out| {
        let fence = out[..p.args.out.dtype().size()].to_vec();
        let range = at(p, [0, 0, 0, 0]);
        out[range].copy_from_slice(&fence);
    });
}

#[test]
fn a_fault_says_what_the_inputs_were() {
    caught("; of x [2, 3, 4, 5] in -", |p, out| {
        let range = at(p, [0, 2, 5, 1]);
        out[range.start] ^= 1;
    });
}

#[test]
fn an_input_of_the_outputs_shape_is_shown_at_the_place() {
    use advect::ops::{Step, StepArgs};
    let values = Fill::Values((0..6).map(|i| i as f32).collect());
    let x = view(Dtype::F32, &[2, 3], &Layout::Order(vec![1, 0]), values);
    let case = Case {
        name: "planted".into(),
        op: Step::sum(&[1.0]).unwrap(),
        args: StepArgs::over([x], view(Dtype::F32, &[2, 3], &Layout::Contiguous, ())).unwrap(),
    };
    let prepared = Prepared::new(&case);
    let mut output = execute(&Device::cpu(1).unwrap(), &prepared).unwrap().remove(0);
    let last = (prepared.args.out.offset() + 5) * 4;
    output[last..last + 4].fill(0);
    let why = prepared.judge(&[output], Rounding::Exact).fault.unwrap();
    assert!(why.contains("x0[1, 2] = 5e0"), "{why}");
}

#[test]
fn reasons_of_skips_are_counted() {
    use advect::verify::{Outcome, Status, Tally};
    let mut tally = Tally::default();
    let skip = |why: &str| Status::Skip(why.into());
    let all = [Status::Pass, skip("no f16"), Status::Fail("out".into()), skip("no f16"), skip("repeats")];
    for (status, worst) in all.into_iter().zip([0.5, 0.0, 2e9, 0.0, 0.0]) {
        let (case, device) = (worst.to_string(), String::new());
        tally.note(&Outcome { op: "", case, face: "", device, dtype: "", status, worst, at: vec![] });
    }
    let text = tally.to_string();
    assert!(text.starts_with("1 passed, 1 failed, 3 skipped, worst 2.000e9 of its bound"), "{text}");
    assert!(text.contains("\n    skipped 2: no f16\n    skipped 1: repeats"), "{text}");
    assert_eq!(tally.worst_case, "2000000000");
}

#[test]
fn a_missing_output_is_caught() {
    let (prepared, _) = doubled(Dtype::F32);
    assert!(prepared.judge(&[], Rounding::Exact).fault.is_some());
}

/// A harness that compares a thing with itself passes whatever the definition says. Ours must not.
#[test]
fn a_wrong_definition_is_caught() {
    let (mut prepared, output) = doubled(Dtype::F32);
    prepared.expected[0].value[17] += 1e-3;
    assert!(prepared.judge(&[output], Rounding::Exact).fault.is_some());
}

#[test]
fn a_bound_of_nan_does_not_pass() {
    let (mut prepared, mut output) = doubled(Dtype::F32);
    prepared.expected[0].error[0] = f64::NAN;
    let range = at(&prepared, [0, 0, 0, 0]);
    output[range].copy_from_slice(&7.0f32.to_le_bytes());
    assert!(prepared.judge(&[output], Rounding::Exact).fault.is_some());
}

#[cfg(feature = "ptx-sim")]
#[test]
fn simulated_gpus_leave_to_one_of_them_what_it_executes_as_well() {
    use advect::verify::{Selection, Status, simulators, verify};
    let devices = match simulators() {
        Ok(devices) => devices,
        Err(why) if advect::verify::required().iter().any(|face| face == "ptx-sim") => panic!("{why}"),
        Err(_) => return,
    };
    let selection = Selection { unrepeated: true, fuzz: 3, at_once: 2, ..Selection::default() };
    let mut counts = std::collections::BTreeMap::new();
    verify::<Resample>(&devices, &selection, &mut |o| {
        let [ran, left] = counts.entry(o.device).or_insert([0, 0]);
        *(if matches!(o.status, Status::Pass) { ran } else { left }) += 1;
    });
    let [[some, left], [others, _], [all, none]] =
        ["sm_100", "sm_75", "sm_80"].map(|arch| counts[&format!("ptx-sim {arch}")]);
    assert!(some > 0 && left > 0 && others > 0, "{counts:?}");
    assert!(all > 0 && none == 0, "{counts:?}");
}
