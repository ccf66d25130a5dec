//! Devices are shared by threads: what each thread computes is what it would compute alone, bit for bit.

use advect::ops::{Attention, AttentionArgs, Conv, ConvArgs, Noise, Step, StepArgs};
use advect::{Cpu, Device, Dtype, Result, Tensor, View, verify};

/// Everything that hosts keep and pass between threads.
#[test]
fn handles_are_send_and_sync() {
    fn shared<T: Send + Sync>() {}
    shared::<Device>();
    shared::<Tensor>();
    shared::<Cpu>();
    shared::<advect::Error>();
    shared::<advect::solver::Solver>();
    shared::<View<&[u8]>>();
    shared::<Conv>();
    #[cfg(feature = "wgpu")]
    {
        shared::<advect::target::wgpu::Wgpu>();
        shared::<advect::target::wgpu::Queue>();
        shared::<advect::target::wgpu::Prepared>();
    }
    #[cfg(feature = "cuda")]
    {
        shared::<advect::target::cuda::Cuda>();
        shared::<advect::target::cuda::Compiler>();
        shared::<advect::target::cuda::DevicePtr>();
    }
}

/// Noise, a convolution over it and attention among its pixels, all told by `seed`.
fn work(device: &Device, seed: u64) -> Result<Vec<f32>> {
    let (channels, side) = (8, 6 + seed as usize % 3);
    let shape = [2, channels, side, side];
    let noise = |shape: &[usize], stream| {
        let (unread, mut out) =
            (Tensor::new(device, Dtype::F32, shape)?, Tensor::new(device, Dtype::F32, shape)?);
        let noise = Step::noise(1.0, Noise { seed, stream });
        device.run(&noise, StepArgs::over([unread.view()], out.view_mut())?)?;
        Ok::<_, advect::Error>(out)
    };
    let (x, weight) = (noise(&shape, 0)?, noise(&[channels, channels, 3, 3], 10)?);
    let (mut y, mut z) = (Tensor::new(device, Dtype::F32, &shape)?, Tensor::new(device, Dtype::F32, &shape)?);
    let conv = Conv { padding: [1, 1], ..Conv::default() };
    device.run(
        &conv,
        ConvArgs {
            x: x.view(),
            weight: weight.view(),
            bias: None,
            sample_bias: None,
            residual: Some(x.view()),
            out: y.view_mut(),
        },
    )?;
    // An NCHW image as one head whose tokens are pixels.
    let tokens = [2, 1, side * side, channels];
    let heads = |t| View::reshape(t, &[2, 1, channels, side * side])?.permute(&[0, 1, 3, 2]);
    assert_eq!(heads(y.view())?.shape(), tokens);
    let out = z.view_mut().reshape(&[2, 1, channels, side * side])?.permute(&[0, 1, 3, 2])?;
    device.run(
        &Attention::new(channels),
        AttentionArgs::new(heads(y.view())?, heads(x.view())?, heads(x.view())?, out),
    )?;
    z.to_f32(device)
}

#[test]
fn many_threads_share_a_device() {
    for device in verify::devices().unwrap() {
        let alone: Vec<Vec<f32>> = (0..8).map(|seed| work(&device, seed).unwrap()).collect();
        std::thread::scope(|scope| {
            for (seed, alone) in alone.iter().enumerate() {
                let device = &device;
                scope.spawn(move || {
                    for _ in 0..3 {
                        let together = work(device, seed as u64).unwrap();
                        assert!(&together == alone, "{}, seed {seed}", device.name());
                    }
                });
            }
        });
    }
}

/// A device whose kernels nobody compiled yet: threads that meet there compile each kernel once and all use it.
#[test]
fn threads_meet_at_a_fresh_device() {
    for fresh in verify::devices().unwrap() {
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| work(&fresh, 3).unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(results.iter().all(|r| r == &results[0]), "{}", fresh.name());
    }
}

/// The number of threads changes no bit.
#[test]
fn any_number_of_threads_gives_the_same() {
    let with = |threads| work(&Device::cpu(threads).unwrap(), 5).unwrap();
    let one = with(1);
    assert!(with(2) == one);
    assert!(with(5) == one);
    let host = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let callers = host.install(|| work(&Device::Cpu(Cpu::in_callers_pool()), 5).unwrap());
    assert!(callers == one);
}
