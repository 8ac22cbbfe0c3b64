// A held list in the form that Triton's kernels read. Python launches those kernels.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "../gpu_work.h"
#include "gradients.h"
#include "targets.h"
#include "walk/reasons.h"

namespace fastclip {

class Packing {
 public:
  explicit Packing(Gradients gradients) : gradients_(std::move(gradients)) {
    for (size_t i = 0; i < gradients_.entries.size(); ++i) {
      if (gradients_.device_of(i) != gradients_.device_of(0)) {
        throw Unsupported(ReasonKind::kTensors, "gradients on several devices (supported: one)");
      }
      mix_ |= 1 << static_cast<int>(gradients_.entries[i].dtype);
    }
    slots_ = device::assign_slots(gradients_.entries.data(), gradients_.size(), kSmall);
  }

  int64_t size() const { return gradients_.size(); }
  int32_t chunk_size() const { return slots_.chunk_size; }
  int32_t groups() const { return slots_.groups; }
  // A bit for the code of each dtype in the list.
  int mix() const { return mix_; }
  bool has_float64() const { return gradients_.has_float64; }
  // The number of the GPU; -1 for tensors on the CPU and for an empty list.
  int device() const {
    const bool is_on_gpu = !gradients_.entries.empty() && gradients_.is_on_gpu;
    return is_on_gpu ? gradients_.device_of(0).index() : -1;
  }

  // Returns, for each source, the position of its gradient, or -1; nullopt stands for 0, 1, 2, ...
  std::optional<at::Tensor> places() const {
    if (gradients_.is_in_order()) return std::nullopt;
    return at::tensor(
        std::vector<int64_t>(gradients_.entry_of_source.begin(), gradients_.entry_of_source.end()),
        at::device(at::kCPU).dtype(at::kLong));
  }

  // Writes the words that kernels read to a host tensor: the fields, then one column each for
  // addresses, counts with dtypes, first slots and, if there are any, targets.
  void write(const at::Tensor& words, const std::vector<int64_t>& fields,
             const std::vector<uint64_t>& targets) const {
    const std::vector<TensorEntry>& entries = gradients_.entries;
    const size_t size = fields.size() + 3 * entries.size() + targets.size();
    const bool is_plain =
        words.is_contiguous() && words.device().is_cpu() && words.scalar_type() == at::kLong;
    TORCH_CHECK_VALUE(is_plain && words.numel() == static_cast<int64_t>(size),
                      "GradList: words must be ", size, " of int64 in host memory");
    auto* word = words.mutable_data_ptr<int64_t>();
    for (const int64_t field : fields) *word++ = field;
    for (const TensorEntry& entry : entries) {
      *word++ = static_cast<int64_t>(reinterpret_cast<uint64_t>(entry.data));
    }
    for (const TensorEntry& entry : entries) {
      *word++ = device::pack_count(entry.count, entry.dtype);
    }
    for (const TensorEntry& entry : entries) *word++ = entry.first_unit;
    for (const uint64_t target : targets) *word++ = static_cast<int64_t>(target);
  }

  // Checks targets, one for each entry, and returns where they begin.
  std::vector<uint64_t> addresses_of(const std::vector<at::Tensor>& targets) const {
    std::vector<uint64_t> addresses;
    for (const char* const target : fastclip::addresses_of(targets, gradients_)) {
      addresses.push_back(reinterpret_cast<uint64_t>(target));
    }
    return addresses;
  }

  bool holds(uint64_t address) const {
    return gradients_.holds(reinterpret_cast<const void*>(address));
  }

  void bump_versions() const { gradients_.bump_versions(); }

 private:
  // SMALL_BYTES of fastclip/backends/triton/torch_list.py, which says why it is not kSmallBytes.
  static constexpr int64_t kSmall = 4096;

  Gradients gradients_;
  device::Slots slots_{};
  int mix_ = 0;
};

}  // namespace fastclip
