// Chooses, at run time, the chunk kernels of the best instruction set that this CPU has.
#include <atomic>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../cpu_kernels.h"

namespace fastclip {
namespace {

#if defined(__x86_64__)
// clang before 16 does not know this name in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

struct Runnable {
  const ChunkKernels* tables[3];
  int size = 0;

  Runnable() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      tables[size++] = &kAvx512Kernels;
    }
    if (has_avx2) tables[size++] = &kAvx2Kernels;
#endif
    tables[size++] = &kBaselineKernels;
  }
};

const Runnable& runnable() {
  static const Runnable instance;
  return instance;
}

std::atomic<const ChunkKernels*> selected{nullptr};

}  // namespace

const ChunkKernels* const* runnable_kernels(int* size) {
  *size = runnable().size;
  return runnable().tables;
}

const ChunkKernels& active_kernels() {
  const ChunkKernels* table = selected.load(std::memory_order_relaxed);
  return table != nullptr ? *table : *runnable().tables[0];
}

bool select_kernels(const char* name) {
  for (int i = 0; i < runnable().size; ++i) {
    if (std::strcmp(runnable().tables[i]->name, name) == 0) {
      selected.store(runnable().tables[i], std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace fastclip
