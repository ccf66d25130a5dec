// The engine's own work: how many particles are in each cell of a picture.

@group(0) @binding(0) var<storage, read> particles: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> picture: array<atomic<u32>>;

const SIDE: f32 = 32.0;

@compute @workgroup_size(64)
fn density(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= arrayLength(&particles)) { return; }
    let cell = vec2<u32>(clamp((particles[id.x].xy + 1.25) / 2.5, vec2(0.0), vec2(0.999)) * SIDE);
    atomicAdd(&picture[cell.y * u32(SIDE) + cell.x], 1u);
}
