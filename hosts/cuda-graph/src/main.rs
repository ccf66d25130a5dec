//! An engine on CUDA with a context, streams and memory of its own: it captures a whole sampling loop of advect
//! as a graph, on two streams, and launches both at once, again and again.

mod flow;
#[cfg(test)]
mod tests;

use advect::op::Op;
use advect::target::cuda::{Cuda, DevicePtr, On};
use cudarc::driver::sys::{CUgraphInstantiate_flags as Instantiate, CUstreamCaptureMode as Mode};
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, DevicePtr as _};
use flow::{Buffers, Launch};
use std::error::Error;
use std::sync::Arc;

/// advect launches into a borrowed stream.
impl Launch<DevicePtr> for On<'_> {
    fn run<T: Op>(&mut self, op: &T, args: T::Args<DevicePtr, DevicePtr>) -> advect::Result<()> {
        On::run(self, op, args)
    }
}

/// One stream's memory.
struct Lane {
    stream: Arc<CudaStream>,
    owned: Vec<CudaSlice<f32>>,
}

impl Lane {
    fn new(context: &Arc<CudaContext>) -> Result<Self, Box<dyn Error>> {
        let stream = context.new_stream()?;
        let mut owned = vec![stream.clone_htod(&flow::ring())?, stream.clone_htod(&[1.0f32])?];
        for _ in 0..4 {
            owned.push(stream.alloc_zeros(4 * flow::PARTICLES)?);
        }
        stream.synchronize()?;
        Ok(Self { stream, owned })
    }

    /// The memory as advect takes it: addresses and sizes.
    fn buffers(&self) -> Buffers<DevicePtr> {
        let all: Vec<DevicePtr> = self
            .owned
            .iter()
            .map(|slice| {
                let (address, _) = slice.device_ptr(&self.stream);
                // SAFETY: the lane owns the memory, and outlives the graphs that are launched over it; only this
                // lane's stream touches it.
                unsafe { DevicePtr::new(address, slice.num_bytes() as u64) }
            })
            .collect();
        let [data, one, first, second, mean, velocity] = all[..] else { unreachable!("six were made") };
        Buffers { states: [first, second], mean, velocity, data, one }
    }

    /// Captures the loop. advect launches kernels and does nothing else, so that all of it can be captured.
    fn capture(&self, advect: &Cuda, seed: u64) -> Result<(CudaGraph, DevicePtr), Box<dyn Error>> {
        let buffers = self.buffers();
        // SAFETY: the stream is of the primary context and lives as long as the lane.
        let mut into = unsafe { advect.on(self.stream.cu_stream().cast()) };
        // Once without capture: kernels are compiled and loaded then, which a capture forbids.
        flow::sample(&mut into, &buffers, seed)?;
        self.stream.synchronize()?;
        self.stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let result = flow::sample(&mut into, &buffers, seed);
        let graph = self.stream.end_capture(Instantiate::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?;
        Ok((graph.ok_or("nothing was captured")?, result?))
    }

    fn read(&self, from: DevicePtr) -> Result<Vec<f32>, Box<dyn Error>> {
        let slice = self.owned.iter().find(|s| s.device_ptr(&self.stream).0 == from.address());
        Ok(self.stream.clone_dtoh(slice.ok_or("not of this lane")?)?)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let advect = match Cuda::new(0) {
        Ok(advect) => advect,
        Err(why) if std::env::var("ADVECT_REQUIRE").is_ok_and(|r| r.split(',').any(|f| f == "cuda")) => {
            return Err(why.into());
        }
        Err(why) => {
            println!("skipped: {why}");
            return Ok(());
        }
    };
    let context = CudaContext::new(0)?;
    let lanes = [Lane::new(&context)?, Lane::new(&context)?];
    let graphs = [lanes[0].capture(&advect, 1)?, lanes[1].capture(&advect, 2)?];
    let mut before: Option<[Vec<f32>; 2]> = None;
    for _ in 0..3 {
        for (graph, _) in &graphs {
            graph.launch()?;
        }
        let now = [lanes[0].read(graphs[0].1)?, lanes[1].read(graphs[1].1)?];
        for lane in &lanes {
            lane.stream.synchronize()?;
        }
        for particles in &now {
            let farthest = flow::farthest(particles);
            assert!(farthest < 0.05, "a particle ends {farthest} off the ring");
        }
        assert!(before.is_none_or(|before| before == now), "the same graph gives the same numbers");
        assert!(now[0] != now[1], "two seeds give different numbers");
        before = Some(now);
    }
    println!("{}: two graphs on two streams, three times, each the same", advect.caps().name);
    Ok(())
}
