//! An engine that owns a wgpu device moves 2000 particles from noise onto a spiral of 200 points, in one
//! compute pass of its own: advect records the sampling loop, then the engine's shader counts a picture.
//!
//! The flow is exact. For data `d` and the path `x_t = t d + (1 - t) z`, flow matching's velocity is
//! `(E[d | x] - x) / (1 - t)`, and the expectation is attention: the queries are the particles, keys and values
//! the data, and the scores `t / (1 - t)^2 (x.d - t/2 |d|^2)` take their last term from a third coordinate.

mod engine;

use advect::ops::{Attention, AttentionArgs, Noise, Step, StepArgs};
use advect::solver::{Ask, Buffer, Guidance, Method, Solver, Term, uniform};
use advect::target::wgpu::Wgpu;
use advect::{Dtype, View};
use std::error::Error;
use std::sync::atomic::Ordering::Relaxed;
use wgpu::BufferUsages as Usage;

const PARTICLES: usize = 2000;
const POINTS: usize = 200;
const SIDE: usize = 32;
const STEPS: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    // The engine's device, with whatever the engine needs. advect makes use of these two.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let features = adapter.features() & (wgpu::Features::IMMEDIATES | wgpu::Features::SUBGROUP);
    let required_limits = adapter.limits();
    let descriptor =
        wgpu::DeviceDescriptor { required_features: features, required_limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;

    // The engine's buffers: rows of four numbers, of which the third is for the scores.
    let storage = |floats: usize| {
        let usage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        let size = 4 * floats as u64;
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let states = [storage(4 * PARTICLES), storage(4 * PARTICLES)];
    let (mean, velocity, data) = (storage(4 * PARTICLES), storage(4 * PARTICLES), storage(4 * POINTS));
    let (one, picture) = (storage(1), storage(SIDE * SIDE));
    let spiral: Vec<[f32; 2]> = (0..POINTS).map(|i| point(i as f32 / POINTS as f32)).collect();
    let rows: Vec<[f32; 4]> = spiral.iter().map(|&[x, y]| [x, y, x * x + y * y, 0.0]).collect();
    queue.write_buffer(&data, 0, bytemuck::cast_slice(&rows));
    queue.write_buffer(&one, 0, bytemuck::bytes_of(&1.0f32));
    let (pipeline, group) = engine::density(&device, [&states[STEPS % 2], &picture]);

    // What advect is to do, with views of those buffers.
    let advect = Wgpu::from_device(device.clone());
    let xy = |buffer| View::strided(buffer, Dtype::F32, &[PARTICLES, 2], &[4, 1], 0);
    let third = |buffer| View::strided(buffer, Dtype::F32, &[PARTICLES, 1], &[4, 1], 2);
    let ones = |columns| View::strided(&one, Dtype::F32, &[PARTICLES, columns], &[0, 0], 0);
    let heads = |buffer, n| View::strided(buffer, Dtype::F32, &[1, 1, n, 3], &[0, 0, 4, 1], 0);
    let expectation = |x, out| -> advect::Result<_> {
        let (q, out) = (heads(x, PARTICLES)?, heads(out, PARTICLES)?);
        Ok(AttentionArgs::new(q, heads(&data, POINTS)?, heads(&data, POINTS)?, out))
    };
    // The whole loop, prepared once: every launch is validated, its kernel compiled, its parameters stored.
    let mut plan = vec![advect.prepare(
        &Step::noise(1.0, Noise { seed: 7, stream: 0 }),
        StepArgs::over([ones(2)?], xy(&states[0])?)?,
    )?];
    let mut solver = Solver::new(Method::Euler.tableau(), uniform(STEPS)?, Guidance::none());
    loop {
        match solver.next_ask() {
            Ask::Eval { t, x, .. } => {
                let (x, left) = (&states[x], 1.0 - t);
                let softmax_scale = (t / (left * left)) as f32;
                plan.push(advect.prepare(&Step::sum(&[-t / 2.0])?, StepArgs::over([ones(1)?], third(x)?)?)?);
                plan.push(advect.prepare(&Attention::scaled(softmax_scale), expectation(x, &mean)?)?);
                let towards = Step::sum(&[1.0 / left, -1.0 / left])?;
                plan.push(advect.prepare(&towards, StepArgs::over([xy(&mean)?, xy(x)?], xy(&velocity)?)?)?);
            }
            Ask::Combine { out, terms } => {
                let place = |term: &Term| match term.buffer {
                    Buffer::State(i) => xy(&states[i]),
                    Buffer::Slope { .. } => xy(&velocity),
                };
                let buffers = terms.iter().map(place).collect::<advect::Result<Vec<_>>>()?;
                let sum: Vec<f64> = terms.iter().map(|term| term.coefficient).collect();
                plan.push(advect.prepare(&Step::sum(&sum)?, StepArgs::over(buffers, xy(&states[out])?)?)?);
            }
            Ask::Done { .. } => break,
        }
    }

    // Every frame: advect records into the engine's pass. It submits nothing, waits for nothing and allocates nothing.
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let (submitted, before) = (engine::submission(&queue), device.get_internal_counters().hal);
    let waited = engine::wait_noticed(&queue); // itself a submission
    let counted = [&before.buffers, &before.bind_groups, &before.compute_pipelines].map(|n| n.read());
    assert!(counted.iter().all(|&n| n > 0), "wgpu counts nothing: {counted:?}");
    plan.iter().for_each(|launch| launch.record(&mut pass));
    let after = device.get_internal_counters().hal;
    assert!(!waited.load(Relaxed), "advect waited for the device");
    assert_eq!(engine::submission(&queue), submitted + 2, "advect submitted something");
    assert_eq!(
        format!("{after:?}"),
        format!("{before:?}"),
        "advect made a buffer, a bind group, a pipeline, ..."
    );

    // The engine goes on in the same pass, and submits when it likes.
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(PARTICLES.div_ceil(64) as u32, 1, 1);
    drop(pass);
    let [particles, cells] = [&states[STEPS % 2], &picture].map(|from| {
        let usage = Usage::COPY_DST | Usage::MAP_READ;
        let to = wgpu::BufferDescriptor { label: None, size: from.size(), usage, mapped_at_creation: false };
        let to = device.create_buffer(&to);
        encoder.copy_buffer_to_buffer(from, 0, &to, 0, from.size());
        to
    });
    queue.submit([encoder.finish()]);
    for buffer in [&particles, &cells] {
        buffer.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("it maps"));
    }
    device.poll(wgpu::PollType::wait_indefinitely())?;
    assert!(waited.load(Relaxed), "a wait is not noticed");

    let cells: Vec<u32> = bytemuck::pod_collect_to_vec(&cells.get_mapped_range(..)?);
    for row in cells.chunks(SIDE).rev() {
        println!("{}", row.iter().map(|&n| [' ', '.', 'o', '#'][(n as usize).min(3)]).collect::<String>());
    }
    assert_eq!(cells.iter().sum::<u32>() as usize, PARTICLES);
    let particles: Vec<[f32; 4]> = bytemuck::pod_collect_to_vec(&particles.get_mapped_range(..)?);
    let off = |p: &[f32; 4]| spiral.iter().map(|s| (p[0] - s[0]).hypot(p[1] - s[1])).fold(f32::MAX, f32::min);
    let farthest = particles.iter().map(off).fold(0.0, f32::max);
    // Neighbouring points are up to 0.07 apart, the arms of the spiral 0.47.
    assert!(farthest < 0.05, "a particle ends {farthest} off the spiral");
    println!(
        "{PARTICLES} particles, {STEPS} steps, one pass, one submission; none is farther than {farthest:.1e} off"
    );
    Ok(())
}

/// A point of the spiral.
fn point(s: f32) -> [f32; 2] {
    let (radius, angle) = (0.2 + 0.9 * s, 12.0 * s);
    [radius * angle.cos(), radius * angle.sin()]
}
