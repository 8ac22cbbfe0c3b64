// The chunk kernels for AVX-512 F, BW, VL, DQ: 64-byte vectors.
namespace {
constexpr int kVectorBytes = 64;
}
#include "chunk_kernels.h"

namespace fastclip {
const ChunkKernels kAvx512Kernels = chunk_kernels("avx512");
}
