// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011) and standard normal numbers made of it by Box and
// Muller's transform. Defined in src/philox.rs: the same integers on every target, and the same functions
// to a few units in the last place, which is why logarithm, sine and cosine are polynomials of our own.

// The high word of a 32 x 32-bit product, from products of halves: WGSL has no wider integer.
fn mul_high(a: u32, b: u32) -> u32 {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a1 * b0 + ((a0 * b0) >> 16u);
    let high = a0 * b1 + (low & 0xffffu);
    return a1 * b1 + (low >> 16u) + (high >> 16u);
}

fn philox4x32(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round += 1u) {
        let a = mul_high(c.x, 0xd2511f53u);
        let b = mul_high(c.z, 0xcd9e8d57u);
        c = vec4<u32>(b ^ c.y ^ k.x, c.z * 0xcd9e8d57u, a ^ c.w ^ k.y, c.x * 0xd2511f53u);
        k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

// sqrt(-2 ln u) for u = (w | 1) / 2^32, cut to 24 bits from 1/2 on, so that no rounding makes it 1.
// ln m = f - f^2/2 + f^3 P(f) for m = 1 + f from sqrt(1/2) to sqrt(2).
fn philox_radius(w: u32) -> f32 {
    var a = w | 1u;
    a &= ~((a >> 31u) * 0xffu);
    let bits = bitcast<i32>(f32(a) * 2.3283064365386963e-10);
    let e = (bits - 0x3f3504f3) >> 23u;
    let f = bitcast<f32>(bits - (e << 23u)) - 1.0;
    var q = -0.076345086;
    q = fma(q, f, 0.127616);
    q = fma(q, f, -0.13160188);
    q = fma(q, f, 0.14201756);
    q = fma(q, f, -0.16623357);
    q = fma(q, f, 0.20001227);
    q = fma(q, f, -0.25000823);
    q = fma(q, f, 0.33333331);
    let square = f * f;
    let ln = fma(f32(e), 0.69314718, f + fma(square * f, q, -0.5 * square));
    return sqrt(-2.0 * ln);
}

// Cosine and sine of (floor(w / 64) + 1/2) / 2^26 turns. y is what is left of the nearest quarter, in
// eighths.
fn philox_turn(w: u32) -> vec2<f32> {
    let quarter = (w + (1u << 29u)) >> 30u;
    let rest = bitcast<i32>(w - (quarter << 30u)) >> 6u;
    let y = f32(2 * rest + 1) * 5.9604644775390625e-8;
    let s = y * y;
    let sy = y * fma(fma(fma(-3.5954508e-5, s, 2.490007e-3), s, -8.074544e-2), s, 0.7853982);
    let cy = fma(fma(fma(fma(3.5298112e-6, s, -3.2593863e-4), s, 1.5854325e-2), s, -0.30842513), s, 1.0);
    let odd = (quarter & 1u) == 1u;
    let cosine = bitcast<u32>(select(cy, sy, odd)) ^ (((quarter + 1u) & 2u) << 30u);
    let sine = bitcast<u32>(select(sy, cy, odd)) ^ ((quarter & 2u) << 30u);
    return bitcast<vec2<f32>>(vec2<u32>(cosine, sine));
}

// z(seed, stream, 4 block .. 4 block + 3), seed and stream as (low, high).
fn philox_normals(seed: vec2<u32>, stream: vec2<u32>, block: u32) -> vec4<f32> {
    let w = philox4x32(vec4<u32>(block, stream, 0u), seed);
    return vec4<f32>(
        philox_radius(w.x) * philox_turn(w.y),
        philox_radius(w.z) * philox_turn(w.w),
    );
}
