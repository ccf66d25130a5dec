// Reductions over a warp and over a block. The order is fixed, so results repeat bit for bit.

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// The sum over a block of N threads, given to every thread. `scratch` holds N / 32 floats.
template <int N> __device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (N == 32) return x;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();  // scratch is complete before anyone reads it
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < N / 32; ++w) total += scratch[w];
    __syncthreads();  // everyone has read before the next reduction overwrites scratch
    return total;
}
