#include "lists.h"

namespace fastclip::kernel_tests {
namespace {

constexpr int64_t kLargestSmall = 16384;  // bytes; gpu_work.h. These lists are to straddle it
constexpr size_t kVectorBytes = 16;

DType dtype_of(size_t index) { return kAllDTypes[index % kDTypes]; }

// Another address modulo 16 for each tensor.
TensorSpec next_spec(const std::vector<TensorSpec>& specs, DType dtype, int64_t count) {
  const auto size = static_cast<size_t>(element_size(dtype));
  return {dtype, count, specs.size() * 3 * size % kVectorBytes};
}

}  // namespace

std::vector<TensorSpec> mixed_list() {
  std::vector<TensorSpec> specs;
  const auto add = [&](DType dtype, int64_t count) {
    specs.push_back(next_spec(specs, dtype, count));
  };
  for (const int64_t count : {1, 0, 31, 33, 2, 0, 7}) add(dtype_of(specs.size()), count);
  for (const DType dtype : kAllDTypes) {
    const int64_t largest = kLargestSmall / element_size(dtype);
    for (const int64_t count : {largest - 1, largest, largest + 1}) add(dtype, count);
  }
  for (int i = 0; i < 9; ++i) add(dtype_of(specs.size()), 5 + i);
  add(DType::kBFloat16, 8195);
  add(DType::kFloat16, 9000);
  for (int i = 0; i < 17; ++i) add(dtype_of(specs.size() / 2), i % 4);
  add(DType::kFloat32, 5000);
  add(DType::kFloat16, 1);
  return specs;
}

std::vector<TensorSpec> chunk_list() {
  std::vector<TensorSpec> specs;
  const auto add = [&](DType dtype, int64_t count, size_t offset) {
    specs.push_back({dtype, count, offset});
  };
  add(DType::kFloat32, kMinChunkSize - 1, 0);
  add(DType::kBFloat16, kMinChunkSize, 0);
  add(DType::kFloat16, kMinChunkSize + 1, 0);
  add(DType::kFloat32, 3, 4);
  // A head of 3 elements before a whole chunk, and one more element after it.
  add(DType::kBFloat16, 3 + kMinChunkSize, 10);
  add(DType::kFloat32, 3 + kMinChunkSize + 1, 4);
  add(DType::kFloat16, 7 + 2 * kMinChunkSize + 5, 2);
  add(DType::kFloat64, kMinChunkSize + 2, 8);
  return specs;
}

std::vector<TensorSpec> head_list() {
  std::vector<TensorSpec> specs;
  for (const int64_t bytes : {int64_t{200}, kLargestSmall + 40}) {
    for (const DType dtype : kAllDTypes) {
      const auto size = static_cast<size_t>(element_size(dtype));
      for (size_t offset = 0; offset < kVectorBytes; offset += size) {
        // These have tails of every length.
        const int64_t count = bytes / element_size(dtype) + static_cast<int64_t>(offset / size);
        specs.push_back({dtype, count, offset});
      }
    }
  }
  // These are shorter than the head that their address asks for.
  specs.push_back({DType::kBFloat16, 3, 2});
  specs.push_back({DType::kFloat32, 1, 4});
  return specs;
}

std::vector<TensorSpec> tiny_list(int count) {
  std::vector<TensorSpec> specs;
  for (int i = 0; i < count; ++i) {
    specs.push_back(next_spec(specs, dtype_of(specs.size()), 1 + i % 3));
  }
  if (count > 5) specs[5].count = 0;
  return specs;
}

std::vector<TensorSpec> short_list(DType dtype) {
  const auto size = static_cast<size_t>(element_size(dtype));
  return {{dtype, 40, size},
          {dtype, 9000, kVectorBytes - size},
          {dtype, 3, 0},
          {dtype, 1500, size},
          {dtype, 8400, 0}};
}

const std::vector<NamedList>& awkward_lists() {
  static const auto* const lists = new std::vector<NamedList>{{"mixed list", mixed_list()},
                                                              {"chunk list", chunk_list()},
                                                              {"head list", head_list()},
                                                              {"tiny list", tiny_list(90)}};
  return *lists;
}

const NamedList& awkward_list(const Run& run) {
  const auto& lists = awkward_lists();
  return lists[run.seed() % lists.size()];
}

}  // namespace fastclip::kernel_tests
