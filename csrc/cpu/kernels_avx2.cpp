// The chunk kernels for AVX2 + FMA + F16C: 32-byte vectors.
namespace {
constexpr int kVectorBytes = 32;
}
#include "chunk_kernels.h"

namespace fastclip {
const ChunkKernels kAvx2Kernels = chunk_kernels("avx2");
}
