// The chunk kernels for any CPU of the target: 16-byte vectors (SSE2 on x86-64, NEON on aarch64).
namespace {
constexpr int kVectorBytes = 16;
}
#include "chunk_kernels.h"

namespace fastclip {
const ChunkKernels kBaselineKernels = chunk_kernels("baseline");
}
