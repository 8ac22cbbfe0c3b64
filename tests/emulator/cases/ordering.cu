// Sums that need a barrier or a fence, with it and without.
#include <cooperative_groups.h>

#include "case.h"

namespace {

using cases::kBlocks;
using cases::kThreads;

enum class Barrier { kBlock, kGrid, kRelaxedGrid, kNone };

template <Barrier kBarrier>
__device__ void wait() {
  if constexpr (kBarrier == Barrier::kBlock) __syncthreads();
  if constexpr (kBarrier == Barrier::kGrid) cooperative_groups::this_grid().sync();
  if constexpr (kBarrier == Barrier::kRelaxedGrid) emulator::relaxed_grid_sync();
}

// Every thread sums what all threads of its block have put into shared memory.
template <Barrier kBarrier>
__global__ void sum_block(int* sums) {
  using Values = int[kThreads];
  FASTCLIP_SHARED(Values, values);
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = thread;
  wait<kBarrier>();
  int sum = 0;
  for (const int value : values) sum += value;
  __stcg(sums + blockIdx.x * blockDim.x + threadIdx.x, sum);
}

template <Barrier kBarrier, int kCount = kBlocks>
bool run_block() {
  static int sums[kCount * kThreads];
  cases::launch(&sum_block<kBarrier>, {kCount}, static_cast<int*>(sums));
  bool is_right = true;
  for (const int sum : sums) is_right &= sum == kThreads * (kThreads - 1) / 2;
  return is_right;
}

// Every thread sums what all blocks have written to memory.
template <Barrier kBarrier>
__global__ void sum_grid(int* partials, int* sums) {
  if (threadIdx.x == 0) __stcg(partials + blockIdx.x, static_cast<int>(blockIdx.x) + 1);
  wait<kBarrier>();
  int sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += __ldcg(partials + block);
  __stcg(sums + blockIdx.x * blockDim.x + threadIdx.x, sum);
}

template <Barrier kBarrier>
bool run_grid() {
  int partials[kBlocks] = {}, sums[kBlocks * kThreads] = {};
  cases::launch(&sum_grid<kBarrier>, {kBlocks, kThreads, true}, static_cast<int*>(partials),
                static_cast<int*>(sums));
  bool is_right = true;
  for (const int sum : sums) is_right &= sum == kBlocks * (kBlocks + 1) / 2;
  return is_right;
}

// The block that arrives last sums what the others have written.
template <bool kWriterHasFence, bool kReaderHasFence>
__global__ void sum_last(int* partials, unsigned* arrived, int* sum) {
  if (threadIdx.x != 0) return;
  __stcg(partials + blockIdx.x, static_cast<int>(blockIdx.x) + 1);
  if (kWriterHasFence) __threadfence();
  if (atomicAdd(arrived, 1) != gridDim.x - 1) return;
  if (kReaderHasFence) __threadfence();
  int all = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) all += __ldcg(partials + block);
  __stcg(sum, all);
}

template <bool kWriterHasFence, bool kReaderHasFence>
bool run_last() {
  constexpr int kMany = 10;  // more than are resident
  int partials[kMany] = {}, sum = 0;
  unsigned arrived = 0;
  cases::launch(&sum_last<kWriterHasFence, kReaderHasFence>, {kMany, 8},
                static_cast<int*>(partials), &arrived, &sum);
  return sum == kMany * (kMany + 1) / 2;
}

// Lanes exchange values through shared memory.
template <bool kHasBarrier>
__global__ void swap_lanes(int* swapped) {
  using Values = int[kThreads];
  FASTCLIP_SHARED(Values, values);
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = thread;
  if (kHasBarrier) {
    __syncwarp();
  } else {
    __shfl_sync(0xffffffff, thread, 0);  // orders no memory
  }
  __stcg(swapped + thread, values[thread ^ 1]);
}

template <bool kHasBarrier>
bool run_swap() {
  int swapped[kThreads] = {};
  cases::launch(&swap_lanes<kHasBarrier>, {1}, static_cast<int*>(swapped));
  bool is_right = true;
  for (int i = 0; i < kThreads; ++i) is_right &= swapped[i] == (i ^ 1);
  return is_right;
}

const cases::Case kCases[] = {
    {"block_sum", &run_block<Barrier::kBlock>},
    {"block_sum_of_many", &run_block<Barrier::kBlock, 100>},
    {"block_sum_without_barrier", &run_block<Barrier::kNone>},
    {"grid_sum", &run_grid<Barrier::kGrid>},
    {"grid_sum_relaxed", &run_grid<Barrier::kRelaxedGrid>},
    {"grid_sum_without_barrier", &run_grid<Barrier::kNone>},
    {"last_block", &run_last<true, true>},
    {"last_block_without_writer_fence", &run_last<false, true>},
    {"last_block_without_reader_fence", &run_last<true, false>},
    {"swap", &run_swap<true>},
    {"swap_without_barrier", &run_swap<false>},
};

}  // namespace
