// Makes equal gradients of a list one entry, and finds gradients that overlap in part.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../gradients.h"

namespace fastclip {

class Duplicates {
 public:
  explicit Duplicates(Gradients* gradients) : gradients_(*gradients) {}

  // Looks for equal gradients; returns whether others overlap in part. `sharing` are the entries
  // whose memory may be shared, ascending.
  bool find(const std::vector<int32_t>& sharing) {
    find_repeated_tensors();
    return find_overlaps(sharing);
  }

  // Does the same for a list in which any two entries may share memory.
  bool find_among_all() {
    std::vector<int32_t> all(gradients_.entries.size());
    std::iota(all.begin(), all.end(), 0);
    return find(all);
  }

  void remove() {
    if (first_equal_.empty()) return;
    std::vector<int32_t> kept(first_equal_.size());
    int32_t size = 0;
    for (size_t i = 0; i < first_equal_.size(); ++i) {
      if (const int32_t first = first_equal_[i]; first >= 0) {
        if (gradients_.tensors[i] != gradients_.tensors[kept[first]]) {
          gradients_.duplicates.push_back(gradients_.tensors[i]);
        }
        continue;
      }
      kept[i] = size;
      gradients_.entries[size] = gradients_.entries[i];
      gradients_.tensors[size] = gradients_.tensors[i];
      ++size;
    }
    gradients_.entries.resize(size);
    gradients_.tensors.resize(size);
    for (int32_t& entry : gradients_.entry_of_source) {
      if (entry >= 0) entry = kept[first_equal_[entry] >= 0 ? first_equal_[entry] : entry];
    }
  }

 private:
  struct Extent {
    const char* begin;
    const char* end;
    int32_t entry;
  };

  bool are_equal(int32_t a, int32_t b) const {
    const TensorEntry& x = gradients_.entries[a];
    const TensorEntry& y = gradients_.entries[b];
    return x.data == y.data && x.count == y.count && x.dtype == y.dtype &&
           gradients_.tensors[a]->strides() == gradients_.tensors[b]->strides();
  }

  void mark_equal(int32_t first, int32_t entry) {
    if (first_equal_.empty()) first_equal_.assign(gradients_.entries.size(), -1);
    first_equal_[entry] = first;
  }

  // Finds tensors that the list holds more than once: their memory need not be shared with another
  // tensor. For 1,000 tensors a hash table takes 10 us less than a sort.
  void find_repeated_tensors() {
    const auto size = static_cast<int32_t>(gradients_.tensors.size());
    size_t mask = 1;
    while (mask < 2 * static_cast<size_t>(size)) mask *= 2;
    std::vector<int32_t> table(mask, -1);  // entries by the address of their tensor; -1 where free
    --mask;
    for (int32_t i = 0; i < size; ++i) {
      const c10::TensorImpl* const impl = gradients_.tensors[i];
      const uint64_t mixed = reinterpret_cast<uintptr_t>(impl) * uint64_t{0x9E3779B97F4A7C15};
      size_t slot = (mixed >> 32) & mask;
      while (table[slot] >= 0 && gradients_.tensors[table[slot]] != impl) slot = (slot + 1) & mask;
      if (table[slot] >= 0) {
        mark_equal(table[slot], i);
      } else {
        table[slot] = i;
      }
    }
  }

  // Finds equal ones among the entries; returns whether others overlap in part.
  bool find_overlaps(const std::vector<int32_t>& among) {
    std::vector<Extent> extents;
    for (const int32_t i : among) {
      const TensorEntry& entry = gradients_.entries[i];
      if (entry.count > 0) {
        extents.push_back({entry.data, entry.data + entry.count * element_size(entry.dtype), i});
      }
    }
    if (extents.size() < 2) return false;
    const auto before = [](const Extent& a, const Extent& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.entry < b.entry;
    };
    if (!std::is_sorted(extents.begin(), extents.end(), before)) {
      std::sort(extents.begin(), extents.end(), before);
    }
    const Extent* reach = &extents[0];  // the one that ends last so far
    for (size_t i = 1; i < extents.size(); ++i) {
      if (extents[i].begin < reach->end) {
        if (!are_equal(reach->entry, extents[i].entry)) return true;
        mark_equal(reach->entry, extents[i].entry);
      }
      if (extents[i].end > reach->end) reach = &extents[i];
    }
    return false;
  }

  Gradients& gradients_;
  std::vector<int32_t> first_equal_;  // per entry, -1 for none; made when a duplicate is found
};

}  // namespace fastclip
