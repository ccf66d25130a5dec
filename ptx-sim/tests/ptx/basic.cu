// Small kernels that cover what most CUDA code does: indexing, loops, shared memory, shuffles, atomics.
struct Affine { float scale, shift; int n; };

extern "C" __global__ void vector_add(const float* a, const float* b, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}

extern "C" __global__ void affine(const float4* in, float4* out, Affine p) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.n) return;
    float4 v = in[i];
    out[i] = make_float4(v.x * p.scale + p.shift, v.y * p.scale + p.shift, v.z * p.scale + p.shift, v.w * p.scale + p.shift);
}

extern "C" __global__ void tiled_matmul(const float* a, const float* b, float* c, int n) {
    __shared__ float sa[16][17], sb[16][17];
    int tx = threadIdx.x, ty = threadIdx.y, row = blockIdx.y * 16 + ty, col = blockIdx.x * 16 + tx;
    float acc = 0.f;
    for (int t = 0; t < n; t += 16) {
        sa[ty][tx] = a[row * n + t + tx];
        sb[ty][tx] = b[(t + ty) * n + col];
        __syncthreads();
        for (int k = 0; k < 16; ++k) acc += sa[ty][k] * sb[k][tx];
        __syncthreads();
    }
    c[row * n + col] = acc;
}

extern "C" __global__ void row_softmax(const float* in, float* out, int cols) {
    extern __shared__ float part[];
    int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, warps = blockDim.x >> 5;
    const float* x = in + (long long)blockIdx.x * cols;
    float m = -1e30f;
    for (int i = tid; i < cols; i += blockDim.x) m = fmaxf(m, x[i]);
    for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, o));
    if (lane == 0) part[warp] = m;
    __syncthreads();
    for (int w = 0; w < warps; ++w) m = fmaxf(m, part[w]);
    float s = 0.f;
    for (int i = tid; i < cols; i += blockDim.x) s += expf(x[i] - m);
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(0xffffffffu, s, o);
    __syncthreads();
    if (lane == 0) part[warp] = s;
    __syncthreads();
    s = 0.f;
    for (int w = 0; w < warps; ++w) s += part[w];
    for (int i = tid; i < cols; i += blockDim.x) out[(long long)blockIdx.x * cols + i] = expf(x[i] - m) / s;
}

extern "C" __global__ void histogram(const unsigned char* in, unsigned* bins, int n) {
    __shared__ unsigned local_bins[64];
    if (threadIdx.x < 64) local_bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&local_bins[in[i] & 63], 1u);
    __syncthreads();
    if (threadIdx.x < 64) atomicAdd(&bins[threadIdx.x], local_bins[threadIdx.x]);
}

// Philox4x32-10, counter = thread, key = seed.
extern "C" __global__ void philox(uint4* out, unsigned long long seed, int n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned c0 = i, c1 = 0, c2 = 0, c3 = 0, k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
    for (int r = 0; r < 10; ++r) {
        unsigned h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        unsigned h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0; c1 = l1; c2 = h0 ^ c3 ^ k1; c3 = l0;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
    out[i] = make_uint4(c0, c1, c2, c3);
}

// A local array indexed at run time, and a function that is really called.
__device__ __noinline__ float poly(const float* c, int n, float x) {
    float y = 0.f;
    for (int i = n - 1; i >= 0; --i) y = fmaf(y, x, c[i]);
    return y;
}
extern "C" __global__ void local_poly(const float* x, float* out, const int* pick, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float c[8];
    for (int k = 0; k < 8; ++k) c[k] = x[i] + k;
    c[pick[i] & 7] = 3.f;
    out[i] = poly(c, (pick[i] & 7) + 1, 0.5f);
}

__device__ int collatz_steps(unsigned v) { int s = 0; while (v != 1) { v = (v & 1) ? 3 * v + 1 : v / 2; ++s; } return s; }
extern "C" __global__ void collatz(int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = collatz_steps(i + 1);
}

extern "C" __global__ void libm(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    out[i] = sinf(v);
    out[n + i] = logf(fabsf(v) + 1e-3f);
    out[2 * n + i] = tanhf(v);
    out[3 * n + i] = erff(v);
    out[4 * n + i] = powf(fabsf(v), 1.7f);
    out[5 * n + i] = rsqrtf(v * v + 1.f);
    out[6 * n + i] = sqrtf(v * v + 2.f);
    out[7 * n + i] = 1.f / (v * v + 3.f);
    out[8 * n + i] = (float)exp((double)v * 0.25);
    out[9 * n + i] = (float)(int)floorf(v) + (float)__double2int_rn((double)v);
}
