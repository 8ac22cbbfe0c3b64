// What the launchers share on the host: the device, the size of a grid, the table in arguments.
// Needs the toolkit and no nvcc.
#pragma once

#include <cuda_runtime.h>

#include "../cuda_launchers.h"

namespace fastclip::device {

// Makes a device current and, at its end, the one that was.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  cudaError_t status() const { return status_; }

 private:
  int saved_ = -1;  // -1: nothing to restore
  cudaError_t status_;
};

// Blocks of the kernel that the current device holds at a time; asked once for each device.
cudaError_t resident_blocks(const void* kernel, int* blocks);

// A block for every group, up to as many as the device holds. On an H200 a list of 1,000 tensors of
// 128 bytes took 177 us with a block for each 64 KiB, and 15.7 with one for each 4 KiB, when a
// block had four or five groups; a grid sync took 4.06 us with 132 blocks and 4.48 with 528
// (variants-1.txt and ceilings.txt of bench/results/2026-11-28-h200). A block of its own for each
// of that list's 125 groups has not been timed.
cudaError_t grid_size(const void* kernel, int groups, int* blocks);

// Kernel arguments of 4 KB work on every driver, those of 32,764 bytes from 12.1 on.
bool takes_long_arguments();

// What a call returned. A failed one also leaves its error for cudaGetLastError, where the next to
// ask would take it for its own: it is taken from there.
cudaError_t take_error(cudaError_t status);

CudaList plan_list(TensorEntry* entries, int64_t size, char* const* targets);

// The launchers of clip.cu, norm.cu and scale.cu; cuda_launchers.h says what they do.
cudaError_t launch_write_table(const CudaList& list, cudaStream_t stream);
cudaError_t launch_fused(const CudaList& list, const CudaSums& sums, const CudaResult& result,
                         cudaStream_t stream);
cudaError_t launch_reduce(const CudaList& list, const CudaSums& sums, cudaStream_t stream);
cudaError_t launch_finish(const CudaList& list, const CudaSums& sums, const CudaResult& result,
                          cudaStream_t stream);
cudaError_t launch_finish_and_scale(const CudaList& list, const CudaSums& sums,
                                    const CudaResult& result, cudaStream_t stream);
cudaError_t launch_scale(const CudaList& list, const CudaCoefs& coefs, cudaStream_t stream);
cudaError_t launch_clamp(const CudaList& list, const CudaClamp& clamp, cudaStream_t stream);

// Success if the build holds code for the current device.
cudaError_t check_code();

}  // namespace fastclip::device
