// Rescales and clamps: by the coefficient that follows from a norm's partials (the second launch of
// a split clip), by coefficients in device memory or a given one, in place or into other tensors.
#include "launch_kernel.cuh"
#include "scale.cuh"

namespace fastclip::device {
namespace {

template <typename Sum, typename Table>
__global__ void __launch_bounds__(kBlockSize, kMinBlocks)
    finish_and_scale_kernel(const __grid_constant__ Table table, const Shape shape,
                            const CudaSums sums, const CudaResult result) {
  FASTCLIP_SHARED(Scratch, scratch);
  Block block(scratch);
  finish_and_change<Sum>(table, shape, sums, result, block);
}

template <typename T>
__device__ T coef_of(const CudaCoefs& coefs, int tensor) {
  if (coefs.per_tensor != nullptr) return __ldcg(static_cast<const T*>(coefs.per_tensor) + tensor);
  if (coefs.clip_coef != nullptr) return __ldcg(static_cast<const T*>(coefs.clip_coef));
  if (coefs.total_norm == nullptr) return static_cast<T>(coefs.value);
  const T max_norm = coefs.max_norm_tensor != nullptr
                         ? __ldcg(static_cast<const T*>(coefs.max_norm_tensor))
                         : static_cast<T>(coefs.value);
  return clip_coefficient(__ldcg(static_cast<const T*>(coefs.total_norm)), max_norm);
}

template <typename Table>
__global__ void __launch_bounds__(kBlockSize, kMinBlocks)
    scale_kernel(const __grid_constant__ Table table, const Shape shape, const CudaCoefs coefs) {
  // Targets are new memory, so they are written whatever the factor and the flag are.
  if (!shape.has_targets && is_set(coefs.found_inf)) return;
  change_groups(table, shape, [&](int tensor) {
    const Factor factor = coefs.is_float64
                              ? factor_of(coef_of<double>(coefs, tensor), coefs.inv_scale)
                              : factor_of(coef_of<float>(coefs, tensor), coefs.inv_scale);
    return Multiply{factor.value, shape.has_targets || factor.should_write};
  });
}

template <typename Table>
__global__ void __launch_bounds__(kBlockSize, kMinBlocks)
    clamp_kernel(const __grid_constant__ Table table, const Shape shape, const CudaClamp clamp) {
  if (is_set(clamp.found_inf)) return;
  change_groups(table, shape.in_place(), [&](int) { return Clamp{clamp.clip_value}; });
}

// This is not a case of clamp_kernel: beside it nvcc gave the loops there a few more instructions.
template <typename Table>
__global__ void __launch_bounds__(kBlockSize, kMinBlocks)
    unscale_and_clamp_kernel(const __grid_constant__ Table table, const Shape shape,
                             const CudaClamp clamp) {
  if (is_set(clamp.found_inf)) return;
  const float inv_scale = __ldcg(clamp.inv_scale);
  change_groups(table, shape.in_place(), [&](int) {
    return MultiplyAndClamp{{inv_scale}, {clamp.clip_value}, inv_scale != 1};
  });
}

}  // namespace

cudaError_t launch_finish_and_scale(const CudaList& list, const CudaSums& sums,
                                    const CudaResult& result, cudaStream_t stream) {
  const auto kernel_of = [](auto sum, auto table) {
    return &finish_and_scale_kernel<TypeOf<decltype(sum)>, TypeOf<decltype(table)>>;
  };
  return launch_for(list, sums, kOrdinary, stream, kernel_of, result);
}

cudaError_t launch_scale(const CudaList& list, const CudaCoefs& coefs, cudaStream_t stream) {
  const auto kernel_of = [](auto table) { return &scale_kernel<TypeOf<decltype(table)>>; };
  return launch_for(list, kOrdinary, stream, kernel_of, coefs);
}

cudaError_t launch_clamp(const CudaList& list, const CudaClamp& clamp, cudaStream_t stream) {
  const auto kernel_of = [&](auto table) {
    using Table = TypeOf<decltype(table)>;
    return clamp.inv_scale == nullptr ? &clamp_kernel<Table> : &unscale_and_clamp_kernel<Table>;
  };
  return launch_for(list, kOrdinary, stream, kernel_of, clamp);
}

}  // namespace fastclip::device
