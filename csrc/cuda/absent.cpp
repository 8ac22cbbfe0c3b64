// What a build without CUDA has in place of the launchers.
#include "../launch_cuda.h"

namespace fastclip {

const CudaLaunchers* cuda_launchers() { return nullptr; }

}  // namespace fastclip
