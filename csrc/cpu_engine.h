// Drives the chunk kernels over lists in CPU memory, on threads that the caller provides. Includes
// no torch.
//
// A thread takes spans (runs of consecutive chunks) from a shared counter, so that a core that is
// slowed down does not delay the others. Which thread computes a chunk changes nothing: every chunk
// has one partial, and partials are added in the order of the list.
//
// A Pool has threads(), how many there are, and run(threads, work), which calls work(i, i + 1) for
// each i below `threads`, at the same time where it can.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "coefficient.h"
#include "cpu_kernels.h"

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
inline CpuList pack_for_cpu(TensorEntry* entries, int64_t size) {
  CpuList packed;
  TensorList& list = packed.list;
  int64_t total_count = 0;
  for (int64_t i = 0; i < size; ++i) total_count += entries[i].count;
  list.chunk_size = choose_chunk_size(total_count);
  for (int64_t i = 0; i < size; ++i) {
    entries[i].first_unit = list.chunks;
    list.chunks += chunks_of(entries[i].count, list.chunk_size);
  }
  list.entries = entries;
  list.size = size;
  packed.spans = spans_of(list);
  list.spans = packed.spans.data();
  list.span_count = static_cast<int64_t>(packed.spans.size());
  return packed;
}

inline int64_t elements_of_chunk(const TensorList& list, const TensorEntry& entry, int64_t chunk) {
  return std::min(list.chunk_size, entry.count - chunk * list.chunk_size);
}

// The mode that torch.set_flush_denormal sets is per thread, and any thread may take any chunk, so
// honouring it would make the result depend on scheduling. It is off while a thread works here; in
// the calling thread it is off from the first sum to the coefficient.
class KeepDenormals {
 public:
  KeepDenormals() : saved_(read()) { write(saved_ & ~kFlushes); }
  ~KeepDenormals() { write(saved_); }
  KeepDenormals(const KeepDenormals&) = delete;
  KeepDenormals& operator=(const KeepDenormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kFlushes = 0x8040;  // FTZ and DAZ
  static uint64_t read() { return _mm_getcsr(); }
  static void write(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlushes = 0x1080000;  // FZ and FZ16
  static uint64_t read() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void write(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  static constexpr uint64_t kFlushes = 0;
  static uint64_t read() { return 0; }
  static void write(uint64_t) {}
#endif
  uint64_t saved_;
};

// The CPU's own prefetchers do not jump from the end of one small tensor to the start of another.
inline void prefetch_head(const TensorEntry& entry) {
  const int64_t bytes = std::min<int64_t>(entry.count * element_size(entry.dtype), 512);
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(entry.data + line);
}

// Calls body(entry, data, count, global chunk index) once for every chunk, the last spans first
// when `backwards` is set: what was read last is still in the cache.
template <typename Pool, typename Body>
void for_each_chunk(const TensorList& list, bool backwards, Body body) {
  const int64_t size = list.span_count;
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const KeepDenormals keep_denormals;
    for (int64_t taken; (taken = next.fetch_add(1, std::memory_order_relaxed)) < size;) {
      const ChunkSpan& span = list.spans[backwards ? size - 1 - taken : taken];
      int64_t chunk = span.chunk;
      const TensorEntry* entry = &list.entries[span.entry];
      for (int64_t left = span.chunks; left > 0; --left, ++chunk) {
        while (chunk * list.chunk_size >= entry->count) {
          ++entry;
          chunk = 0;
          if (entry + 2 < list.entries + list.size) prefetch_head(entry[2]);
        }
        char* const data = entry->data + chunk * list.chunk_size * element_size(entry->dtype);
        body(*entry, data, elements_of_chunk(list, *entry, chunk), entry->first_unit + chunk);
      }
    }
  };
  const int64_t threads = std::min<int64_t>(size, Pool::threads());
  if (threads <= 1) return work(0, 1);
  Pool::run(threads, work);
}

// How the partials of one norm_type are computed, combined and turned into a norm.
class PNorm {
 public:
  PNorm(double norm_type, bool is_wide) : norm_type_(norm_type), is_wide_(is_wide) {}

  static bool supports(double norm_type) { return norm_type > 0; }

  // Returns whether sums run at the speed of memory; other powers take much longer.
  static bool streams(double norm_type) {
    return norm_type == 2 || norm_type == 1 || std::isinf(norm_type);
  }

  double partial(const ChunkKernels& kernels, DType dtype, const void* data, int64_t count) const {
    const int i = static_cast<int>(dtype);
    if (norm_type_ == 2) return (is_wide_ ? kernels.sum_sq_wide : kernels.sum_sq)[i](data, count);
    if (norm_type_ == 1) return kernels.abs_sum[i](data, count);
    if (std::isinf(norm_type_)) return kernels.abs_max[i](data, count);
    return kernels.power_sum[i](data, count, norm_type_);
  }

  // Once NaN, a maximum stays NaN: no comparison with it is true.
  double combine(double a, double b) const {
    if (std::isinf(norm_type_)) return b > a || b != b ? b : a;
    return a + b;
  }

  double combine(const std::vector<double>& values) const {
    double total = 0;
    for (const double value : values) total = combine(total, value);
    return total;
  }

  double root(double combined) const {
    if (norm_type_ == 2) return std::sqrt(combined);
    if (norm_type_ == 1 || std::isinf(norm_type_)) return combined;
    return std::pow(combined, 1.0 / norm_type_);
  }

  // The roots of many values. Without a branch in it, the loop for p = 2 becomes vector code.
  template <typename T>
  void roots(const std::vector<double>& combined, T* results) const {
    const size_t size = combined.size();
    if (norm_type_ == 2) {
      for (size_t i = 0; i < size; ++i) results[i] = static_cast<T>(std::sqrt(combined[i]));
    } else {
      for (size_t i = 0; i < size; ++i) results[i] = static_cast<T>(root(combined[i]));
    }
  }

 private:
  double norm_type_;
  bool is_wide_;
};

// Returns one combined value per entry, before the root. `found_inf`, unless null, is set if an
// element is inf or NaN. A sum may overflow although no element is, so the elements of a chunk
// whose sum is not finite are looked at again.
template <typename Pool>
std::vector<double> reduce_entries(const TensorList& list, const PNorm& norm, bool* found_inf) {
  const ChunkKernels& kernels = active_kernels();
  std::vector<double> partials(list.chunks);
  std::atomic<bool> any_inf{false};
  for_each_chunk<Pool>(
      list, false, [&](const TensorEntry& entry, char* data, int64_t count, int64_t chunk) {
        const double partial = norm.partial(kernels, entry.dtype, data, count);
        partials[chunk] = partial;
        if (found_inf == nullptr || std::isfinite(partial)) return;
        const double largest = kernels.abs_max[static_cast<int>(entry.dtype)](data, count);
        if (!std::isfinite(largest)) any_inf.store(true, std::memory_order_relaxed);
      });
  if (any_inf.load(std::memory_order_relaxed)) *found_inf = true;
  std::vector<double> combined(list.size, 0.0);
  for (int64_t i = 0; i < list.size; ++i) {
    const int64_t end = i + 1 < list.size ? list.entries[i + 1].first_unit : list.chunks;
    for (int64_t chunk = list.entries[i].first_unit; chunk < end; ++chunk) {
      combined[i] = norm.combine(combined[i], partials[chunk]);
    }
  }
  return combined;
}

// What the gradients of a list are multiplied by, on the CPU.
struct CpuFactor {
  double coef = 1;               // for all entries, unless `each` is set
  const double* each = nullptr;  // for each entry
  double inv_scale = 1;
  bool is_wide = false;  // the product of the two is taken in float64, else in float32

  double operator[](int64_t entry) const {
    const double chosen = each != nullptr ? each[entry] : coef;
    return inv_scale == 1 ? chosen : scaled_coefficient(chosen, inv_scale, is_wide);
  }

  // Returns whether an entry is written: not for a coefficient of 1. NaN is not >= 1, so it is
  // written, as torch does.
  bool should_write(int64_t entry) const {
    const double chosen = each != nullptr ? each[entry] : coef;
    if (chosen >= 1) return inv_scale != 1;
    return true;
  }
};

template <typename Pool>
void scale_entries(const TensorList& list, const CpuFactor& factor) {
  if (factor.each == nullptr && !factor.should_write(0)) return;
  const ChunkKernels& kernels = active_kernels();
  for_each_chunk<Pool>(list, true,
                       [&](const TensorEntry& entry, char* data, int64_t count, int64_t) {
                         const int64_t i = &entry - list.entries;
                         if (!factor.should_write(i)) return;
                         kernels.scale[static_cast<int>(entry.dtype)](data, data, count, factor[i]);
                       });
}

// Writes targets[i] = entries[i] * factor, whatever the factor: the targets are new memory.
template <typename Pool>
void scale_entries_into(const TensorList& list, char* const* targets, const CpuFactor& factor) {
  const ChunkKernels& kernels = active_kernels();
  for_each_chunk<Pool>(
      list, false, [&](const TensorEntry& entry, char* data, int64_t count, int64_t) {
        const int64_t i = &entry - list.entries;
        char* const target = targets[i] + (data - entry.data);
        kernels.scale[static_cast<int>(entry.dtype)](data, target, count, factor[i]);
      });
}

template <typename Pool>
void clamp_entries(const TensorList& list, double clip_value, double inv_scale) {
  const ChunkKernels& kernels = active_kernels();
  for_each_chunk<Pool>(list, false,
                       [&](const TensorEntry& entry, char* data, int64_t count, int64_t) {
                         const int i = static_cast<int>(entry.dtype);
                         if (inv_scale != 1) kernels.scale[i](data, data, count, inv_scale);
                         kernels.clamp[i](data, count, clip_value);
                       });
}

// A norm and its coefficient, rounded to the norm's dtype.
struct CpuNorm {
  double total_norm;
  double clip_coef;
};

inline CpuNorm finish_on_cpu(double combined, const PNorm& norm, double max_norm, double inv_scale,
                             bool is_float64) {
  const double root = norm.root(combined) * std::fabs(inv_scale);
  if (is_float64) return {root, clip_coefficient<double>(root, max_norm)};
  const auto total_norm = static_cast<float>(root);
  return {total_norm, clip_coefficient<float>(total_norm, static_cast<float>(max_norm))};
}

}  // namespace fastclip
