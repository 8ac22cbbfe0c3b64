// What nvcc takes as part of the language. Include this last: the toolkit's headers define the same
// names for compilers other than nvcc.
#pragma once

#include "runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __managed__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)

// g++ would make it a variable of each thread.
#define __shared__ _Pragma("GCC error \"shared memory needs FASTCLIP_SHARED(type, name)\"")
#define __managed__ _Pragma("GCC error \"__managed__ is not emulated\"")

// One object for each block and each place in the source, as with __shared__. An array needs a
// name for its type.
#define FASTCLIP_SHARED(type, name)                                   \
  static char name##_key;                                             \
  type& name = *static_cast<type*>(::emulator::detail::shared_memory( \
      &name##_key, sizeof(type), alignof(type), ::emulator::detail::Place::here()))

// The indices of the thread that runs, written at every switch between threads. They are no macros,
// because cudaLaunchConfig_t has members of these names.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
