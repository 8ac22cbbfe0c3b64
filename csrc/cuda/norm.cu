// The norm without a rescale, in two launches: every group's partial; then, from all partials, the
// sum of each tensor, total_norm and clip_coef.
#include "launch_kernel.cuh"

namespace fastclip::device {
namespace {

constexpr int kFinishRounds = 4;  // tensors that a warp of finish_kernel sums, one after another

template <typename Sum, typename Table>
__global__ void __launch_bounds__(kBlockSize, kMinBlocks)
    reduce_kernel(const __grid_constant__ Table table, const Shape shape, const CudaSums sums) {
  FASTCLIP_SHARED(Scratch, scratch);
  Block block(scratch);
  reduce_groups<Sum>(table, shape, sums, block);
}

template <typename Sum, typename Table>
__global__ void __launch_bounds__(kBlockSize, kMinBlocks)
    finish_kernel(const __grid_constant__ Table table, const Shape shape, const CudaSums sums,
                  const CudaResult result) {
  FASTCLIP_SHARED(Scratch, scratch);
  Block block(scratch);
  if (blockIdx.x == 0) finish_norm<Sum>(shape.groups, sums, result, block);
  write_sums<Sum>(table, shape, sums);
}

}  // namespace

cudaError_t launch_reduce(const CudaList& list, const CudaSums& sums, cudaStream_t stream) {
  const auto kernel_of = [](auto sum, auto table) {
    return &reduce_kernel<TypeOf<decltype(sum)>, TypeOf<decltype(table)>>;
  };
  return launch_for(list, sums, kOrdinary, stream, kernel_of);
}

cudaError_t launch_finish(const CudaList& list, const CudaSums& sums, const CudaResult& result,
                          cudaStream_t stream) {
  const auto kernel_of = [](auto sum, auto table) {
    return &finish_kernel<TypeOf<decltype(sum)>, TypeOf<decltype(table)>>;
  };
  const Grid grid{1 + list.size / (kWarps * kFinishRounds), false};
  return launch_for(list, sums, grid, stream, kernel_of, result);
}

}  // namespace fastclip::device
