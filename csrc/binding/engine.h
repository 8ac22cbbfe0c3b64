// Drives the chunk kernels over a TensorList on ATen's own thread pool.
//
// A thread takes spans (runs of consecutive chunks) from a shared counter,
// so that a core that is slowed down delays nobody. Which thread computes a chunk changes nothing:
// every chunk has one partial, and partials are added in the order of the list.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "../coefficient.h"
#include "../cpu_kernels.h"

namespace fastclip {

inline int64_t elements_of_chunk(const TensorList& list, const TensorEntry& entry, int64_t chunk) {
  return std::min(list.chunk_size, entry.count - chunk * list.chunk_size);
}

// torch.set_flush_denormal sets a mode of single threads, and which thread takes a chunk is chance:
// the bits would be, too. The mode is off while a thread works here, and from the first sum to the
// coefficient in the thread that calls.
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

// No prefetcher of the CPU follows from the end of one small tensor to the start of another.
inline void prefetch_head(const TensorEntry& entry) {
  const int64_t bytes = std::min<int64_t>(entry.count * element_size(entry.dtype), 512);
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(entry.data + line);
}

// Calls body(entry, data, count, global chunk index) once for every chunk, the last spans first
// when `backwards` is set: what was read last is still in the cache.
template <typename Body>
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
  const int64_t threads = std::min<int64_t>(size, at::get_num_threads());
  if (threads <= 1) return work(0, 1);
  at::parallel_for(0, threads, 1, work);
}

// How the partials of one norm_type are computed, combined and turned into a norm.
class Norm {
 public:
  Norm(double norm_type, bool wide) : norm_type_(norm_type), wide_(wide) {}

  static bool supports(double norm_type) { return norm_type > 0; }

  // At the speed of memory; other powers take much longer.
  static bool streams(double norm_type) {
    return norm_type == 2 || norm_type == 1 || std::isinf(norm_type);
  }

  double partial(const ChunkKernels& kernels, DType dtype, const void* data, int64_t count) const {
    const int i = static_cast<int>(dtype);
    if (norm_type_ == 2) return (wide_ ? kernels.sum_sq_wide : kernels.sum_sq)[i](data, count);
    if (norm_type_ == 1) return kernels.abs_sum[i](data, count);
    if (std::isinf(norm_type_)) return kernels.abs_max[i](data, count);
    return kernels.power_sum[i](data, count, norm_type_);
  }

  // Once NaN, a maximum stays NaN: no comparison with it is true.
  double combine(double a, double b) const {
    if (std::isinf(norm_type_)) return b > a || b != b ? b : a;
    return a + b;
  }

  double root(double combined) const {
    if (norm_type_ == 2) return std::sqrt(combined);
    if (norm_type_ == 1 || std::isinf(norm_type_)) return combined;
    return std::pow(combined, 1.0 / norm_type_);
  }

  // The roots of many values. Without a branch in it, the loop for p = 2 becomes vector code.
  template <typename T>
  void roots(const double* combined, int64_t size, T* results) const {
    if (norm_type_ == 2) {
      for (int64_t i = 0; i < size; ++i) results[i] = static_cast<T>(std::sqrt(combined[i]));
    } else {
      for (int64_t i = 0; i < size; ++i) results[i] = static_cast<T>(root(combined[i]));
    }
  }

 private:
  double norm_type_;
  bool wide_;
};

// One combined value per entry, before the root.
inline std::vector<double> reduce_entries(const TensorList& list, const Norm& norm) {
  const ChunkKernels& kernels = active_kernels();
  std::vector<double> partials(list.chunks);
  for_each_chunk(list, false,
                 [&](const TensorEntry& entry, char* data, int64_t count, int64_t chunk) {
                   partials[chunk] = norm.partial(kernels, entry.dtype, data, count);
                 });
  std::vector<double> combined(list.size, 0.0);
  for (int64_t i = 0; i < list.size; ++i) {
    const int64_t end = i + 1 < list.size ? list.entries[i + 1].first_unit : list.chunks;
    for (int64_t chunk = list.entries[i].first_unit; chunk < end; ++chunk) {
      combined[i] = norm.combine(combined[i], partials[chunk]);
    }
  }
  return combined;
}

inline double combine_entries(const std::vector<double>& combined, const Norm& norm) {
  double total = 0;
  for (const double value : combined) total = norm.combine(total, value);
  return total;
}

inline double clip_coefficient(double total_norm, double max_norm, bool is_float64) {
  if (is_float64) return clip_coefficient<double>(total_norm, max_norm);
  return clip_coefficient<float>(static_cast<float>(total_norm), static_cast<float>(max_norm));
}

// No write at all for a coefficient of 1; NaN is not >= 1, so that it writes, as torch does.
inline void scale_entries(const TensorList& list, double clip_coef) {
  if (clip_coef >= 1) return;
  const ChunkKernels& kernels = active_kernels();
  for_each_chunk(list, true, [&](const TensorEntry& entry, char* data, int64_t count, int64_t) {
    kernels.scale[static_cast<int>(entry.dtype)](data, data, count, clip_coef);
  });
}

// targets[i] = entries[i] * clip_coef; always written, the targets are new memory.
inline void scale_entries_into(const TensorList& list, const std::vector<char*>& targets,
                               double clip_coef) {
  const ChunkKernels& kernels = active_kernels();
  for_each_chunk(list, false, [&](const TensorEntry& entry, char* data, int64_t count, int64_t) {
    char* const target = targets[&entry - list.entries] + (data - entry.data);
    kernels.scale[static_cast<int>(entry.dtype)](data, target, count, clip_coef);
  });
}

inline void clamp_entries(const TensorList& list, double clip_value) {
  const ChunkKernels& kernels = active_kernels();
  for_each_chunk(list, false, [&](const TensorEntry& entry, char* data, int64_t count, int64_t) {
    kernels.clamp[static_cast<int>(entry.dtype)](data, count, clip_value);
  });
}

}  // namespace fastclip
