// The passes of a clip as bare kernels: a read that sums, an update in place, and both together.
// No list, no partial sums and no coefficient: what is left is how the bytes are moved.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "measuring.cuh"

// The PTX forms of a 16-byte load that are compared; their names are those of the output.
enum Hint { CG, NC, CS, NOALLOC256, EVICT_FIRST, EVICT_LAST };

template <Hint kHint>
__device__ __forceinline__ uint4 load(const uint4* p) {
  uint4 v;
  if (kHint == CG)
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
  if (kHint == NC)
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
  if (kHint == CS)
    asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
  if (kHint == NOALLOC256)
    asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
  if (kHint == EVICT_FIRST || kHint == EVICT_LAST) {
    uint64_t policy;
    if (kHint == EVICT_FIRST)
      asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    else
      asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(policy));
  }
  return v;
}

__device__ __forceinline__ void store_evict_first(uint4* p, uint4 v) {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1,%2,%3,%4}, %5;" ::"l"(p), "r"(v.x),
               "r"(v.y), "r"(v.z), "r"(v.w), "l"(policy)
               : "memory");
}

__device__ __forceinline__ float sum_sq(uint4 v) {
  const float a = __uint_as_float(v.x), b = __uint_as_float(v.y), c = __uint_as_float(v.z),
              d = __uint_as_float(v.w);
  return a * a + b * b + c * c + d * d;
}

__device__ __forceinline__ uint4 scaled(uint4 v, float by) {
  return make_uint4(
      __float_as_uint(__uint_as_float(v.x) * by), __float_as_uint(__uint_as_float(v.y) * by),
      __float_as_uint(__uint_as_float(v.z) * by), __float_as_uint(__uint_as_float(v.w) * by));
}

// Neighbouring blocks read neighbouring vectors.
template <int kLoads, Hint kHint>
__global__ void read_grid(const uint4* p, int64_t n, float* out) {
  float sum = 0;
  const int64_t stride = (int64_t)gridDim.x * blockDim.x;
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + (kLoads - 1) * stride < n; i += kLoads * stride) {
    uint4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; k++) v[k] = load<kHint>(p + i + k * stride);
#pragma unroll
    for (int k = 0; k < kLoads; k++) sum += sum_sq(v[k]);
  }
  for (; i < n; i += stride) sum += sum_sq(load<kHint>(p + i));
  keep(sum, out);
}

// A block reads chunk after chunk, each `chunk` vectors, as fastclip's kernels do.
template <int kLoads, Hint kHint>
__global__ void read_chunks(const uint4* p, int64_t n, float* out, int chunk) {
  float sum = 0;
  const int64_t chunks = (n + chunk - 1) / chunk;
  for (int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    const uint4* q = p + c * chunk;
    const int size = (int)min((int64_t)chunk, n - c * chunk);
    int i = threadIdx.x;
    for (; i + (kLoads - 1) * (int)blockDim.x < size; i += kLoads * blockDim.x) {
      uint4 v[kLoads];
#pragma unroll
      for (int k = 0; k < kLoads; k++) v[k] = load<kHint>(q + i + k * blockDim.x);
#pragma unroll
      for (int k = 0; k < kLoads; k++) sum += sum_sq(v[k]);
    }
    for (; i < size; i += blockDim.x) sum += sum_sq(load<kHint>(q + i));
  }
  keep(sum, out);
}

// A block reads one span, from its beginning to its end.
template <int kLoads, Hint kHint>
__global__ void read_span(const uint4* p, int64_t n, float* out) {
  const int64_t span = (n + gridDim.x - 1) / gridDim.x;
  const int64_t begin = span * blockIdx.x, end = min(n, begin + span);
  float sum = 0;
  int64_t i = begin + threadIdx.x;
  for (; i + (kLoads - 1) * blockDim.x < end; i += kLoads * blockDim.x) {
    uint4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; k++) v[k] = load<kHint>(p + i + k * blockDim.x);
#pragma unroll
    for (int k = 0; k < kLoads; k++) sum += sum_sq(v[k]);
  }
  for (; i < end; i += blockDim.x) sum += sum_sq(load<kHint>(p + i));
  keep(sum, out);
}

// Bulk copies into shared memory, kStages of `stage` bytes in flight; the threads read them there.
template <int kStages>
__global__ void read_bulk(const char* p, int64_t bytes, float* out, int stage) {
  extern __shared__ __align__(128) char shared[];
  const char* buffer = shared + 128;
  const int64_t tiles = bytes / stage;
  const uint32_t barriers = (uint32_t)__cvta_generic_to_shared(shared),
                 stages = (uint32_t)__cvta_generic_to_shared(buffer);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++)
      asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barriers + 8 * s));
    asm volatile("fence.proxy.async.shared::cta;");
  }
  __syncthreads();
  const auto issue = [&](int s, int64_t t) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barriers + 8 * s),
                 "r"(stage));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(stages + s * stage),
        "l"(p + t * stage), "r"(stage), "r"(barriers + 8 * s)
        : "memory");
  };
  const int64_t first = blockIdx.x, step = gridDim.x;
  if (threadIdx.x == 0)
    for (int s = 0; s < kStages; s++)
      if (first + s * step < tiles) issue(s, first + s * step);
  float sum = 0;
  int s = 0;
  uint32_t phase = 0;
  for (int64_t t = first; t < tiles; t += step) {
    uint32_t done = 0;
    while (!done)
      asm volatile(
          "{.reg .pred q; mbarrier.try_wait.parity.shared.b64 q, [%1], %2; selp.u32 %0,1,0,q;}"
          : "=r"(done)
          : "r"(barriers + 8 * s), "r"(phase)
          : "memory");
    const uint4* q = (const uint4*)(buffer + s * stage);
    for (int i = threadIdx.x; i < stage / 16; i += blockDim.x) sum += sum_sq(q[i]);
    __syncthreads();
    if (threadIdx.x == 0 && t + kStages * step < tiles) issue(s, t + kStages * step);
    if (++s == kStages) {
      s = 0;
      phase ^= 1;
    }
  }
  keep(sum, out);
}

template <int kLoads>
__global__ void update_grid(uint4* p, int64_t n, float by) {
  const int64_t stride = (int64_t)gridDim.x * blockDim.x;
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + (kLoads - 1) * stride < n; i += kLoads * stride) {
    uint4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; k++) v[k] = load<CG>(p + i + k * stride);
#pragma unroll
    for (int k = 0; k < kLoads; k++) __stcg(p + i + k * stride, scaled(v[k], by));
  }
  for (; i < n; i += stride) __stcg(p + i, scaled(load<CG>(p + i), by));
}

template <int kLoads>
__global__ void update_chunks(uint4* p, int64_t n, float by, int chunk) {
  const int64_t chunks = (n + chunk - 1) / chunk;
  for (int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    uint4* q = p + c * chunk;
    const int size = (int)min((int64_t)chunk, n - c * chunk);
    int i = threadIdx.x;
    for (; i + (kLoads - 1) * (int)blockDim.x < size; i += kLoads * blockDim.x) {
      uint4 v[kLoads];
#pragma unroll
      for (int k = 0; k < kLoads; k++) v[k] = load<CG>(q + i + k * blockDim.x);
#pragma unroll
      for (int k = 0; k < kLoads; k++) __stcg(q + i + k * blockDim.x, scaled(v[k], by));
    }
    for (; i < size; i += blockDim.x) __stcg(q + i, scaled(load<CG>(q + i), by));
  }
}

// How the fused kernel loads and stores: as fastclip's; with hints that keep the last `kept`
// vectors in L2 for the second pass; with streaming stores.
enum Way { PLAIN, HINTS, STREAMING };

// A clip's two passes: the sum, a grid sync, and where `clip` the update, last chunks first.
template <int kLoads, Way kWay>
__global__ void __launch_bounds__(256)
    fused(uint4* p, int64_t n, float* out, int chunk, int64_t kept, int clip) {
  float sum = 0;
  const int64_t chunks = (n + chunk - 1) / chunk;
  const int64_t kept_from = n - kept;
  int64_t c = blockIdx.x;
  for (; c < chunks; c += gridDim.x) {
    const uint4* q = p + c * chunk;
    const int size = (int)min((int64_t)chunk, n - c * chunk);
    int i = threadIdx.x;
    const bool is_kept = c * chunk >= kept_from;
    for (; i + (kLoads - 1) * (int)blockDim.x < size; i += kLoads * blockDim.x) {
      uint4 v[kLoads];
      if (kWay == HINTS) {
        if (is_kept) {
#pragma unroll
          for (int k = 0; k < kLoads; k++) v[k] = load<EVICT_LAST>(q + i + k * blockDim.x);
        } else {
#pragma unroll
          for (int k = 0; k < kLoads; k++) v[k] = load<EVICT_FIRST>(q + i + k * blockDim.x);
        }
      } else {
#pragma unroll
        for (int k = 0; k < kLoads; k++) v[k] = load<CG>(q + i + k * blockDim.x);
      }
#pragma unroll
      for (int k = 0; k < kLoads; k++) sum += sum_sq(v[k]);
    }
    for (; i < size; i += blockDim.x) sum += sum_sq(load<CG>(q + i));
  }
  keep(sum, out);
  cooperative_groups::this_grid().sync();
  if (!clip) return;
  const float by = 0.999f;
  for (c -= gridDim.x; c >= 0; c -= gridDim.x) {
    uint4* q = p + c * chunk;
    const int size = (int)min((int64_t)chunk, n - c * chunk);
    int i = threadIdx.x;
    for (; i + (kLoads - 1) * (int)blockDim.x < size; i += kLoads * blockDim.x) {
      uint4 v[kLoads];
#pragma unroll
      for (int k = 0; k < kLoads; k++)
        v[k] = load<kWay == HINTS ? EVICT_FIRST : CG>(q + i + k * blockDim.x);
#pragma unroll
      for (int k = 0; k < kLoads; k++) {
        if (kWay == HINTS)
          store_evict_first(q + i + k * blockDim.x, scaled(v[k], by));
        else if (kWay == STREAMING)
          __stcs(q + i + k * blockDim.x, scaled(v[k], by));
        else
          __stcg(q + i + k * blockDim.x, scaled(v[k], by));
      }
    }
    for (; i < size; i += blockDim.x) __stcg(q + i, scaled(load<CG>(q + i), by));
  }
}
