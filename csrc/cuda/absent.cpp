// What a build without CUDA has in place of the launchers.
#include "../cuda_launchers.h"

namespace fastclip {

const CudaLaunchers* cuda_launchers() { return nullptr; }

}  // namespace fastclip
