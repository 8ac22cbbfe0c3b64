// The norm in two steps: every group's partial, then, from all partials, what the call returns.
// clip.cu runs both in one launch with a grid sync between them; norm.cu and scale.cu run them as
// two launches. They are the same functions, so that both ways give the same bits.
#pragma once

#include "../coefficient.h"
#include "../cuda_launchers.h"
#include "factor.cuh"
#include "reduce.cuh"
#include "table.cuh"

namespace fastclip::device {

template <typename Sum>
__device__ Sum read_all(const Work& work, double norm_type) {
  Sum sum = start<Sum>(norm_type);
  with_dtype(work.chunk.dtype, [&](auto type) {
    using T = decltype(type);
    read_chunk<T>(
        work.chunk, team_of(work), [&](const uint4& vector) { sum.template add<T>(vector); },
        [&](typename T::Element element) { sum.template add<T>(element); });
  });
  return sum;
}

// Sets found_inf if an element is inf or NaN: a sum may overflow although no element is. The
// elements are read again only where the sum is not finite.
__device__ inline void find_inf(const Work& work, float* found_inf) {
  AbsMax seen = read_all<AbsMax>(work, 0);
  // An exchange, not a store: several threads may find one at the same time.
  if (!isfinite(seen.value())) atomicExch(found_inf, 1.0f);
}

// Returns the value of a chunk, the same for all threads that share it.
template <typename Sum>
__device__ double reduce_work(const Work& work, double norm_type, Block& block) {
  const Sum sum = read_all<Sum>(work, norm_type);
  double value = combine_warp<Sum>(sum.value());
  if constexpr (Sum::kRescues) {
    bool any_magnitude = __any_sync(kAllLanes, sum.magnitudes != 0);
    if (work.is_large) value = block.combine<Sum>(value, &any_magnitude);
    if (Sum::needs_rescue(value, any_magnitude, work.chunk.count)) {
      value = combine_warp<Sum>(read_all<SumSqWide>(work, norm_type).value());
      if (work.is_large) value = block.combine<Sum>(value);
    }
  } else {
    if (work.is_large) value = block.combine<Sum>(value);
  }
  return value;
}

// The first step. A block takes groups b, b + G, ...; each partial has one writer.
template <typename Sum, typename Table>
__device__ void reduce_groups(const Table& table, const Shape& shape, const CudaSums& norm,
                              Block& block) {
  int tensor = 0;
  for (int group = static_cast<int>(blockIdx.x); group < shape.groups;
       group += static_cast<int>(gridDim.x)) {
    tensor = find_tensor(table, shape.tensors, group * kWarps, tensor);
    const Work work = work_of(table, shape.tensors, shape.chunk_size, group, tensor);
    double value = reduce_work<Sum>(work, norm.norm_type, block);
    if (norm.found_inf != nullptr && !isfinite(value)) find_inf(work, norm.found_inf);
    if (!work.is_large) {
      if (norm.sums != nullptr && work.tensor >= 0 && threadIdx.x % kWarpSize == 0) {
        __stcg(norm.sums + work.tensor, value);
      }
      value = block.combine<Sum>(value);
    }
    if (threadIdx.x == 0) __stcg(norm.partials + group, value);
  }
}

// Returns all partials combined in one fixed order. Four loads are issued at a time; nvcc by itself
// would load up to three of a thread's partials one after another. An unrolled loop for every list
// took 0.9 to 1.4 us less with 1,946 and 2,000 partials on an H200, and 1.4 to 2.1 us more with 245
// and 256 (bench/results/2026-11-28-h200/variants-1.txt, v3 beside v1): hence the branch. This form
// has not been timed.
template <typename Sum>
__device__ double combine_partials(const double* partials, int count, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  double value = 0;
  if (count <= kBlockSize) {
    if (thread < count) value = __ldcg(partials + thread);
    return block.combine<Sum>(combine_warp<Sum>(value));
  }
#pragma unroll 1
  for (int first = thread; first < count; first += kLoads * kBlockSize) {
    double batch[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int i = first + k * kBlockSize;
      batch[k] = i < count ? __ldcg(partials + i) : 0;
    }
#pragma unroll
    for (const double partial : batch) value = Sum::combine(value, partial);
  }
  return block.combine<Sum>(combine_warp<Sum>(value));
}

// Writes the sums of large tensors, one warp each; those of small tensors are written already.
template <typename Sum, typename Table>
__device__ void write_sums(const Table& table, const Shape& shape, const CudaSums& norm) {
  if (norm.sums == nullptr) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int first = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / kWarpSize);
  for (int tensor = first; tensor < shape.tensors; tensor += static_cast<int>(gridDim.x) * kWarps) {
    const int64_t count = count_of(table, tensor);
    const DType dtype = dtype_of(table, tensor);
    if (is_small(count, dtype)) continue;
    const double* const partials = norm.partials + table.first_slot(tensor) / kWarps;
    const auto chunks =
        static_cast<int>(chunks_of_large(table.address(tensor), count, dtype, shape.chunk_size));
    double value = 0;
    for (int i = lane; i < chunks; i += kWarpSize) {
      value = Sum::combine(value, __ldcg(partials + i));
    }
    value = combine_warp<Sum>(value);
    if (lane == 0) __stcg(norm.sums + tensor, value);
  }
}

// Returns the same factor in every thread of the grid.
template <typename T>
__device__ Factor factor_of_norm(double norm, const CudaResult& result, bool is_writer) {
  const auto total_norm = static_cast<T>(norm);  // the coefficient follows from what is returned
  const T max_norm = result.max_norm_tensor != nullptr
                         ? __ldcg(static_cast<const T*>(result.max_norm_tensor))
                         : static_cast<T>(result.max_norm);
  const T clip_coef = clip_coefficient(total_norm, max_norm);
  if (is_writer) {
    if (result.total_norm != nullptr) __stcg(static_cast<T*>(result.total_norm), total_norm);
    if (result.clip_coef != nullptr) __stcg(static_cast<T*>(result.clip_coef), clip_coef);
  }
  Factor factor = factor_of(clip_coef, result.inv_scale);
  if (result.error_if_nonfinite && !isfinite(total_norm)) factor.should_write = false;
  return factor;
}

// The second step, up to the factor. Every block computes it; block 0 writes the results.
template <typename Sum>
__device__ Factor finish_norm(int groups, const CudaSums& norm, const CudaResult& result,
                              Block& block) {
  const double total = combine_partials<Sum>(norm.partials, groups, block);
  const bool is_writer = blockIdx.x == 0 && threadIdx.x == 0;
  if (is_writer && result.total != nullptr) __stcg(result.total, total);
  double value = Sum::root(total, norm.norm_type);
  if (result.inv_scale != nullptr) value *= fabs(static_cast<double>(__ldcg(result.inv_scale)));
  Factor factor = result.is_float64 ? factor_of_norm<double>(value, result, is_writer)
                                    : factor_of_norm<float>(value, result, is_writer);
  // Set by the first step or before the call: nothing may be written either way.
  if (is_set(norm.found_inf)) factor.should_write = false;
  return factor;
}

}  // namespace fastclip::device
