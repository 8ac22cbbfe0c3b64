// The fused kernel: the norm of all gradients and, where it exceeds max_norm, the rescale in place,
// in one cooperative launch. docs/kernels.md explains how it works.
#include <cooperative_groups.h>

#include "launch_kernel.cuh"
#include "scale.cuh"

namespace fastclip::device {
namespace {

// Every block sees after it what any block wrote before it. It needs no memory of ours.
__device__ void sync_grid() { cooperative_groups::this_grid().sync(); }

template <typename Sum, typename Table>
__global__ void __launch_bounds__(kBlockSize, kMinBlocks)
    clip_kernel(const __grid_constant__ Table table, const Shape shape, const CudaSums sums,
                const CudaResult result) {
  FASTCLIP_SHARED(Scratch, scratch);
  Block block(scratch);
  reduce_groups<Sum>(table, shape, sums, block);
  sync_grid();
  finish_and_change<Sum>(table, shape, sums, result, block);
}

}  // namespace

cudaError_t launch_fused(const CudaList& list, const CudaSums& sums, const CudaResult& result,
                         cudaStream_t stream) {
  const auto kernel_of = [](auto sum, auto table) {
    return &clip_kernel<TypeOf<decltype(sum)>, TypeOf<decltype(table)>>;
  };
  return launch_for(list, sums, kCooperative, stream, kernel_of, result);
}

}  // namespace fastclip::device
