// What the launchers share on the host: the device, the size of a grid, the table in arguments.
// Needs the CUDA toolkit's headers but not nvcc.
#pragma once

#include <cuda_runtime.h>

#include "../cuda_launchers.h"

namespace fastclip::device {

// Makes a device current, and at its end the previous one again.
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

// Finds how many blocks of the kernel the current device holds at a time; a device is asked once.
cudaError_t resident_blocks(const void* kernel, int* blocks);

// Chooses a block for every group, up to as many as the device holds. On an H200 a list of 1,000
// tensors of 128 bytes took 177 us with a block for each 64 KiB, and 15.7 with one for each 4 KiB,
// when a block had four or five groups; a grid sync took 4.06 us with 132 blocks and 4.48 with 528
// (variants-1.txt and ceilings.txt of bench/results/2026-11-28-h200). One block for each of that
// list's 125 groups has not been timed.
cudaError_t grid_size(const void* kernel, int groups, int* blocks);

// Returns whether the driver takes kernel arguments of 32,764 bytes, as those from 12.1 on do; 4 KB
// work on every driver.
bool takes_long_arguments();

// Returns the status that a call returned. A failed call also leaves its error for
// cudaGetLastError, where it would look like the error of a later call: this clears it there.
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

// Returns success if the build holds code for the current device.
cudaError_t check_code();

}  // namespace fastclip::device
