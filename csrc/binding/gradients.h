// The gradients of one call: borrowed or owned, packed into a TensorList, cut into spans.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../tensor_list.h"
#include "accelerator.h"

namespace fastclip {

constexpr int64_t kSpanCost = int64_t{1} << 19;  // bytes; about 40 us of streaming for one core
constexpr int64_t kChunkCost = 128;  // what starting a chunk costs, in bytes of streaming

inline std::vector<ChunkSpan> spans_of(const TensorList& list) {
  std::vector<ChunkSpan> spans;
  ChunkSpan span{};
  int64_t cost = kSpanCost;
  for (int64_t i = 0; i < list.size; ++i) {
    const TensorEntry& entry = list.entries[i];
    int64_t chunk = 0;
    for (int64_t left = entry.count; left > 0; left -= list.chunk_size, ++chunk) {
      if (cost >= kSpanCost) {
        if (span.chunks > 0) spans.push_back(span);
        span = {i, chunk, 0};
        cost = 0;
      }
      ++span.chunks;
      cost += kChunkCost + std::min(left, list.chunk_size) * element_size(entry.dtype);
    }
  }
  if (span.chunks > 0) spans.push_back(span);
  return spans;
}

// A list as the CPU kernels take it.
struct CpuList {
  TensorList list{};
  std::vector<ChunkSpan> spans;
};

// Assigns chunks to the entries, which must stay where they are while the list is used.
inline CpuList pack_for_cpu(std::vector<TensorEntry>* entries) {
  CpuList packed;
  TensorList& list = packed.list;
  int64_t total_count = 0;
  for (const TensorEntry& entry : *entries) total_count += entry.count;
  list.chunk_size = choose_chunk_size(total_count);
  for (TensorEntry& entry : *entries) {
    entry.first_unit = list.chunks;
    list.chunks += chunks_of(entry.count, list.chunk_size);
  }
  list.entries = entries->data();
  list.size = static_cast<int64_t>(entries->size());
  packed.spans = spans_of(list);
  list.spans = packed.spans.data();
  list.span_count = static_cast<int64_t>(packed.spans.size());
  return packed;
}

inline at::Tensor owner_of(c10::TensorImpl* impl) {
  using Pointer = c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  return at::Tensor(Pointer::reclaim_copy(impl));
}

// The gradients of one call and their packed form.
struct Gradients {
  std::vector<c10::TensorImpl*> tensors;     // one per entry, in the order given
  std::vector<TensorEntry> entries;          // parallel to `tensors`
  std::vector<c10::TensorImpl*> duplicates;  // other tensors over the memory of an entry
  std::vector<int32_t> entry_of_source;      // per parameter; -1 where `.grad` is None
  std::vector<at::Tensor> owners;  // of every one of `tensors` and `duplicates` once `is_owned`
  bool is_owned = false;
  bool has_float64 = false;
  bool is_on_gpu = false;  // at least one entry; then `on_cpu` is empty
  CpuList on_cpu;

  // Before other Python code may run, in this thread or in one that takes the GIL: it may drop any
  // gradient.
  void own() {
    if (is_owned) return;
    is_owned = true;
    owners.reserve(tensors.capacity() + duplicates.size());
    for (c10::TensorImpl* const impl : tensors) owners.push_back(owner_of(impl));
    for (c10::TensorImpl* const impl : duplicates) owners.push_back(owner_of(impl));
  }

  c10::Device device_of(size_t entry) const {
    const c10::TensorImpl* const tensor = tensors[entry];
    return accelerator::is_plain(tensor) ? accelerator::device_of(tensor) : c10::Device(at::kCPU);
  }

  // Whether an address lies in the memory of an entry.
  bool holds(const void* address) const {
    return std::any_of(entries.begin(), entries.end(), [&](const TensorEntry& entry) {
      const auto distance = static_cast<uint64_t>(static_cast<const char*>(address) -
                                                  static_cast<const char*>(entry.data));
      return distance < static_cast<uint64_t>(entry.count) * element_size(entry.dtype);
    });
  }

  void add(const at::Tensor& tensor, const TensorEntry& entry) {
    tensors.push_back(tensor.unsafeGetTensorImpl());
    entries.push_back(entry);
    if (is_owned) owners.push_back(tensor);
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
