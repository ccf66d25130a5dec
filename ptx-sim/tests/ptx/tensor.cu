// Tensor-core building blocks: ldmatrix, mma.sync, cp.async, conversions.
typedef unsigned u32;
__device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void cp16(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp4(u32 dst, const void* src, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
__device__ __forceinline__ void ldm4(u32 r[4], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldm2t(u32 r[2], u32 a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
}
__device__ __forceinline__ void mma_f16(float d[4], const u32 a[4], const u32 b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_bf16(float d[4], const u32 a[4], const u32 b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ float h2f(unsigned short h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
__device__ __forceinline__ unsigned short f2h(float f) { unsigned short h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
__device__ __forceinline__ unsigned short f2b(float f) { unsigned short h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
__device__ __forceinline__ u32 pack_h2(float lo, float hi) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }

// C[m,n] = A[m,k] B[k,n], all row-major, one warp per 16x8 tile of C, double-buffered cp.async; tails are zero-filled.
// grid = (n/8, m/16), block = 32, k any multiple of 8.
template <bool BF16> __device__ void gemm(const unsigned short* A, const unsigned short* B, float* C, int m, int n, int k) {
    __shared__ __align__(16) unsigned short sa[2][16][24];
    __shared__ __align__(16) unsigned short sb[2][16][8];
    int lane = threadIdx.x, row0 = blockIdx.y * 16, col0 = blockIdx.x * 8;
    float acc[4] = {0.f, 0.f, 0.f, 0.f};
    auto load = [&](int buf, int k0) {
        int r = lane >> 1, c = (lane & 1) * 8;
        bool in = row0 + r < m && k0 + c < k;
        cp16(smem(&sa[buf][r][c]), in ? A + (long long)(row0 + r) * k + k0 + c : A, in ? 16 : 0);
        if (lane < 16) {
            bool inb = k0 + lane < k;
            cp16(smem(&sb[buf][lane][0]), inb ? B + (long long)(k0 + lane) * n + col0 : B, inb ? 16 : 0);
        }
        commit();
    };
    load(0, 0);
    int buf = 0;
    for (int k0 = 0; k0 < k; k0 += 16, buf ^= 1) {
        if (k0 + 16 < k) { load(buf ^ 1, k0 + 16); wait<1>(); } else { wait<0>(); }
        __syncthreads();
        u32 a[4], b[2];
        ldm4(a, smem(&sa[buf][lane & 15][(lane >> 4) * 8]));
        ldm2t(b, smem(&sb[buf][lane & 15][0]));
        if (BF16) mma_bf16(acc, a, b); else mma_f16(acc, a, b);
        __syncthreads();
    }
    int r = row0 + (lane >> 2), c = col0 + (lane & 3) * 2;
    if (r < m) *(float2*)&C[(long long)r * n + c] = make_float2(acc[0], acc[1]);
    if (r + 8 < m) *(float2*)&C[(long long)(r + 8) * n + c] = make_float2(acc[2], acc[3]);
}
extern "C" __global__ void gemm_f16(const unsigned short* A, const unsigned short* B, float* C, int m, int n, int k) { gemm<false>(A, B, C, m, n, k); }
extern "C" __global__ void gemm_bf16(const unsigned short* A, const unsigned short* B, float* C, int m, int n, int k) { gemm<true>(A, B, C, m, n, k); }

extern "C" __global__ void convert(const float* x, unsigned short* h, unsigned short* b, u32* packed, float* back, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = f2h(x[i]);
    b[i] = f2b(x[i]);
    packed[i] = pack_h2(x[i], -x[i]);
    back[i] = h2f(f2h(x[i]));
}

extern "C" __global__ void copy_async4(const float* x, float* out, int n) {
    extern __shared__ float buf[];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    cp4(smem(&buf[threadIdx.x]), i < n ? x + i : x, i < n ? 4 : 0);
    commit();
    wait<0>();
    __syncthreads();
    int j = blockDim.x - 1 - threadIdx.x;
    int o = blockIdx.x * blockDim.x + j;
    if (o < n) out[o] = buf[j];
}
