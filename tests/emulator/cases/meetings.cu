// Threads that wait for each other: rightly, at different places, for ever.
#include <algorithm>
#include <iterator>

#include "case.h"

namespace {

using cases::kThreads;
constexpr unsigned kAllLanes = 0xffffffff;
constexpr unsigned kLowLanes = 0x0000ffff;

__global__ void early_exit(int* out) {
  if (threadIdx.x >= kThreads / 2) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void barrier_in_branches(int* out) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void half_warp(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1);
}

__global__ void lane_outside(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(kLowLanes, 1, 20);
}

__global__ void two_masks(int* out) {
  const unsigned mask = threadIdx.x % 32 == 3 ? kLowLanes : kAllLanes;
  out[threadIdx.x] = __any_sync(mask, 1);
}

__global__ void not_in_mask(int* out) { out[threadIdx.x] = __any_sync(kLowLanes, 1); }

__global__ void grid_barrier(int*) { emulator::relaxed_grid_sync(); }

__global__ void trap(int*) { __trap(); }

__global__ void wait_for_nobody(int* out) {
  while (atomicAdd(out, 0) == 0) __nanosleep(100);
}

template <void (*kKernel)(int*)>
bool run() {
  int out[kThreads] = {};
  const cudaError_t status = cases::launch(kKernel, {1}, static_cast<int*>(out));
  return status == cudaSuccess;
}

__global__ void take_turns(int* turn, int* order) {
  const int thread = static_cast<int>(threadIdx.x);
  while (atomicAdd(turn, 0) != thread) __nanosleep(100);
  __threadfence();
  order[thread] = thread == 0 ? 1 : order[thread - 1] + 1;
  __threadfence();
  atomicAdd(turn, 1);
}

bool run_turns() {
  int turn = 0, order[kThreads] = {};
  cases::launch(&take_turns, {1}, &turn, static_cast<int*>(order));
  return order[kThreads - 1] == kThreads;
}

struct Seen {
  double by_xor;
  float by_down;
  int64_t by_up;
  unsigned by_lane;
  unsigned ballot;
  int any, all, any_in_block, all_in_block, count;
};

__global__ void exchange(Seen* seen) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  Seen& mine = seen[thread];
  mine.by_xor = __shfl_xor_sync(kAllLanes, thread + 0.5, 5);
  mine.by_down = __shfl_down_sync(kAllLanes, static_cast<float>(thread), 3);
  mine.by_up = __shfl_up_sync(kAllLanes, int64_t{1} << 40 | thread, 2, 8);
  mine.by_lane = __shfl_sync(kAllLanes, static_cast<unsigned>(thread), 6, 16);
  mine.ballot = __ballot_sync(kAllLanes, thread % 3 == 0);
  mine.any = __any_sync(kAllLanes, thread == 40);
  mine.all = __all_sync(kAllLanes, thread != 40);
  if (lane < 16) mine.any += 10 * __any_sync(kLowLanes, lane == 15);
  mine.any_in_block = __syncthreads_or(thread == 63);
  mine.all_in_block = __syncthreads_and(thread != 63);
  mine.count = __syncthreads_count(thread < 5);
}

bool run_exchange() {
  Seen seen[kThreads];
  cases::launch(&exchange, {1}, static_cast<Seen*>(seen));
  for (int thread = 0; thread < kThreads; ++thread) {
    const int lane = thread % 32, first = thread - lane;
    const Seen& mine = seen[thread];
    CASES_CHECK(mine.by_xor == first + (lane ^ 5) + 0.5);
    CASES_CHECK(mine.by_down == (lane < 29 ? thread + 3 : thread));
    CASES_CHECK(mine.by_up == (int64_t{1} << 40 | (lane % 8 < 2 ? thread : thread - 2)));
    CASES_CHECK(mine.by_lane == static_cast<unsigned>(first + lane / 16 * 16 + 6));
    CASES_CHECK(mine.ballot == (first == 0 ? 0x49249249u : 0x92492492u));
    CASES_CHECK(mine.any == (first == 32) + (lane < 16 ? 10 : 0));
    CASES_CHECK(mine.all == (first == 0));
    CASES_CHECK(mine.any_in_block == 1 && mine.all_in_block == 0 && mine.count == 5);
  }
  return true;
}

// After every fault a launch that is right: nothing of the fault is left.
bool run_after_faults() {
  CASES_CHECK(!run<&early_exit>() && !run<&half_warp>() && !run<&two_masks>());
  CASES_CHECK(emulator::reports().size() == 3);
  CASES_CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
  CASES_CHECK(cudaGetLastError() == cudaSuccess);
  emulator::clear_reports();
  return run_exchange() && run_turns();
}

bool run_abort() {
  emulator::execution().aborts = true;
  return run<&early_exit>();
}

__global__ void note_order(unsigned* next, unsigned* order) {
  for (int i = 0; i < 4; ++i) order[atomicAdd(next, 1)] = threadIdx.x;
}

struct Order {
  unsigned threads[4 * kThreads] = {};

  explicit Order(uint64_t seed) {
    unsigned next = 0;
    emulator::execution().seed = seed;
    cases::launch(&note_order, {1}, &next, static_cast<unsigned*>(threads));
  }
  bool operator==(const Order& other) const {
    return std::equal(std::begin(threads), std::end(threads), std::begin(other.threads));
  }
};

bool run_order() {
  const emulator::Schedule schedule = emulator::execution().schedule;
  const bool is_random =
      schedule == emulator::Schedule::kRandom || schedule == emulator::Schedule::kPriorities;
  CASES_CHECK(Order(3) == Order(3));
  CASES_CHECK((Order(3) == Order(4)) == !is_random);
  return true;
}

const cases::Case kCases[] = {
    {"abort", &run_abort},
    {"order", &run_order},
    {"early_exit", &run<&early_exit>},
    {"barrier_in_branches", &run<&barrier_in_branches>},
    {"half_warp", &run<&half_warp>},
    {"lane_outside", &run<&lane_outside>},
    {"two_masks", &run<&two_masks>},
    {"not_in_mask", &run<&not_in_mask>},
    {"grid_barrier", &run<&grid_barrier>},
    {"trap", &run<&trap>},
    {"wait_for_nobody", &run<&wait_for_nobody>},
    {"take_turns", &run_turns},
    {"exchange", &run_exchange},
    {"after_faults", &run_after_faults},
};

}  // namespace
