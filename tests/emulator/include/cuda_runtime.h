// Found before the toolkit's cuda_runtime.h: takes its host declarations as they are, and puts the
// emulator's functions in the place of what only nvcc knows.
#pragma once

#include <math.h>

// The toolkit's own passes untyped arguments on, which cannot be called without nvcc's tables.
#define cudaLaunchKernelEx cudaLaunchKernelExUntyped
#include_next <cuda_runtime.h>
#undef cudaLaunchKernelEx

#include "emulator/launch.h"
#include "emulator/math.h"
#include "emulator/memory.h"
#include "emulator/qualifiers.h"
#include "emulator/threads.h"
