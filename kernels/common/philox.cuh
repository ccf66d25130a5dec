// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011) and standard normal numbers made of it by Box and
// Muller's transform. Defined in src/philox.rs: the same integers on every target, and the same functions
// to a few units in the last place, which is why logarithm, sine and cosine are polynomials of our own.

struct Words { u32 w[4]; };

__device__ __forceinline__ Words philox4x32(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 a = __umulhi(c0, 0xd2511f53u), a_low = c0 * 0xd2511f53u;
        const u32 b = __umulhi(c2, 0xcd9e8d57u), b_low = c2 * 0xcd9e8d57u;
        c0 = b ^ c1 ^ k0;
        c1 = b_low;
        c2 = a ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// sqrt(-2 ln u) for u = (w | 1) / 2^32, cut to 24 bits from 1/2 on, so that no rounding makes it 1.
// ln m = f - f^2/2 + f^3 P(f) for m = 1 + f from sqrt(1/2) to sqrt(2).
__device__ __forceinline__ float philox_radius(u32 w) {
    u32 a = w | 1u;
    a &= ~((a >> 31) * 0xffu);
    const int bits = __float_as_int(float(a) * 2.3283064365386963e-10f);
    const int e = (bits - 0x3f3504f3) >> 23;
    const float f = __int_as_float(bits - (e << 23)) - 1.0f;
    float q = -0.076345086f;
    q = fmaf(q, f, 0.127616f);
    q = fmaf(q, f, -0.13160188f);
    q = fmaf(q, f, 0.14201756f);
    q = fmaf(q, f, -0.16623357f);
    q = fmaf(q, f, 0.20001227f);
    q = fmaf(q, f, -0.25000823f);
    q = fmaf(q, f, 0.33333331f);
    const float square = f * f;
    const float ln = fmaf(float(e), 0.69314718f, f + fmaf(square * f, q, -0.5f * square));
    return sqrtf(-2.0f * ln);
}

// Cosine and sine of (floor(w / 64) + 1/2) / 2^26 turns. y is what is left of the nearest quarter, in
// eighths.
__device__ __forceinline__ void philox_turn(u32 w, float& cosine, float& sine) {
    const u32 quarter = (w + (1u << 29)) >> 30;
    const int rest = int(w - (quarter << 30)) >> 6;
    const float y = float(2 * rest + 1) * 5.9604644775390625e-8f;
    const float s = y * y;
    const float sy = y * fmaf(fmaf(fmaf(-3.5954508e-5f, s, 2.490007e-3f), s, -8.074544e-2f), s, 0.7853982f);
    const float cy =
        fmaf(fmaf(fmaf(fmaf(3.5298112e-6f, s, -3.2593863e-4f), s, 1.5854325e-2f), s, -0.30842513f), s, 1.0f);
    const bool odd = quarter & 1u;
    cosine = __uint_as_float(__float_as_uint(odd ? sy : cy) ^ ((quarter + 1u) & 2u) << 30);
    sine = __uint_as_float(__float_as_uint(odd ? cy : sy) ^ (quarter & 2u) << 30);
}

// z(seed, stream, 4 block .. 4 block + 3).
__device__ __forceinline__ void philox_normals(u32 seed_lo, u32 seed_hi, u64 stream, u32 block, float (&z)[4]) {
    const Words r = philox4x32(block, u32(stream), u32(stream >> 32), 0, seed_lo, seed_hi);
#pragma unroll
    for (int h = 0; h < 4; h += 2) {
        const float radius = philox_radius(r.w[h]);
        philox_turn(r.w[h + 1], z[h], z[h + 1]);
        z[h] *= radius;
        z[h + 1] *= radius;
    }
}
