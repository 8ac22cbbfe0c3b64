// Everything the binding may call: the chunk kernels of each instruction set.
// Plain C++: this header includes neither torch nor Python.
#pragma once

#include <cstdint>

#include "tensor_list.h"

namespace fastclip {

using ReduceKernel = double (*)(const void* data, int64_t count);
using PowerKernel = double (*)(const void* data, int64_t count, double norm_type);
using ScaleKernel = void (*)(const void* source, void* target, int64_t count, double clip_coef);
using ClampKernel = void (*)(void* data, int64_t count, double clip_value);

// One table per instruction set; every array is indexed by DType. All tables give the same bits.
struct ChunkKernels {
  const char* name;
  ReduceKernel sum_sq[kDTypes];       // within 2^-24 of the exact sum, relative
  ReduceKernel sum_sq_wide[kDTypes];  // float64 throughout, for results asked for in float64
  ReduceKernel abs_sum[kDTypes];
  ReduceKernel abs_max[kDTypes];   // NaN if any element is NaN
  PowerKernel power_sum[kDTypes];  // sum of |x|^p for finite p > 0
  ScaleKernel scale[kDTypes];      // target = source * clip_coef; target may be source
  ClampKernel clamp[kDTypes];      // in place to [-clip_value, clip_value], clip_value >= 0
};

extern const ChunkKernels kBaselineKernels;
#if defined(__x86_64__)
extern const ChunkKernels kAvx2Kernels;
extern const ChunkKernels kAvx512Kernels;
#endif

// The tables that this CPU can run, best first; `size` receives how many there are.
const ChunkKernels* const* runnable_kernels(int* size);

// The table in use: the best runnable one until select_kernels names another.
const ChunkKernels& active_kernels();

// Returns false, and changes nothing, when no runnable table has this name.
bool select_kernels(const char* name);

}  // namespace fastclip
