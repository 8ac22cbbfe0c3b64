// How a list is cut into work for thread blocks, on the host and in the kernels.
//
// A tensor of `small_bytes` or more is cut into chunks of `chunk_size` elements, a block each. A
// smaller one takes a warp. Slots number the warps' work: a chunk takes kWarps slots, aligned to
// kWarps, a small tensor takes one. A block takes a group of kWarps slots at a time: one chunk, or
// up to kWarps small tensors that follow one another; where a run of small tensors ends, the rest
// of its group is empty. Every tensor has at least one slot, also one without elements.
#pragma once

#include <cstdint>

#include "tensor_list.h"

namespace fastclip::device {

constexpr int kWarpSize = 32;
constexpr int kBlockSize = 256;
constexpr int kWarps = kBlockSize / kWarpSize;
constexpr int kVectorBytes = 16;

// A tensor of 16 KiB, thirty-two 16-byte loads for every lane of a warp, is still small: fewer
// partials, and fewer turns of a block. On an H200 lists of 2,000 tensors took, against a limit of
// 4,096 bytes, 21.1 us instead of 32.0 (bfloat16, 8 KiB each), 25.5 instead of 32.8 (float32, 16
// KiB) and 25.2 instead of 32.8 (bfloat16, 16 KiB); twice as high a limit helped 2,000 of 32 KiB,
// and ResNet-50 in bfloat16 took 30.0 us instead of 23.9 (bench/results/2026-11-28-h200: v1 of
// variants-1.txt, v8 and v9 of variants-2.txt; v8 and v9 also read partials four at a time). A list
// of a few such tensors, which now takes fewer blocks than the GPU holds, has not been measured.
constexpr int64_t kSmallBytes = (int64_t{1} << 14) + 1;

// The limit is lower than on the CPU because every block reads all partials after the grid sync.
constexpr int64_t kMaxGpuChunks = int64_t{1} << 11;

constexpr int64_t choose_gpu_chunk_size(int64_t total_count) {
  int64_t chunk_size = kMinChunkSize;
  while (chunk_size < kMaxChunkSize && total_count / chunk_size > kMaxGpuChunks) chunk_size *= 2;
  return chunk_size;
}

// Kernel arguments take 4 KB on every driver and 32,764 bytes from 12.1 on. kArguments is kept free
// for what else a kernel is given; a row of the table holds an address, a count and a slot.
constexpr int kArguments = 128;
constexpr int kTableRowBytes = 20;
constexpr int kShortTable = (4096 - kArguments) / kTableRowBytes / 2 * 2;
constexpr int kLongTable = (32764 - kArguments) / kTableRowBytes / 2 * 2;

// A count takes the upper bits of a word, its dtype the lowest two.
constexpr int64_t pack_count(int64_t count, DType dtype) {
  return count << 2 | static_cast<int64_t>(dtype);
}

// Returns the number of elements before the first 16-byte boundary. They belong to the first chunk,
// so that all others begin on a boundary.
constexpr int64_t head_of(uint64_t address, int64_t count, DType dtype) {
  const int64_t head = static_cast<int64_t>(-address % kVectorBytes) / element_size(dtype);
  return head < count ? head : count;
}

constexpr bool is_small(int64_t count, DType dtype, int64_t small_bytes = kSmallBytes) {
  return count * element_size(dtype) < small_bytes;
}

constexpr int64_t chunks_of_large(uint64_t address, int64_t count, DType dtype,
                                  int64_t chunk_size) {
  const int64_t aligned = count - head_of(address, count, dtype);
  return (aligned + chunk_size - 1) / chunk_size;  // at least one: a large tensor has > 16 bytes
}

// The size of a list's work, once every entry has its first slot.
struct Slots {
  int32_t chunk_size;
  int32_t groups;
};

// Sets `first_unit` of every entry to its first slot.
inline Slots assign_slots(TensorEntry* entries, int64_t size, int64_t small_bytes = kSmallBytes) {
  int64_t total_count = 0;
  for (int64_t i = 0; i < size; ++i) total_count += entries[i].count;
  const int64_t chunk_size = choose_gpu_chunk_size(total_count);
  int64_t slots = 0;
  for (int64_t i = 0; i < size; ++i) {
    const bool is_large = !is_small(entries[i].count, entries[i].dtype, small_bytes);
    if (is_large) slots = (slots + kWarps - 1) / kWarps * kWarps;
    entries[i].first_unit = slots;
    slots += is_large ? kWarps * chunks_of_large(reinterpret_cast<uint64_t>(entries[i].data),
                                                 entries[i].count, entries[i].dtype, chunk_size)
                      : 1;
  }
  return {static_cast<int32_t>(chunk_size), static_cast<int32_t>((slots + kWarps - 1) / kWarps)};
}

}  // namespace fastclip::device
