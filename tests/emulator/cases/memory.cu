// Reading and writing where one may and where one may not.
#include <cmath>
#include <cstdio>
#include <memory>

#include "case.h"

namespace {

using cases::kThreads;
constexpr int kCount = 1000;

struct Free {
  void operator()(void* data) const { emulator::free(data); }
};
template <typename T>
using Watched = std::unique_ptr<T[], Free>;

template <typename T>
Watched<T> allocate(const char* name, size_t count, bool is_read_only = false, int device = 0) {
  emulator::RegionOptions options;
  options.is_read_only = is_read_only;
  options.device = device;
  return Watched<T>(static_cast<T*>(emulator::allocate(name, count * sizeof(T), options)));
}

__global__ void copy(const float* source, float* target, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    __stcg(target + i, __ldcg(source + i));
  }
}

__global__ void copy_plainly(const float* source, float* target, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) target[i] = source[i];
}

bool run_counting() {
  const auto source = allocate<float>("source", kCount, true);
  const auto target = allocate<float>("target", kCount);
  CASES_CHECK(std::isnan(source[0]) && std::isnan(target[kCount - 1]));
  for (int times = 1; times <= 2; ++times) {
    CASES_CHECK(cases::launch(&copy, {1}, source.get(), target.get(), kCount) == cudaSuccess);
    const emulator::Traffic read = emulator::traffic(source.get());
    const emulator::Traffic written = emulator::traffic(target.get());
    const auto bytes = static_cast<uint64_t>(4 * kCount);
    CASES_CHECK(read.read == times * bytes && read.unique_read == bytes && read.written == 0);
    CASES_CHECK(written.written == times * bytes && written.unique_written == bytes);
    CASES_CHECK(written.read == 0);
  }
  emulator::clear_traffic();
  CASES_CHECK(cases::launch(&copy, {1}, source.get() + 5, target.get(), 3) == cudaSuccess);
  CASES_CHECK(emulator::traffic(source.get()).unique_read == 12);
  return true;
}

bool run_read_only() {
  const auto source = allocate<float>("source", kCount);
  const auto target = allocate<float>("target", kCount, true);
  return cases::launch(&copy, {1}, source.get(), target.get(), kCount) == cudaSuccess;
}

bool run_past_watched() {
  const auto source = allocate<float>("source", kCount);
  const auto target = allocate<float>("target", kCount + 1);
  return cases::launch(&copy, {1}, source.get(), target.get(), kCount + 1) == cudaSuccess;
}

bool run_unwatched() {
  emulator::execution().is_strict = true;
  float source[kThreads] = {};
  const auto target = allocate<float>("target", kThreads);
  return cases::launch(&copy, {1}, static_cast<const float*>(source), target.get(), kThreads) ==
         cudaSuccess;
}

bool run_other_device() {
  emulator::machine().devices = 2;
  const auto source = allocate<float>("source", kCount, false, 1);
  const auto target = allocate<float>("target", kCount);
  return cases::launch(&copy, {1}, source.get(), target.get(), kCount) == cudaSuccess;
}

// Plain accesses: AddressSanitizer sees them, and guard zones keep what was stored.
bool run_past_plain() {
  const std::unique_ptr<float[]> source(new float[kCount]());
  const std::unique_ptr<float[]> target(new float[kCount + 1]());
  cases::launch(&copy_plainly, {1}, source.get(), target.get(), kCount + 1);
  return true;
}

bool run_guard_zone() {
  const std::unique_ptr<float[]> source(new float[kCount + 1]());
  float* const target = allocate<float>("target", kCount).release();
  cases::launch(&copy_plainly, {1}, source.get(), target, kCount + 1);
  return emulator::free(target);
}

__global__ void load_vector(const char* source, uint4* target) {
  target[threadIdx.x] = __ldcg(reinterpret_cast<const uint4*>(source) + threadIdx.x);
}

__global__ void load_vector_plainly(const char* source, uint4* target) {
  target[threadIdx.x] = reinterpret_cast<const uint4*>(source)[threadIdx.x];
}

template <void (*kKernel)(const char*, uint4*), int kOffset>
bool run_vectors() {
  alignas(16) static char source[16 * kThreads + 16] = {};
  static uint4 target[kThreads];
  return cases::launch(kKernel, {1}, static_cast<const char*>(source) + kOffset,
                       static_cast<uint4*>(target)) == cudaSuccess;
}

template <int kSize, bool kIsWritten>
__global__ void use_shared(float* out) {
  using Values = float[kSize];
  FASTCLIP_SHARED(Values, values);
  if (kIsWritten) values[threadIdx.x] = 1;
  __syncthreads();
  if (blockIdx.x == 0) out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// Twice, so that the second launch gets the first one's memory.
template <int kSize, bool kIsWritten>
bool run_shared() {
  float out[kThreads] = {};
  cases::launch(&use_shared<kThreads, true>, {cases::kBlocks}, static_cast<float*>(out));
  cases::launch(&use_shared<kSize, kIsWritten>, {1}, static_cast<float*>(out));
  bool is_right = true;
  for (const float value : out) is_right &= value == 1;
  if (!is_right) std::printf("got %f\n", static_cast<double>(out[0]));
  return is_right;
}

// Through a pointer, so that the array's bounds are not known.
__global__ void read_past_shared(float* out) {
  using Values = float[kThreads];
  FASTCLIP_SHARED(Values, values);
  FASTCLIP_SHARED(Values, others);
  values[threadIdx.x] = others[threadIdx.x] = 1;
  const volatile float* first = values;
  out[0] = first[kThreads];
}

bool run_past_shared() {
  float out = 0;
  return cases::launch(&read_past_shared, {1}, &out) == cudaSuccess;
}

const cases::Case kCases[] = {
    {"shared_past_end", &run_past_shared},
    {"counting", &run_counting},
    {"read_only", &run_read_only},
    {"past_watched", &run_past_watched},
    {"unwatched", &run_unwatched},
    {"other_device", &run_other_device},
    {"past_plain", &run_past_plain},
    {"guard_zone", &run_guard_zone},
    {"vectors", &run_vectors<&load_vector, 0>},
    {"misaligned", &run_vectors<&load_vector, 2>},
    {"misaligned_plain", &run_vectors<&load_vector_plainly, 2>},
    {"shared", &run_shared<kThreads, true>},
    {"shared_unwritten", &run_shared<kThreads, false>},
    {"shared_too_small", &run_shared<kThreads - 1, true>},
    {"shared_too_large", &run_shared<(49 << 10) / 4, true>},
};

}  // namespace
