// The gradients of one walk, borrowed or owned.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../tensor_list.h"
#include "accelerator.h"

namespace fastclip {

inline at::Tensor owner_of(c10::TensorImpl* impl) {
  using Pointer = c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  return at::Tensor(Pointer::reclaim_copy(impl));
}

struct Gradients {
  std::vector<c10::TensorImpl*> tensors;     // one per entry, in the order given
  std::vector<TensorEntry> entries;          // parallel to `tensors`
  std::vector<c10::TensorImpl*> duplicates;  // other tensors over the memory of an entry
  std::vector<int32_t> entry_of_source;      // -1 where `.grad` is None
  std::vector<at::Tensor> owners;  // of every one of `tensors` and `duplicates` once `is_owned`
  bool is_owned = false;
  bool has_float64 = false;
  bool is_on_gpu = false;  // at least one entry

  // Call before other Python code can run, here or in another thread: it may drop the last
  // reference to a gradient.
  void own() {
    if (is_owned) return;
    is_owned = true;
    owners.reserve(tensors.capacity() + duplicates.size());
    for (c10::TensorImpl* const impl : tensors) owners.push_back(owner_of(impl));
    for (c10::TensorImpl* const impl : duplicates) owners.push_back(owner_of(impl));
  }

  int64_t size() const { return static_cast<int64_t>(entries.size()); }

  c10::Device device_of(size_t entry) const {
    const c10::TensorImpl* const tensor = tensors[entry];
    return accelerator::is_plain(tensor) ? accelerator::device_of(tensor) : c10::Device(at::kCPU);
  }

  // Returns whether an address lies in the memory of an entry.
  bool holds(const void* address) const {
    return std::any_of(entries.begin(), entries.end(), [&](const TensorEntry& entry) {
      const auto distance = static_cast<uint64_t>(static_cast<const char*>(address) -
                                                  static_cast<const char*>(entry.data));
      return distance < static_cast<uint64_t>(entry.count) * element_size(entry.dtype);
    });
  }

  // Returns whether every source has its own entry, in order.
  bool is_in_order() const {
    for (size_t i = 0; i < entry_of_source.size(); ++i) {
      if (entry_of_source[i] != static_cast<int32_t>(i)) return false;
    }
    return entry_of_source.size() == entries.size();
  }

  // Returns an owner of each source's gradient; it is undefined where there is none.
  std::vector<at::Tensor> by_source() const {
    std::vector<at::Tensor> owned;
    for (const int32_t entry : entry_of_source) {
      owned.push_back(entry < 0 ? at::Tensor() : owner_of(tensors[entry]));
    }
    return owned;
  }

  void add(const at::Tensor& tensor, const TensorEntry& entry) {
    tensors.push_back(tensor.unsafeGetTensorImpl());
    entries.push_back(entry);
    if (is_owned) owners.push_back(tensor);
  }

  // Tells autograd about a change in place, as torch's own multiplication does even if it changes
  // no value.
  void bump_versions() const {
    for (c10::TensorImpl* const grad : tensors) grad->bump_version();
    for (c10::TensorImpl* const grad : duplicates) grad->bump_version();
  }
};

// Releases the GIL while the gradients are worked on, if they are owned. A list so short that its
// gradients need no owners is done before another thread would have asked for the GIL.
class WithoutGil {
 public:
  explicit WithoutGil(const Gradients& gradients) {
    if (gradients.is_owned) release_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> release_;
};

}  // namespace fastclip
