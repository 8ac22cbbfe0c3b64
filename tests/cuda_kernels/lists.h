// Lists whose sizes and addresses are awkward on purpose.
#pragma once

#include <string>
#include <vector>

#include "gradients.h"

namespace fastclip::kernel_tests {

constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                                DType::kFloat16};

struct NamedList {
  std::string name;
  std::vector<TensorSpec> specs;
};

// Runs of tiny tensors before, between and after large ones, sizes around 16 KiB, all dtypes.
std::vector<TensorSpec> mixed_list();
// Sizes around kMinChunkSize, with and without a head, and several chunks.
std::vector<TensorSpec> chunk_list();
// Every dtype at every address modulo 16 that its elements can have, small and large.
std::vector<TensorSpec> head_list();
// `count` tensors of 0 to 3 elements.
std::vector<TensorSpec> tiny_list(int count);
// A few tensors, small and large, of one dtype.
std::vector<TensorSpec> short_list(DType dtype);

// All lists above.
const std::vector<NamedList>& awkward_lists();
const NamedList& awkward_list(const Run& run);  // one of them, by the run's seed

}  // namespace fastclip::kernel_tests
