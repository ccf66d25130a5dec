//! The very kernels and arguments of the graph, executed by the PTX simulator.

use super::*;
use advect::Error::Unavailable;
use advect::target::ptx_sim::{Place, PtxSim};

impl Launch<Place> for &PtxSim {
    fn run<T: Op>(&mut self, op: &T, args: T::Args<Place, Place>) -> advect::Result<()> {
        PtxSim::run(self, op, args)
    }
}

#[test]
fn the_loop_ends_on_the_ring() {
    let sim = match PtxSim::new(80, ptx_sim::Schedule::default()) {
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
