//! What the engine does besides: nothing here knows of advect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The number of a submission of nothing: one more than that of the submission before.
pub(crate) fn submission(queue: &wgpu::Queue) -> u64 {
    let index = format!("{:?}", queue.submit([]));
    index.chars().filter(char::is_ascii_digit).collect::<String>().parse().expect("an index is a number")
}

/// Becomes true when anyone waits for the device, or so much as polls it: only then does wgpu call back.
pub(crate) fn wait_noticed(queue: &wgpu::Queue) -> Arc<AtomicBool> {
    let noticed = Arc::new(AtomicBool::new(false));
    let notice = Arc::clone(&noticed);
    queue.on_submitted_work_done(move || notice.store(true, Relaxed));
    noticed
}

/// The engine's own pipeline.
pub(crate) fn density(
    device: &wgpu::Device,
    buffers: [&wgpu::Buffer; 2],
) -> (wgpu::ComputePipeline, wgpu::BindGroup) {
    let module = device.create_shader_module(wgpu::include_wgsl!("density.wgsl"));
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    let entries =
        [0, 1].map(|i| wgpu::BindGroupEntry { binding: i as u32, resource: buffers[i].as_entire_binding() });
    let layout = &pipeline.get_bind_group_layout(0);
    let group =
        device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
    (pipeline, group)
}
