// How the programs here measure: the median of times between two events, L2 flushed, the host
// ahead.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                      \
  do {                                                                                   \
    const cudaError_t status = (call);                                                   \
    if (status != cudaSuccess) {                                                         \
      std::printf("FAIL %s line %d: %s\n", #call, __LINE__, cudaGetErrorString(status)); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (0)

// Never true, and the compiler does not know it: the sum must not be left out.
__device__ __forceinline__ void keep(float sum, float* out) {
  if (sum == 12345.678f) *out = sum;
}

// Leaves nothing in L2 but words of the buffer, and nothing to write back.
__global__ void flush(const uint4* p, int64_t n, float* out) {
  float sum = 0;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
       i += (int64_t)gridDim.x * blockDim.x)
    sum += __uint_as_float(p[i].x) + __uint_as_float(p[i].w);
  keep(sum, out);
}

__global__ void spin(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles);
}

// What a measurement needs on the current device; it lasts as long as the program.
class Measuring {
 public:
  // `cycles`: how long the device is kept busy while the host launches a call.
  explicit Measuring(long long cycles) : cycles_(cycles) {
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    multiprocessors = device.multiProcessorCount;
    CHECK(cudaMalloc(&buffer_, kFlushBytes));
    CHECK(cudaMemset(buffer_, 1, kFlushBytes));
    CHECK(cudaMalloc(&out, sizeof(float)));
    CHECK(cudaEventCreate(&before_));
    CHECK(cudaEventCreate(&after_));
  }

  // Before each call the buffer is read, and a kernel spins while the host launches the call. The
  // first two calls are not counted.
  template <class Call>
  double milliseconds(Call call, int repetitions = 9) const {
    std::vector<float> taken;
    for (int r = 0; r < repetitions + 2; r++) {
      flush<<<multiprocessors * 8, 256>>>(buffer_, kFlushBytes / sizeof(uint4), out);
      spin<<<1, 1>>>(cycles_);
      CHECK(cudaEventRecord(before_));
      call();
      CHECK(cudaEventRecord(after_));
      CHECK(cudaEventSynchronize(after_));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, before_, after_));
      if (r >= 2) taken.push_back(ms);
    }
    CHECK(cudaGetLastError());
    std::sort(taken.begin(), taken.end());
    return taken[taken.size() / 2];
  }

  int multiprocessors;
  float* out;  // kernels write here what nobody reads

 private:
  static constexpr int64_t kFlushBytes = int64_t{512} << 20;
  long long cycles_;
  uint4* buffer_;
  cudaEvent_t before_, after_;
};
