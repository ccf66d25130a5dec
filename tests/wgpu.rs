//! The wgpu target: a borrowed device and pass, both ways that params travel, limits, wgpu's own rules.
//! Skipped, with a message, where there is no adapter; `ADVECT_REQUIRE=wgpu` makes that a failure.
#![cfg(feature = "wgpu")]

use advect::ops::{Resample, ResampleArgs};
use advect::target::wgpu::{Queue, Wgpu, adapters};
use advect::verify::{Selection, Status, required, verify};
use advect::{Device, Dtype, Error, Tensor, View};
use wgpu::{BufferUsages, Features, Limits};

/// A device of the first adapter with chosen features and limits.
fn open(features: Features, change: impl Fn(&mut Limits)) -> Option<(wgpu::Device, wgpu::Queue)> {
    let Some(adapter) = adapters().into_iter().next() else {
        assert!(!required().iter().any(|f| f == "wgpu"), "wgpu is required and there is no adapter");
        println!("skipped: no wgpu adapter");
        return None;
    };
    let features = features & adapter.features();
    let mut limits = adapter.limits();
    if !features.contains(Features::IMMEDIATES) {
        limits.max_immediate_size = 0;
    }
    change(&mut limits);
    let descriptor =
        wgpu::DeviceDescriptor { required_features: features, required_limits: limits, ..Default::default() };
    Some(pollster::block_on(adapter.request_device(&descriptor)).unwrap())
}

fn buffer(device: &wgpu::Device, bytes: u64, usage: BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes,
        usage,
        mapped_at_creation: false,
    })
}

const USE: BufferUsages = BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

#[test]
fn records_into_a_pass_of_the_host() {
    let Some((device, queue)) = open(Features::empty(), |_| ()) else { return };
    let wgpu = Wgpu::from_device(device.clone());
    let (x, mid, out) = (buffer(&device, 16, USE), buffer(&device, 64, USE), buffer(&device, 256, USE));
    queue.write_buffer(&x, 0, bytemuck::cast_slice(&[1.0f32, 2.0, 3.0, 4.0]));
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let up = |x, h, out| ResampleArgs {
        x: View::contiguous(x, Dtype::F32, &[1, 1, h, h]).unwrap(),
        out: View::contiguous(out, Dtype::F32, &[1, 1, 2 * h, 2 * h]).unwrap(),
    };
    wgpu.within(&mut pass).run(&Resample::Up2, up(&x, 2, &mid)).unwrap();
    wgpu.within(&mut pass).run(&Resample::Up2, up(&mid, 4, &out)).unwrap();
    drop(pass);
    queue.submit([encoder.finish()]);
    let mut bytes = [0; 256];
    Queue::new((wgpu, queue)).read(&out, &mut bytes).unwrap();
    let got: &[f32] = &bytemuck::pod_collect_to_vec(&bytes);
    for (e, v) in got.iter().enumerate() {
        assert_eq!(*v, [1.0, 2.0, 3.0, 4.0][e / 8 / 4 * 2 + e % 8 / 4]);
    }
}

/// The whole resample list, on a device made with these features and limits.
fn all_cases_pass(features: Features, change: impl Fn(&mut Limits)) {
    let Some((device, queue)) = open(features, change) else { return };
    let device = Device::Wgpu(Queue::new((Wgpu::from_device(device), queue)));
    let mut ran = 0;
    verify::<Resample>(&[device], &Selection::default(), &mut |o| {
        assert_eq!(o.status, Status::Pass, "{} {}", o.case, o.dtype);
        ran += 1;
    });
    assert!(ran > 0);
}

#[test]
fn without_any_feature_params_come_by_uniform() {
    all_cases_pass(Features::empty(), |_| ());
}

#[test]
fn with_immediates_alone() {
    all_cases_pass(Features::IMMEDIATES, |_| ());
}

#[test]
fn within_the_smallest_limits_of_webgpu() {
    all_cases_pass(Features::empty(), |l| {
        let least = Limits::default();
        l.max_compute_invocations_per_workgroup = least.max_compute_invocations_per_workgroup;
        l.max_compute_workgroup_storage_size = least.max_compute_workgroup_storage_size;
        l.max_storage_buffers_per_shader_stage = least.max_storage_buffers_per_shader_stage;
    });
}

/// A call larger than one binding is cut along the batch; one sample larger than that is refused.
#[test]
fn large_calls_are_cut_along_the_batch() {
    let Some((device, queue)) = open(Features::empty(), |l| l.max_storage_buffer_binding_size = 16 << 10)
    else {
        return;
    };
    let wgpu = Wgpu::from_device(device.clone());
    let queue = Queue::new((wgpu, queue));
    // 5 samples of 4 KiB in and 1 KiB out: 20 KiB do not fit 16.
    let values: Vec<f32> = (0..5 * 1024).map(|i| i as f32).collect();
    let (x, out) = (buffer(&device, 20 << 10, USE), buffer(&device, 5 << 10, USE));
    queue.write(&x, bytemuck::cast_slice(&values)).unwrap();
    let args = ResampleArgs {
        x: View::contiguous(&x, Dtype::F32, &[5, 1, 32, 32]).unwrap(),
        out: View::contiguous(&out, Dtype::F32, &[5, 1, 16, 16]).unwrap(),
    };
    queue.run(&Resample::Down2, args).unwrap();
    let mut bytes = vec![0; 5 << 10];
    queue.read(&out, &mut bytes).unwrap();
    let got: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
    for (e, v) in got.iter().enumerate() {
        let (n, i, j) = (e / 256, e / 16 % 16, e % 16);
        assert_eq!(*v, (n * 1024 + 2 * i * 32 + 2 * j) as f32 + 16.5);
    }
    let big = buffer(&device, 64 << 10, USE);
    let args = ResampleArgs {
        x: View::contiguous(&x, Dtype::F32, &[1, 1, 64, 64]).unwrap(),
        out: View::contiguous(&big, Dtype::F32, &[1, 1, 128, 128]).unwrap(),
    };
    let error = queue.run(&Resample::Up2, args).unwrap_err();
    assert!(matches!(error, Error::Limit { op: "resample", arg: "x", limit: 16384, .. }), "{error}");
}

#[test]
fn rules_of_wgpu_are_typed_errors() {
    let Some((device, queue)) = open(Features::empty(), |_| ()) else { return };
    let queue = Queue::new((Wgpu::from_device(device.clone()), queue));
    let run = |x: &wgpu::Buffer, out: &wgpu::Buffer, offset| {
        let strides = [16, 16, 4, 1];
        queue.run(
            &Resample::Up2,
            ResampleArgs {
                x: View::contiguous(x, Dtype::F32, &[1, 1, 2, 2]).unwrap(),
                out: View::strided(out, Dtype::F32, &[1, 1, 4, 4], &strides, offset).unwrap(),
            },
        )
    };
    let good = buffer(&device, 256, USE);
    let copy_only = buffer(&device, 256, BufferUsages::COPY_DST);
    let error = run(&copy_only, &good, 0).unwrap_err().to_string();
    assert!(error.contains("`x`: wanted a buffer with STORAGE usage"), "{error}");
    let error = run(&good, &good, 32).unwrap_err().to_string();
    assert!(error.contains("`out`: wanted a buffer other than that of `x`"), "{error}");
    let gone = buffer(&device, 256, USE);
    gone.destroy();
    let error = run(&gone, &good, 0).unwrap_err();
    assert!(matches!(error, Error::Driver { .. }), "{error}");
    let odd = buffer(&device, 255, USE);
    let error = run(&odd, &good, 0).unwrap_err().to_string();
    assert!(error.contains("multiple of 4 bytes, got 255"), "{error}");
}

/// Bytes that do not fill a word are written where no other byte shares it.
#[test]
fn a_write_that_ends_inside_a_word_is_the_buffers_last() {
    let Some((device, queue)) = open(Features::empty(), |_| ()) else { return };
    let queue = Queue::new((Wgpu::from_device(device), queue));
    let buffer = queue.alloc(8).unwrap();
    queue.write(&buffer, &[7; 8]).unwrap();
    let error = queue.write(&buffer, &[1; 3]).unwrap_err().to_string();
    assert!(error.contains("`bytes`: wanted a multiple of 4 bytes, or more than 4 of 8, got 3"), "{error}");
    queue.write(&buffer, &[1; 5]).unwrap();
    let mut bytes = [9; 8];
    queue.read(&buffer, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 1, 1, 1, 1, 0, 0, 0]);
}

#[test]
fn memory_of_another_device_is_refused() {
    let Some(first) = open(Features::empty(), |_| ()) else { return };
    let Some(second) = open(Features::empty(), |_| ()) else { return };
    let device = |(device, queue)| Device::Wgpu(Queue::new((Wgpu::from_device(device), queue)));
    let (first, second) = (device(first), device(second));
    let x = Tensor::new(&first, Dtype::F32, &[1, 1, 2, 2]).unwrap();
    let mut out = Tensor::new(&second, Dtype::F32, &[1, 1, 4, 4]).unwrap();
    let error = second.run(&Resample::Up2, ResampleArgs { x: x.view(), out: out.view_mut() }).unwrap_err();
    assert!(error.to_string().contains("memory of this device (wgpu)"), "{error}");
    assert!(x.to_f32(&second).is_err());
    assert_eq!(out.to_f32(&second).unwrap(), [0.0; 16]);
}

fn fails_as_lost(what: &str, result: Result<(), Error>) {
    let error = result.expect_err(what);
    assert!(matches!(error, Error::Driver { .. }), "{what}: {error}");
}

/// Destroys the device under a queue that has just been used. The next call that allocates or waits finds out,
/// and from then on every call says so; none panics or hangs.
fn lose(queue: &Queue, first: impl Fn(&Queue, [&wgpu::Buffer; 2]) -> Result<(), Error>) {
    let (x, out) = (queue.alloc(16).unwrap(), queue.alloc(64).unwrap());
    let args = || ResampleArgs {
        x: View::contiguous(&x, Dtype::F32, &[1, 1, 2, 2]).unwrap(),
        out: View::contiguous(&out, Dtype::F32, &[1, 1, 4, 4]).unwrap(),
    };
    queue.run(&Resample::Up2, args()).unwrap();
    queue.wgpu().device().destroy();
    fails_as_lost("first", first(queue, [&x, &out]));
    fails_as_lost("run", queue.run(&Resample::Up2, args()));
    fails_as_lost("warm", queue.wgpu().warm(&Resample::Up2, &args()));
    fails_as_lost("prepare", queue.wgpu().prepare(&Resample::Up2, args()).map(drop));
    fails_as_lost("write", queue.write(&x, &[0; 16]));
    fails_as_lost("alloc", queue.alloc(1 << 20).map(drop));
    fails_as_lost("read", queue.read(&out, &mut [0; 64]));
    fails_as_lost("synchronize", queue.synchronize());
}

#[test]
fn loss_of_a_device_is_an_error() {
    type Call = fn(&Queue, [&wgpu::Buffer; 2]) -> Result<(), Error>;
    // Of a kernel that is not compiled yet.
    let warm: Call = |q, [_, out]| {
        let view = |shape| View::contiguous(out, Dtype::F32, shape).unwrap();
        q.wgpu().warm(&Resample::Down2, &ResampleArgs { x: view(&[0, 1, 2, 2]), out: view(&[0, 1, 1, 1]) })
    };
    // And of one that is.
    let prepare: Call = |q, [x, out]| {
        let x = View::contiguous(x, Dtype::F32, &[1, 1, 2, 2]).unwrap();
        let out = View::contiguous(out, Dtype::F32, &[1, 1, 4, 4]).unwrap();
        q.wgpu().prepare(&Resample::Up2, ResampleArgs { x, out }).map(drop)
    };
    let calls: [Call; 5] = [
        |q, _| q.synchronize(),
        |q, [_, out]| q.read(out, &mut [0; 64]),
        |q, _| q.alloc(64).map(drop),
        warm,
        prepare,
    ];
    for first in calls {
        if open(Features::empty(), |_| ()).is_none() {
            return;
        }
        lose(&Queue::new(Wgpu::new(0).unwrap()), first);
    }
}

/// Params that come by a buffer cannot be put into one of a lost device: the launch finds out by itself.
#[test]
fn loss_is_found_out_by_a_launch_with_a_uniform() {
    let Some((device, queue)) = open(Features::empty(), |_| ()) else { return };
    lose(&Queue::new((Wgpu::from_device(device), queue)), |q, [x, out]| {
        let x = View::contiguous(x, Dtype::F32, &[1, 1, 2, 2]).unwrap();
        let out = View::contiguous(out, Dtype::F32, &[1, 1, 4, 4]).unwrap();
        q.run(&Resample::Up2, ResampleArgs { x, out })
    });
}

/// The host's callback is the host's.
#[test]
fn loss_of_the_hosts_device_is_an_error() {
    let Some((device, queue)) = open(Features::empty(), |_| ()) else { return };
    let told = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let tell = told.clone();
    device.set_device_lost_callback(move |_, _| tell.store(true, std::sync::atomic::Ordering::Relaxed));
    lose(&Queue::new((Wgpu::from_device(device), queue)), |q, _| q.synchronize());
    assert!(told.load(std::sync::atomic::Ordering::Relaxed), "the host's callback was replaced");
}

/// What wgpu refuses when it is submitted is an error too: a buffer that the host destroyed after it was recorded.
#[test]
fn a_buffer_destroyed_under_a_recorded_launch_is_an_error() {
    let Some((device, queue)) = open(Features::empty(), |_| ()) else { return };
    let queue = Queue::new((Wgpu::from_device(device), queue));
    let [x, out] = [16, 64].map(|bytes| queue.alloc(bytes).unwrap());
    let args = |x| ResampleArgs {
        x: View::contiguous(x, Dtype::F32, &[1, 1, 2, 2]).unwrap(),
        out: View::contiguous(&out, Dtype::F32, &[1, 1, 4, 4]).unwrap(),
    };
    queue.run(&Resample::Up2, args(&x)).unwrap();
    x.destroy();
    let error = queue.synchronize().unwrap_err();
    assert!(matches!(error, Error::Driver { call: "submit", .. }), "{error}");
    let error = queue.write(&x, &[0; 16]).unwrap_err();
    assert!(matches!(error, Error::Driver { call: "write_buffer", .. }), "{error}");
    let error = queue.read(&x, &mut [0; 16]).unwrap_err();
    assert!(matches!(error, Error::Driver { call: "copy", .. }), "{error}");
    // And the queue goes on.
    let x = queue.alloc(16).unwrap();
    queue.run(&Resample::Up2, args(&x)).unwrap();
    queue.synchronize().unwrap();
}

/// What a device cannot hold is an error, not a crash, and the device goes on.
#[test]
fn more_memory_than_there_is_is_an_error() {
    let Some((device, queue)) = open(Features::empty(), |_| ()) else { return };
    let queue = Queue::new((Wgpu::from_device(device), queue));
    let error = queue.alloc(1 << 60).unwrap_err();
    assert!(matches!(error, Error::Limit { .. } | Error::Driver { .. }), "{error}");
    let error = queue.alloc(usize::MAX).unwrap_err();
    assert!(matches!(error, Error::Limit { .. } | Error::Driver { .. }), "{error}");
    let device = Device::Wgpu(queue);
    let x = Tensor::new(&device, Dtype::F32, &[1, 1, 2, 2]).unwrap();
    let mut out = Tensor::new(&device, Dtype::F32, &[1, 1, 4, 4]).unwrap();
    device.run(&Resample::Up2, ResampleArgs { x: x.view(), out: out.view_mut() }).unwrap();
    assert_eq!(out.to_f32(&device).unwrap(), [0.0; 16]);
}

/// A driver without memory left is an error of the driver's, and once memory is given back the device goes on. In a
/// process of its own, which may not grow any more; a driver with memory of its own does not mind.
#[cfg(target_os = "linux")]
#[test]
fn a_driver_out_of_memory_is_an_error() {
    use std::process::Command;
    const NAME: &str = "a_driver_out_of_memory_is_an_error";
    if std::env::var_os("ADVECT_TEST_STARVED").is_none() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]).env("ADVECT_TEST_STARVED", "1");
        let output = command.output().unwrap();
        let text = [&output.stdout, &output.stderr].map(|t| String::from_utf8_lossy(t).into_owned()).concat();
        assert!(output.status.success(), "{}\n{text}", output.status);
        return println!("{text}");
    }
    let Some((device, queue)) = open(Features::empty(), |_| ()) else { return };
    let queue = Queue::new((Wgpu::from_device(device), queue));
    let device = Device::Wgpu(queue.clone());
    let works = || {
        let x = Tensor::from_f32(&device, Dtype::F32, &[1, 1, 1, 1], &[3.0]).unwrap();
        let mut out = Tensor::new(&device, Dtype::F32, &[1, 1, 2, 2]).unwrap();
        device.run(&Resample::Up2, ResampleArgs { x: x.view(), out: out.view_mut() }).unwrap();
        assert_eq!(out.to_f32(&device).unwrap(), [3.0; 4]);
    };
    // The driver starts its threads and makes its code while there is memory: it may not live without.
    works();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")).unwrap();
    let limit = 1024 * (size.trim().parse::<u64>().unwrap() + (512 << 10));
    let pid = std::process::id().to_string();
    let starved = Command::new("prlimit").args(["--pid", &pid, &format!("--as={limit}")]).status();
    if !starved.is_ok_and(|status| status.success()) {
        return println!("skipped: there is no prlimit (util-linux)");
    }
    let mut held = Vec::new();
    let error = loop {
        match queue.alloc(64 << 20) {
            Ok(buffer) if held.len() < 64 => held.push(buffer),
            Ok(_) => {
                let kind = adapters()[0].get_info().device_type;
                assert_ne!(kind, wgpu::DeviceType::Cpu, "a driver on the CPU lives on the process's memory");
                return println!("skipped: this driver has memory of its own");
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Driver { call: "create_buffer", .. }), "{error}");
    println!("after {} times 64 MiB: {error}", held.len());
    held.clear();
    queue.synchronize().unwrap();
    works();
}

#[test]
fn a_missing_adapter_says_what_to_do() {
    let error = Wgpu::new(99).unwrap_err().to_string();
    assert!(error.contains("adapter 99") && error.contains("install a Vulkan driver"), "{error}");
}
