// Small kernels, right ones and ones with a planted fault, run by name.
#pragma once

#include <cuda_runtime.h>

#include "emulator.h"

namespace cases {

// Makes run() a case. It returns whether what the kernels wrote is right.
struct Case {
  Case(const char* name, bool (*run)());
};

constexpr int kThreads = 64;  // two warps
constexpr int kBlocks = 4;

struct Shape {
  int blocks = 1;
  int threads = kThreads;
  bool is_cooperative = false;
  cudaStream_t stream = nullptr;
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Shape& shape,
                   const Arguments&... arguments) {
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.stream = shape.stream;
  config.attrs = &cooperative;
  config.numAttrs = shape.is_cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Ends the case as wrong, with the place.
bool is_true(bool condition, const char* text, int line);

}  // namespace cases

#define CASES_CHECK(condition) \
  if (!cases::is_true((condition), #condition, __LINE__)) return false
