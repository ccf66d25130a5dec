//! The very kernels and arguments of the graph, executed by the PTX simulator; and what takes a GPU, skipped where
//! there is none unless `ADVECT_REQUIRE` asks for `cuda`.

use super::*;
use advect::Error::Unavailable;
use advect::target::ptx_sim::{Place, PtxSim};
use cudarc::driver::{result, sys};

impl Launch<Place> for &PtxSim {
    fn run<T: Op>(&mut self, op: &T, args: T::Args<Place, Place>) -> advect::Result<()> {
        PtxSim::run(self, op, args)
    }
}

#[test]
fn the_loop_ends_on_the_ring() {
    let sim = match PtxSim::new(80, None) {
        Err(Unavailable { why, .. }) if std::env::var_os("ADVECT_NVRTC").is_none() => {
            return println!("skipped: {why}");
        }
        sim => sim.unwrap(),
    };
    let ones = [1.0f32];
    let upload = |data: &[f32]| {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let mut buffer = sim.alloc(bytes.len());
        sim.write(&mut buffer, bytes).unwrap();
        buffer
    };
    let (data, one) = (upload(&flow::ring()), upload(&ones));
    let rest: Vec<_> = (0..4).map(|_| upload(&[0.0; 4 * flow::PARTICLES])).collect();
    let [first, second, mean, velocity] = [0, 1, 2, 3].map(|i| rest[i].place());
    let buffers = Buffers { states: [first, second], mean, velocity, data: data.place(), one: one.place() };
    let result = flow::sample(&mut &sim, &buffers, 1).unwrap();
    let result = rest.iter().find(|b| b.place() == result).unwrap();
    let mut particles = vec![0.0f32; 4 * flow::PARTICLES];
    sim.read(result, bytemuck::cast_slice_mut(&mut particles)).unwrap();
    let farthest = flow::farthest(&particles);
    assert!(farthest < 0.05, "a particle ends {farthest} off the ring");
    // Particles that started elsewhere end elsewhere.
    let right = particles.chunks(4).filter(|p| p[0] > 0.0).count();
    assert!((200..300).contains(&right), "{right} of {} are on the right", flow::PARTICLES);
}

/// advect on the first GPU, if there is one.
fn gpu() -> Option<Cuda> {
    match Cuda::new(0) {
        Ok(advect) => Some(advect),
        Err(why) => {
            let required = std::env::var("ADVECT_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|face| face == "cuda"), "{why}");
            println!("skipped: {why}");
            None
        }
    }
}

#[test]
fn threads_share_a_device_each_with_its_stream() {
    let Some(advect) = gpu() else { return };
    let context = CudaContext::new(0).unwrap();
    let run = |seed| {
        let lane = Lane::new(&context).unwrap();
        // SAFETY: the stream is of the primary context and lives as long as the lane.
        let mut into = unsafe { advect.on(lane.stream.cu_stream().cast()) };
        let place = flow::sample(&mut into, &lane.buffers(), seed).unwrap();
        lane.read(place).unwrap()
    };
    // The threads meet while kernels are being compiled, and again afterwards.
    for _ in 0..2 {
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || run(i % 4))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for seed in 0..4 {
            assert!(all[seed] == all[seed + 4] && flow::farthest(&all[seed]) < 0.05, "seed {seed}");
        }
    }
}

#[test]
fn a_context_of_the_hosts_own_stays_the_current_one() {
    if gpu().is_none() {
        return;
    }
    let mut own = std::ptr::null_mut();
    let bytes = 16 * flow::PARTICLES;
    // SAFETY: the context is made, current while memory is made in it, and destroyed after all that uses it.
    unsafe {
        sys::cuCtxCreate_v4(&raw mut own, std::ptr::null_mut(), 0, 0).result().unwrap();
        // Nor does advect change it when it starts on the primary context, or ends.
        drop(gpu());
        assert_eq!(result::ctx::get_current().unwrap(), Some(own));
        let advect = gpu().unwrap();
        assert_eq!(result::ctx::get_current().unwrap(), Some(own));
        let upload = |data: &[f32]| {
            let address = result::malloc_sync(4 * data.len()).unwrap();
            result::memcpy_htod_sync(address, data).unwrap();
            DevicePtr::new(address, 4 * data.len() as u64)
        };
        let (data, one) = (upload(&flow::ring()), upload(&[1.0]));
        let [first, second, mean, velocity] = [(); 4].map(|()| upload(&vec![0.0; 4 * flow::PARTICLES]));
        let buffers = Buffers { states: [first, second], mean, velocity, data, one };
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
        {
            let advect = Cuda::from_context(own.cast()).unwrap();
            let mut into = advect.on(stream.cast());
            let place = flow::sample(&mut into, &buffers, 3).unwrap();
            result::stream::synchronize(stream).unwrap();
            assert_eq!(result::ctx::get_current().unwrap(), Some(own));
            let mut particles = vec![0.0f32; bytes / 4];
            result::memcpy_dtoh_sync(&mut particles, place.address()).unwrap();
            let farthest = flow::farthest(&particles);
            assert!(farthest < 0.05, "a particle ends {farthest} off the ring");
        }
        // advect on the primary context leaves a thread in the one that it was in.
        advect.synchronize().unwrap();
        assert_eq!(result::ctx::get_current().unwrap(), Some(own));
        result::stream::destroy(stream).unwrap();
        sys::cuCtxDestroy_v2(own).result().unwrap();
    }
}
