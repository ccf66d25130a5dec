//! What a careless or hostile caller may do, and gets an error for.

mod common;

use advect_capi::*;
use common::*;
use std::ffi::c_void;
use std::ptr::{null, null_mut, without_provenance_mut};

/// Every function with nothing but NULL and 0.
#[test]
fn nothing_but_null() {
    // SAFETY: NULL is what every pointer may be.
    unsafe {
        let argument = [
            ("advect_last_error", advect_last_error(null_mut())),
            ("advect_device_list", advect_device_list(null_mut(), null_mut())),
            ("advect_device_open", advect_device_open(null(), null(), null_mut())),
            ("advect_tensor_new", advect_tensor_new(null(), 0, 0, null(), null_mut())),
            ("advect_tensor_from_host", advect_tensor_from_host(null_mut(), 0, 0, 0, null(), 0, null_mut())),
            ("advect_tensor_from_cuda", advect_tensor_from_cuda(null(), 0, 0, 0, 0, null(), 0, null_mut())),
            ("advect_view_permute", advect_view_permute(null_mut(), null(), 0)),
            ("advect_view_slice", advect_view_slice(null_mut(), 0, 0, 0)),
            ("advect_view_split", advect_view_split(null_mut(), 0, 0)),
            ("advect_view_reshape", advect_view_reshape(null_mut(), 0, null())),
            ("advect_tensor_from_dlpack", advect_tensor_from_dlpack(null(), null_mut(), null_mut())),
            (
                "advect_tensor_from_dlpack_versioned",
                advect_tensor_from_dlpack_versioned(null(), null_mut(), null_mut()),
            ),
            ("advect_view_to_dlpack", advect_view_to_dlpack(null(), null_mut())),
            ("advect_view_to_dlpack_versioned", advect_view_to_dlpack_versioned(null(), null_mut())),
            ("advect_solver_new", advect_solver_new(null(), null_mut())),
            ("advect_device_on_stream", advect_device_on_stream(null(), null_mut(), null_mut())),
            ("advect_device_from_cuda_context", advect_device_from_cuda_context(null_mut(), null_mut())),
            ("matmul", advect_matmul(null(), null())),
            ("matmul", advect_matmul_plan(null(), null(), null_mut())),
            ("matmul", advect_matmul_warm(null(), null())),
            ("conv", advect_conv(null(), null())),
            ("conv", advect_conv_plan(null(), null(), null_mut())),
            ("conv", advect_conv_warm(null(), null())),
            ("norm", advect_norm(null(), null())),
            ("norm", advect_norm_plan(null(), null(), null_mut())),
            ("norm", advect_norm_warm(null(), null())),
            ("attention", advect_attention(null(), null())),
            ("attention", advect_attention_plan(null(), null(), null_mut())),
            ("attention", advect_attention_warm(null(), null())),
            ("merge", advect_merge(null(), null())),
            ("merge", advect_merge_plan(null(), null(), null_mut())),
            ("merge", advect_merge_warm(null(), null())),
            ("linear_attention", advect_linear_attention(null(), null())),
            ("linear_attention", advect_linear_attention_plan(null(), null(), null_mut())),
            ("linear_attention", advect_linear_attention_warm(null(), null())),
            ("resample", advect_resample(null(), null())),
            ("resample", advect_resample_plan(null(), null(), null_mut())),
            ("resample", advect_resample_warm(null(), null())),
            ("step", advect_step(null(), null())),
            ("step", advect_step_plan(null(), null(), null_mut())),
            ("step", advect_step_warm(null(), null())),
        ];
        for (name, status) in argument {
            assert_eq!(status, ADVECT_ERROR_ARGUMENT, "{name}");
        }
        let handle = [
            ("advect_device_describe", advect_device_describe(null(), null_mut())),
            ("advect_device_synchronize", advect_device_synchronize(null())),
            ("advect_tensor_data", advect_tensor_data(null(), null_mut())),
            ("advect_tensor_upload", advect_tensor_upload(null(), null(), 0)),
            ("advect_tensor_download", advect_tensor_download(null(), null_mut(), 0)),
            ("advect_tensor_upload_f32", advect_tensor_upload_f32(null(), null(), 0)),
            ("advect_tensor_download_f32", advect_tensor_download_f32(null(), null_mut(), 0)),
            ("advect_tensor_view", advect_tensor_view(null_mut(), null_mut())),
            ("advect_solver_describe", advect_solver_describe(null(), null_mut())),
            ("advect_solver_next", advect_solver_next(null(), null_mut())),
            ("advect_solver_reset", advect_solver_reset(null())),
            ("advect_solver_combine", advect_solver_combine(null(), null(), null(), null(), 0, null(), 0)),
        ];
        for (name, status) in handle {
            assert_eq!(status, ADVECT_ERROR_HANDLE, "{name}");
        }
        // As free(NULL) is.
        ok(advect_device_destroy(null_mut()));
        ok(advect_tensor_destroy(null_mut()));
        ok(advect_solver_destroy(null_mut()));
        // Each of them is in one of the lists above, or cannot fail.
        let never_fail = ["version", "version_string", "features", "status_name", "last_error_message"];
        let listed = argument.iter().chain(&handle).count() + 3 + never_fail.len();
        assert_eq!(listed, exported().len(), "{:?}", exported());
    }
}

/// The functions of the interface, each with the first line of its body.
fn exported() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for rest in text.split("#[unsafe(no_mangle)]").skip(1) {
            let name = rest.split("fn ").nth(1).unwrap().split('(').next().unwrap();
            let body = rest.split_once(" {\n").unwrap().1;
            all.push((name.to_owned(), body.lines().next().unwrap().trim().to_owned()));
        }
    }
    all
}

#[test]
fn every_entry_point_is_guarded() {
    for (name, body) in exported() {
        let cannot_fail =
            ["advect_version", "advect_version_string", "advect_features", "advect_status_name"];
        if !cannot_fail.contains(&&*name) && name != "advect_last_error_message" {
            assert!(body.starts_with("entry!(\""), "{name} begins with `{body}`");
        }
    }
}

#[test]
fn handles() {
    let device = open("cpu");
    let t = tensor(device, ADVECT_F32, &[2]);
    let mut info: advect_device_info = sized();
    // SAFETY: handles are numbers, whatever they are.
    unsafe {
        let as_device = t.cast::<advect_device>();
        refused(advect_device_describe(as_device, &raw mut info), ADVECT_ERROR_HANDLE, "got a tensor");
        let wild = without_provenance_mut(0x7fff_1234_5678);
        refused(advect_device_describe(wild, &raw mut info), ADVECT_ERROR_HANDLE, "no handle");
        let on_stack = (&raw mut info).cast::<advect_tensor>();
        assert_eq!(advect_tensor_destroy(on_stack), ADVECT_ERROR_HANDLE);

        let copy = view(t);
        ok(advect_tensor_destroy(t));
        refused(
            advect_tensor_destroy(t),
            ADVECT_ERROR_HANDLE,
            "`tensor`: wanted a tensor, got one that was destroyed",
        );
        // Its slot has a new owner, whom the old handle does not reach.
        let next = tensor(device, ADVECT_F32, &[2]);
        refused(advect_tensor_upload_f32(t, [1.0f32; 2].as_ptr(), 2), ADVECT_ERROR_HANDLE, "destroyed");
        let out = view(next);
        let args = advect_step_args { x: [&raw const copy; 8], out: &raw const out, ..sized() };
        refused(advect_step(device, &raw const args), ADVECT_ERROR_HANDLE, "step: `x0`");
        assert_eq!(values(next, 2), [0.0; 2]);

        let x = tensor(device, ADVECT_F32, &[2]);
        let input = view(x);
        let mut args = advect_step_args { out: &raw const out, ..sized() };
        args.x[0] = &raw const input;
        ok(advect_device_destroy(device));
        refused(advect_step(device, &raw const args), ADVECT_ERROR_HANDLE, "step: `device`");
        refused(advect_device_destroy(device), ADVECT_ERROR_HANDLE, "destroyed");
        // Tensors outlive their device.
        let other = open("cpu");
        ok(advect_step(other, &raw const args));
        for t in [x, next] {
            ok(advect_tensor_destroy(t));
        }
        ok(advect_device_destroy(other));
    }
}

#[test]
fn struct_sizes() {
    let device = open("cpu");
    let (x, y) = (tensor(device, ADVECT_F32, &[1, 1, 2, 2]), tensor(device, ADVECT_F32, &[1, 1, 4, 4]));
    let (x, out) = (view(x), view(y));
    let args =
        advect_resample_args { x: &raw const x, out: &raw const out, mode: ADVECT_RESAMPLE_UP2, ..sized() };
    #[repr(C)]
    struct Later {
        known: advect_resample_args,
        added: [u64; 2],
    }
    // SAFETY: structs are as large as they say, or are refused before they are read.
    unsafe {
        for size in [0, 1, size_of::<advect_resample_args>() - 1, 4097, usize::MAX] {
            let args = advect_resample_args { struct_size: size, ..args };
            refused(
                advect_resample(device, &raw const args),
                ADVECT_ERROR_ARGUMENT,
                "resample: `args`: wanted struct_size",
            );
        }
        let mut later = Later { known: args, added: [0; 2] };
        later.known.struct_size = size_of::<Later>();
        ok(advect_resample(device, (&raw const later).cast()));
        later.added[1] = 1 << 63;
        refused(advect_resample(device, (&raw const later).cast()), ADVECT_ERROR_ARGUMENT, "later version");
        let reserved = advect_resample_args { reserved: 7, ..args };
        refused(
            advect_resample(device, &raw const reserved),
            ADVECT_ERROR_ARGUMENT,
            "`reserved`: wanted 0, got 7",
        );
        let off = (&raw const args).cast::<u8>().wrapping_add(1).cast();
        refused(advect_resample(device, off), ADVECT_ERROR_ARGUMENT, "aligned");

        // A caller of a later header gets zeros where this library knows nothing.
        #[repr(C)]
        struct LaterInfo {
            known: advect_device_info,
            added: [u8; 24],
            fence: [u8; 8],
        }
        let mut info = LaterInfo { known: sized(), added: [7; 24], fence: [7; 8] };
        info.known.struct_size += 24;
        ok(advect_device_describe(device, (&raw mut info).cast()));
        assert_eq!((info.added, info.fence), ([0; 24], [7; 8]));
        info.known.struct_size = 8;
        refused(advect_device_describe(device, (&raw mut info).cast()), ADVECT_ERROR_ARGUMENT, "struct_size");
        for v in [x, out] {
            ok(advect_tensor_destroy(v.tensor));
        }
        ok(advect_device_destroy(device));
    }
}

#[test]
fn operands_and_options() {
    let device = open("cpu");
    let t = |shape: &[u64]| view(tensor(device, ADVECT_F32, shape));
    let (x, w, bias, out) = (t(&[1, 4, 5, 5]), t(&[2, 4, 3, 3]), t(&[3]), t(&[1, 2, 3, 3]));
    let half = view(tensor(device, ADVECT_F16, &[2, 4, 3, 3]));
    let conv = advect_conv_args { x: &raw const x, weight: &raw const w, out: &raw const out, ..sized() };
    let no = ADVECT_ERROR_ARGUMENT;
    // SAFETY: views are of living tensors; what is wrong with them is what is tested.
    unsafe {
        ok(advect_conv(device, &raw const conv));
        let with = |args: advect_conv_args, status, says: &str| {
            refused(advect_conv(device, &raw const args), status, says)
        };
        with(
            advect_conv_args { bias: &raw const bias, ..conv },
            no,
            "conv: `bias`: wanted shape [2], got [3]",
        );
        with(advect_conv_args { weight: null(), ..conv }, no, "conv: `weight`: wanted a pointer, got NULL");
        with(advect_conv_args { weight: &raw const half, ..conv }, no, "conv: `weight`: wanted f32");
        with(advect_conv_args { activation: 3, ..conv }, no, "conv: `activation`");
        with(advect_conv_args { groups: 3, ..conv }, no, "conv: `groups`");
        with(advect_conv_args { stride: [u32::MAX; 2], ..conv }, no, "conv: `out`");
        with(advect_conv_args { out: &raw const x, ..conv }, no, "conv: `out`");
        let mut error: advect_error = sized();
        ok(advect_last_error(&raw mut error));
        let text = |p| std::ffi::CStr::from_ptr(p).to_str().unwrap().to_owned();
        assert_eq!((error.status, text(error.op), text(error.argument)), (no, "conv".into(), "out".into()));
        assert!(!text(error.wanted).is_empty() && !text(error.got).is_empty());
        assert_eq!(text(error.message), message());

        for (view, says) in [
            (advect_view { rank: 7, ..x }, "at most 6 axes"),
            (advect_view { rank: u32::MAX, ..x }, "at most 6 axes"),
            (advect_view { rank: 3, ..x }, "conv: `x`"),
            (advect_view { dtype: 0, ..x }, "dtype"),
            (advect_view { dtype: 9, ..x }, "dtype"),
            (advect_view { offset: 1, ..x }, "inside the 100 of its memory"),
            (advect_view { offset: u64::MAX, ..x }, "overflows"),
            (advect_view { strides: [u64::MAX; 8], ..x }, "overflows"),
            (advect_view { shape: [u64::MAX; 8], ..x }, "conv: `x`"),
        ] {
            with(advect_conv_args { x: &raw const view, ..conv }, no, says);
        }
        let repeated = advect_view { strides: [0; 8], ..out };
        with(advect_conv_args { out: &raw const repeated, ..conv }, no, "no two elements coincide");
        // More memory beside the operands than there can be.
        let (pixel, taps, one) = (t(&[1, 1, 1, 1]), t(&[1, 1, 2, 2]), t(&[1, 1, 1, 1]));
        let far = advect_conv_args {
            x: &raw const pixel,
            weight: &raw const taps,
            out: &raw const one,
            padding: [1 << 29; 2],
            dilation: [1 << 30; 2],
            ..conv
        };
        with(far, ADVECT_ERROR_LIMIT, "conv: `x`: scratch memory in bytes of");
        ok(advect_last_error(&raw mut error));
        assert_eq!((text(error.op), text(error.argument)), ("conv".into(), "x".into()));
        assert!(text(error.wanted).starts_with("scratch memory in bytes of at most "));

        let norm = advect_norm_args { x: &raw const x, out: &raw const x, ..sized() };
        refused(advect_norm(device, &raw const norm), no, "`kind`");
        let norm = advect_norm_args { kind: ADVECT_NORM_RMS, groups: 2, ..norm };
        refused(advect_norm(device, &raw const norm), no, "`groups`");
        let norm = advect_norm_args { kind: ADVECT_NORM_GROUP, groups: 0, ..norm };
        refused(advect_norm(device, &raw const norm), no, "norm: `");
        let resample = advect_resample_args { x: &raw const x, out: &raw const out, ..sized() };
        refused(advect_resample(device, &raw const resample), no, "`mode`");
        let step = advect_step_args { x: [&raw const x; 8], out: &raw const out, noise: 2, ..sized() };
        refused(advect_step(device, &raw const step), no, "`noise`");
        let step = advect_step_args { noise: 0, noise_coefficient: 1.0, ..step };
        refused(advect_step(device, &raw const step), no, "step: `");
        let table = t(&[1, 9]);
        let step = advect_step_args { table: &raw const table, ..step };
        refused(advect_step(device, &raw const step), no, "zeros beside a table");
        let scale = advect_attention_args { softmax_scale: f32::NAN, ..sized() };
        refused(advect_attention(device, &raw const scale), no, "attention: `q`: wanted a pointer");
        let (q, o) = (t(&[1, 1, 2, 4]), t(&[1, 1, 2, 4]));
        let (q, out) = (&raw const q, &raw const o);
        let window = advect_attention_args { q, k: q, v: q, out, window: 3, ..sized() };
        refused(advect_attention(device, &raw const window), no, "`window`: wanted ADVECT_WINDOW_ALL");
        let side = advect_attention_args { window: ADVECT_WINDOW_CAUSAL, window_left: 1, ..window };
        refused(advect_attention(device, &raw const side), no, "`window_left`: wanted 0 and 0");
        let softcap = advect_attention_args { window: ADVECT_WINDOW_ALL, softcap: -1.0, ..window };
        refused(advect_attention(device, &raw const softcap), no, "`softcap`: wanted 0");
        let mask = advect_attention_args { window: ADVECT_WINDOW_ALL, mask: q, ..window };
        refused(advect_attention(device, &raw const mask), no, "`mask`: wanted u8");
        let mut plan: advect_plan = sized();
        plan.struct_size = 3;
        refused(advect_conv_plan(device, &raw const conv, &raw mut plan), no, "`plan`");
    }
}

#[test]
fn devices_that_are_not_there() {
    let (opened, none) = (std::cell::Cell::new(null_mut()), null());
    let open = |name: &[u8], options: *const advect_device_options| {
        assert_eq!(name.last(), Some(&0));
        // SAFETY: a string that ends.
        unsafe { advect_device_open(name.as_ptr().cast(), options, opened.as_ptr()) }
    };
    for name in [
        &b"\0"[..],
        b"gpu\0",
        b"cpu:0\0",
        b"wgpu:\0",
        b"wgpu:-1\0",
        b"wgpu:+0\0",
        b"cuda:99999999999\0",
        b"auto:1\0",
    ] {
        refused(open(name, none), ADVECT_ERROR_ARGUMENT, "`name`: wanted cpu, wgpu");
    }
    refused(open(b"\xff\xfe\0", none), ADVECT_ERROR_ARGUMENT, "UTF-8");
    for name in [&b"wgpu:4000000000\0"[..], b"cuda:77\0"] {
        let status = open(name, none);
        assert!([ADVECT_ERROR_UNAVAILABLE, ADVECT_ERROR_UNSUPPORTED].contains(&status), "{}", message());
    }
    let mut device = null_mut();
    // SAFETY: NULL is found out before it is used.
    let status = unsafe { advect_device_from_cuda_context(null_mut(), &raw mut device) };
    assert!([ADVECT_ERROR_ARGUMENT, ADVECT_ERROR_UNSUPPORTED].contains(&status), "{}", message());
    let many = advect_device_options { threads: 1 << 30, ..sized() };
    refused(open(b"cpu\0", &raw const many), ADVECT_ERROR_LIMIT, "`threads`: wanted at most 512");
    let two = advect_device_options { threads: 2, ..sized() };
    ok(open(b"cpu\0", &raw const two));
    let device = opened.get();
    let mut info: advect_device_info = sized();
    // SAFETY: handles and structs are what they should be.
    unsafe {
        ok(advect_device_describe(device, &raw mut info));
        assert_eq!((info.kind, info.threads), (ADVECT_DEVICE_CPU, 2));
        let mut out = null_mut();
        refused(advect_device_on_stream(device, null_mut(), &raw mut out), ADVECT_ERROR_ARGUMENT, "CUDA");
        ok(advect_device_synchronize(device));
        ok(advect_device_destroy(device));
    }
}

#[test]
fn lists() {
    // SAFETY: structs say their size, arrays are as long as their count.
    unsafe {
        let mut count = 77;
        ok(advect_device_list(null_mut(), &raw mut count));
        assert!((1..77).contains(&count));
        let mut all = vec![sized::<advect_device_info>(); count + 1];
        all[count].kind = 99;
        let mut room = count + 1;
        ok(advect_device_list(all.as_mut_ptr(), &raw mut room));
        assert_eq!((room, all[0].kind, all[count].kind), (count, ADVECT_DEVICE_CPU, 99));
        let name =
            |i: &advect_device_info| std::ffi::CStr::from_ptr(i.name.as_ptr()).to_str().unwrap().to_owned();
        assert_eq!(name(&all[0]), "cpu");
        let mut none = 0;
        ok(advect_device_list(all.as_mut_ptr(), &raw mut none));
        assert_eq!(none, 0);
        // Of entries that cannot all be aligned none is written.
        all[0].struct_size += 4;
        all[0].kind = 98;
        let (no, mut room) = (ADVECT_ERROR_ARGUMENT, count);
        refused(advect_device_list(all.as_mut_ptr(), &raw mut room), no, "`infos`: wanted a struct_size");
        assert_eq!((room, all[0].kind), (count, 98));
        (all[0].struct_size, all[0].kind) = (size_of::<advect_device_info>(), ADVECT_DEVICE_CPU);
        // Entries of a later header lie further apart; those after the first need no size.
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Later(advect_device_info, [u64; 3]);
        let mut later = vec![Later(sized(), [1; 3]); count];
        later.iter_mut().for_each(|l| l.0.struct_size = 0);
        later[0].0.struct_size = size_of::<Later>();
        ok(advect_device_list(later.as_mut_ptr().cast(), &raw mut count));
        for (later, info) in later.iter().zip(&all) {
            assert_eq!(
                (name(&later.0), later.1, later.0.struct_size),
                (name(info), [0; 3], size_of::<Later>())
            );
        }
    }
}

#[test]
fn memory() {
    let device = open("cpu");
    let mut t = null_mut();
    let no = ADVECT_ERROR_ARGUMENT;
    let mut floats = [1.0f32; 8];
    // SAFETY: what is wrong with the arguments is what is tested.
    unsafe {
        let new = |shape: &[u64], dtype| {
            let mut t = null_mut();
            advect_tensor_new(device, dtype, shape.len() as u32, shape.as_ptr(), &raw mut t)
        };
        refused(new(&[1; 7], ADVECT_F32), no, "`rank`: wanted at most 6, got 7");
        refused(new(&[1], 6), no, "`dtype`");
        refused(new(&[u64::MAX], ADVECT_F32), no, "`shape`");
        refused(new(&[1 << 32, 1 << 32], ADVECT_F32), no, "`shape`");
        refused(new(&[1 << 60], ADVECT_F32), ADVECT_ERROR_DRIVER, "bytes of memory");
        refused(
            advect_tensor_new(device, ADVECT_F32, 1, null(), &raw mut t),
            no,
            "`shape`: wanted a pointer",
        );
        refused(advect_tensor_new(device, ADVECT_F32, 0, null(), null_mut()), no, "`tensor`");
        ok(advect_tensor_new(device, ADVECT_F32, 0, null(), &raw mut t));
        assert_eq!(values(t, 1), [0.0]);
        ok(advect_tensor_destroy(t));
        let empty = tensor(device, ADVECT_BF16, &[3, 0]);
        ok(advect_tensor_upload(empty, null(), 0));
        ok(advect_tensor_destroy(empty));

        let lend = |data: *mut c_void, bytes, n: u64, flags| {
            let mut t = null_mut();
            (advect_tensor_from_host(data, bytes, ADVECT_F32, 1, &raw const n, flags, &raw mut t), t)
        };
        let data = floats.as_mut_ptr().cast::<c_void>();
        refused(lend(data, 31, 8, 0).0, no, "`bytes`: wanted at least 32, which the shape takes, got 31");
        refused(lend(null_mut(), 32, 8, 0).0, no, "`data`: wanted a pointer");
        refused(lend(data.wrapping_byte_add(1), 28, 7, 0).0, no, "aligned to the 4 bytes");
        refused(lend(data, usize::MAX, 8, 0).0, no, "at most");
        let last_page = without_provenance_mut(usize::MAX - 4095);
        refused(
            lend(last_page, 8192, 8, 0).0,
            no,
            "`data`: wanted bytes before the end of the address space",
        );
        refused(lend(data, 32, 8, 6).0, no, "`flags`");
        let (status, constant) = lend(data, 32, 8, ADVECT_READ_ONLY);
        ok(status);
        refused(advect_tensor_upload_f32(constant, [2.0f32; 8].as_ptr(), 8), no, "read-only");
        let x = view(constant);
        let mut args = advect_step_args { out: &raw const x, ..sized() };
        args.x[0] = &raw const x;
        refused(advect_step(device, &raw const args), no, "step: `out`: wanted memory that may be written");
        refused(advect_tensor_download(constant, data, 32), no, "the tensor's own memory");
        let mut bytes = [0u8; 33];
        refused(advect_tensor_download(constant, bytes.as_mut_ptr().cast(), 33), no, "`bytes`: wanted 32");
        refused(advect_tensor_download_f32(constant, null_mut(), 8), no, "`values`: wanted a pointer");
        refused(advect_tensor_download_f32(constant, bytes.as_mut_ptr().cast(), 7), no, "`count`: wanted 8");
        // Two tensors over one memory overlap all the same.
        let (status, same) = lend(data, 32, 8, 0);
        ok(status);
        let out = view(same);
        args.out = &raw const out;
        refused(advect_step(device, &raw const args), no, "memory apart from `x0`");
        for t in [constant, same] {
            ok(advect_tensor_destroy(t));
        }

        let mut v = view(tensor(device, ADVECT_F32, &[2, 6]));
        let before = format!("{v:?}");
        refused(advect_view_permute(&raw mut v, [0u32, 0].as_ptr(), 2), no, "permutation");
        refused(
            advect_view_permute(&raw mut v, [0u32].as_ptr(), 1),
            no,
            "advect_view_permute: `order`: wanted a permutation",
        );
        refused(advect_view_slice(&raw mut v, 2, 0, 1), no, "`axis`");
        refused(advect_view_slice(&raw mut v, 1, 3, 2), no, "`range`");
        refused(advect_view_slice(&raw mut v, 1, 0, u64::MAX), no, "`range`");
        refused(advect_view_split(&raw mut v, 1, 4), no, "multiple of 4");
        refused(advect_view_reshape(&raw mut v, 1, [11u64].as_ptr()), no, "11 elements");
        assert_eq!(before, format!("{v:?}"), "views are not changed by what is refused");
        ok(advect_tensor_destroy(v.tensor));
        ok(advect_device_destroy(device));
    }
}

#[test]
fn solvers() {
    let mut solver = null_mut();
    let euler = advect_solver_options { method: ADVECT_METHOD_EULER, steps: 2, ..sized() };
    let (nan, one) = ([0.0, f64::NAN], [1.0]);
    let no = ADVECT_ERROR_ARGUMENT;
    // SAFETY: arrays are as long as their count.
    unsafe {
        let mut made = |o: advect_solver_options, status, says: &str| {
            refused(advect_solver_new(&raw const o, &raw mut solver), status, says);
        };
        made(advect_solver_options { method: 0, ..euler }, no, "`method`");
        made(advect_solver_options { steps: 0, ..euler }, no, "`steps`");
        made(advect_solver_options { steps: u32::MAX, ..euler }, ADVECT_ERROR_LIMIT, "`steps`");
        made(advect_solver_options { times_count: 2, ..euler }, no, "`times`: wanted a pointer");
        made(advect_solver_options { times: nan.as_ptr(), times_count: 2, ..euler }, no, "`steps`");
        made(advect_solver_options { steps: 0, times: nan.as_ptr(), times_count: 2, ..euler }, no, "finite");
        made(
            advect_solver_options { steps: 0, times: nan.as_ptr(), times_count: usize::MAX, ..euler },
            ADVECT_ERROR_LIMIT,
            "`times_count`",
        );
        made(advect_solver_options { steps: 0, times: one.as_ptr(), ..euler }, no, "`times_count`");
        made(advect_solver_options { guided: 2, ..euler }, no, "`guided`");
        made(advect_solver_options { guidance_scale: 2.0, ..euler }, no, "without guidance");
        made(advect_solver_options { guided: 1, guidance_scale: f64::INFINITY, ..euler }, no, "finite");
        made(advect_solver_options { stages: 1, ..euler }, no, "ADVECT_METHOD_TABLEAU");
        let own = advect_solver_options { method: ADVECT_METHOD_TABLEAU, ..euler };
        made(own, no, "`stages`: wanted 1 to 7");
        made(advect_solver_options { stages: 8, order: 1, b: one.as_ptr(), ..own }, no, "`stages`");
        made(
            advect_solver_options { stages: 2, order: 1, b: one.as_ptr(), ..own },
            no,
            "`a`: wanted a pointer",
        );
        made(
            advect_solver_options { stages: 1, order: 2, b: one.as_ptr(), ..own },
            no,
            "condition of order 2",
        );

        ok(advect_solver_new(&raw const euler, &raw mut solver));
        let mut ask: advect_ask = sized();
        // A question is not lost when there is nowhere to put it.
        refused(advect_solver_next(solver, null_mut()), no, "`ask`");
        ok(advect_solver_next(solver, &raw mut ask));
        assert_eq!((ask.kind, ask.t), (ADVECT_ASK_EVAL, 0.0));
        let device = open("cpu");
        let v = [view(tensor(device, ADVECT_F32, &[1, 2])), view(tensor(device, ADVECT_F32, &[1, 2]))];
        let slope = view(tensor(device, ADVECT_F32, &[1, 2]));
        let combine = |ask: &advect_ask, states| {
            advect_solver_combine(solver, device, ask, v.as_ptr(), states, &raw const slope, 1)
        };
        refused(combine(&ask, 2), no, "`ask`: wanted kind ADVECT_ASK_COMBINE, got 1");
        ok(advect_solver_next(solver, &raw mut ask));
        refused(combine(&ask, 1), no, "`state_count`: wanted 2, got 1");
        ok(combine(&ask, 2));
        for wrong in [
            advect_term { index: 2, ..ask.terms[0] },
            advect_term { source: 0, ..ask.terms[0] },
            advect_term { branch: 1, ..ask.terms[1] },
            advect_term { index: u32::MAX, branch: 0, source: ADVECT_SOURCE_SLOPE, ..ask.terms[1] },
        ] {
            let mut bad = ask;
            bad.terms[1] = wrong;
            refused(combine(&bad, 2), no, "terms of this solver");
        }
        refused(combine(&advect_ask { term_count: 9, ..ask }, 2), no, "1 to 8 terms");
        refused(combine(&advect_ask { state: 2, ..ask }, 2), no, "a state below 2");
        ok(advect_solver_destroy(solver));
        refused(advect_solver_next(solver, &raw mut ask), ADVECT_ERROR_HANDLE, "destroyed");
    }
}

#[test]
fn other_devices_memory() {
    for name in asked().into_iter().filter(|name| *name != "cpu") {
        let (cpu, gpu) = (open("cpu"), open(name));
        let face = name.split(':').next().unwrap();
        let x = |device| view(tensor(device, ADVECT_F32, &[4]));
        let (here, there, there_too, out) = (x(cpu), x(gpu), x(gpu), x(gpu));
        // SAFETY: views are of living tensors.
        unsafe {
            let run = |device, x: &advect_view, out: &advect_view| {
                let mut args = advect_step_args { out, ..sized() };
                args.x[0] = x;
                args.coefficients[0] = 1.0;
                advect_step(device, &raw const args)
            };
            let elsewhere = "got memory of another device";
            refused(
                run(gpu, &here, &out),
                ADVECT_ERROR_ARGUMENT,
                &format!("step: `x0`: wanted memory that this device ({face}) reaches, {elsewhere}"),
            );
            refused(run(cpu, &here, &out), ADVECT_ERROR_ARGUMENT, "step: `out`");
            ok(run(gpu, &there, &out));
            let again = open(name);
            refused(run(again, &there, &there_too), ADVECT_ERROR_ARGUMENT, elsewhere);
            if face == "wgpu" {
                let mut data = null_mut();
                refused(
                    advect_tensor_data(there.tensor, &raw mut data),
                    ADVECT_ERROR_UNSUPPORTED,
                    "advect_tensor_download",
                );
                let mut managed = null_mut();
                refused(
                    advect_view_to_dlpack(&raw const there, &raw mut managed),
                    ADVECT_ERROR_UNSUPPORTED,
                    "wgpu",
                );
            }
            // Destroyed with work under way.
            ok(advect_device_destroy(gpu));
            assert_eq!(values(out.tensor, 4), [0.0; 4]);
            for v in [here, there, there_too, out] {
                ok(advect_tensor_destroy(v.tensor));
            }
            for d in [cpu, again] {
                ok(advect_device_destroy(d));
            }
        }
    }
}
