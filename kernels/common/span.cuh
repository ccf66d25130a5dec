// N neighbouring elements at once: one 16-byte access when they fill it, else one by one. For the
// 16-byte access the pointer must be 16-byte aligned.

__device__ __forceinline__ void unpack(const vec16& raw, float (&v)[4], float) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = __uint_as_float(raw.w[i]);
}
template <typename T> __device__ __forceinline__ void unpack(const vec16& raw, float (&v)[8], T) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        T x;
        x.bits = u16(raw.w[i / 2] >> 16 * (i % 2));
        v[i] = to_f32(x);
    }
}

template <int N, typename T> __device__ __forceinline__ void load_span(const T* from, float (&v)[N]) {
    if constexpr (N * sizeof(T) == 16) {
        unpack(*reinterpret_cast<const vec16*>(from), v, T());
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = to_f32(from[i]);
    }
}

template <int N, typename T> __device__ __forceinline__ void store_span(T* to, const float (&v)[N]) {
    if constexpr (N * sizeof(T) == 16) {
        vec16 raw;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(T) == 4) raw.w[i] = __float_as_uint(v[i]);
            else raw.w[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
        }
        *reinterpret_cast<vec16*>(to) = raw;
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = from_f32<T>(v[i]);
    }
}
