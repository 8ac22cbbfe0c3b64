// A list for Triton's kernels, which Python launches: the walk, the checks and the packing are
// those of the native backend.
#pragma once

#include <utility>
#include <vector>

#include "../gpu_work.h"
#include "cpu.h"

namespace fastclip {

class PackedList {
 public:
  explicit PackedList(Gradients gradients) : gradients_(std::move(gradients)) {
    const size_t size = gradients_.entries.size();
    for (size_t i = 0; i < size; ++i) {
      if (gradients_.device_of(i) != gradients_.device_of(0)) {
        throw Unsupported{{"gradients on several devices (supported: one)"}};
      }
      mix_ |= 1 << static_cast<int>(gradients_.entries[i].dtype);
    }
    slots_ = device::assign_slots(gradients_.entries.data(), static_cast<int64_t>(size), kSmall);
  }

  size_t size() const { return gradients_.entries.size(); }
  int32_t chunk_size() const { return slots_.chunk_size; }
  int32_t groups() const { return slots_.groups; }
  // A bit for the code of each dtype in the list.
  int mix() const { return mix_; }
  bool has_float64() const { return gradients_.has_float64; }
  // The number of the GPU; -1 for CPU tensors, and without any.
  int device() const {
    const bool is_on_gpu = !gradients_.entries.empty() && gradients_.is_on_gpu;
    return is_on_gpu ? gradients_.device_of(0).index() : -1;
  }
  // The entry of each source, -1 where `.grad` is None.
  const std::vector<int32_t>& places() const { return gradients_.entry_of_source; }
  // Whether places() are 0, 1, 2, ...: every source has an entry of its own.
  bool is_in_order() const {
    const std::vector<int32_t>& places = gradients_.entry_of_source;
    for (size_t i = 0; i < places.size(); ++i) {
      if (places[i] != static_cast<int32_t>(i)) return false;
    }
    return places.size() == size();
  }

  // Writes the words that kernels are given to a host tensor: the fields, then a column each of
  // addresses, counts with dtypes, first slots and, if there are any, targets.
  void write(const at::Tensor& words, const std::vector<int64_t>& fields,
             const std::vector<uint64_t>& targets) const {
    const size_t size = fields.size() + 3 * gradients_.entries.size() + targets.size();
    const bool is_plain =
        words.is_contiguous() && words.device().is_cpu() && words.scalar_type() == at::kLong;
    TORCH_CHECK_VALUE(is_plain && words.numel() == static_cast<int64_t>(size),
                      "PackedList: words must be ", size, " of int64 in host memory");
    auto* word = words.mutable_data_ptr<int64_t>();
    for (const int64_t field : fields) *word++ = field;
    for (const TensorEntry& entry : gradients_.entries) {
      *word++ = static_cast<int64_t>(reinterpret_cast<uint64_t>(entry.data));
    }
    for (const TensorEntry& entry : gradients_.entries) {
      *word++ = device::pack_count(entry.count, entry.dtype);
    }
    for (const TensorEntry& entry : gradients_.entries) *word++ = entry.first_unit;
    for (const uint64_t target : targets) *word++ = static_cast<int64_t>(target);
  }

  bool holds(uint64_t address) const {
    return gradients_.holds(reinterpret_cast<const void*>(address));
  }

  void bump() const { bump_versions(gradients_); }

 private:
  // SMALL_BYTES of fastclip/backends/triton/packing.py, which says why it is another here.
  static constexpr int64_t kSmall = 4096;

  Gradients gradients_;
  device::Slots slots_{};
  int mix_ = 0;
};

}  // namespace fastclip
