// Tensors that results go to, out of place.
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

// Whether a target shares memory with another one or with a gradient.
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
  const char* all = nullptr;     // where the extents so far end
  const char* target = nullptr;  // where the targets among them end
  for (const Extent& extent : extents) {
    if (extent.begin < (extent.is_target ? all : target)) return true;
    all = std::max(all, extent.end);
    if (extent.is_target) target = std::max(target, extent.end);
  }
  return false;
}

// Where the targets begin, one for each gradient that counts once, in order.
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
