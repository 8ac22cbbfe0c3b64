// Targets: the tensors that results out of place are written to.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "gradients.h"

namespace fastclip {

struct Extent {
  const char* begin;
  const char* end;
  bool is_target;
};

// Returns whether a target shares memory with another one or with a gradient.
inline bool overlap(const std::vector<char*>& targets, const Gradients& gradients) {
  std::vector<Extent> extents;
  for (size_t i = 0; i < targets.size(); ++i) {
    const TensorEntry& entry = gradients.entries[i];
    const int64_t bytes = entry.count * element_size(entry.dtype);
    if (bytes == 0) continue;
    extents.push_back({entry.data, entry.data + bytes, false});
    extents.push_back({targets[i], targets[i] + bytes, true});
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  const char* end = nullptr;             // of all extents so far
  const char* end_of_targets = nullptr;  // of the targets among them
  for (const Extent& extent : extents) {
    if (extent.begin < (extent.is_target ? end : end_of_targets)) return true;
    end = std::max(end, extent.end);
    if (extent.is_target) end_of_targets = std::max(end_of_targets, extent.end);
  }
  return false;
}

// Checks the targets, one for each distinct gradient in order, and returns where they begin.
inline std::vector<char*> addresses_of(const std::vector<at::Tensor>& targets,
                                       const Gradients& gradients) {
  TORCH_CHECK_VALUE(targets.size() == gradients.tensors.size(), "fastclip: targets must be ",
                    gradients.tensors.size(), " tensors (got ", targets.size(), ")");
  std::vector<char*> addresses;
  for (size_t i = 0; i < targets.size(); ++i) {
    const at::Tensor& target = targets[i];
    const at::Tensor gradient = owner_of(gradients.tensors[i]);
    TORCH_CHECK_VALUE(
        target.key_set() == gradient.key_set() && target.device() == gradient.device() &&
            target.scalar_type() == gradient.scalar_type() && target.sizes() == gradient.sizes() &&
            target.strides() == gradient.strides(),
        "fastclip: target ", i, " must have the dtype, shape, strides and device of its gradient");
    addresses.push_back(static_cast<char*>(target.mutable_data_ptr()));
  }
  TORCH_CHECK_VALUE(!overlap(addresses, gradients),
                    "fastclip: targets must share no memory with each other or with gradients");
  return addresses;
}

}  // namespace fastclip
