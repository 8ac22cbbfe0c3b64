// The list of tensors that one call works on, and how it is cut into chunks.
// Plain data shared by the host, the CPU kernels and the binding; includes no torch.
#pragma once

#include <cstdint>

namespace fastclip {

enum class DType : uint8_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
constexpr int kDTypes = 4;

constexpr int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// A dense tensor, walked as its storage: `count` consecutive elements from `data`.
struct TensorEntry {
  char* data;
  int64_t count;
  int64_t first_unit;  // of its work: its first chunk in a CPU list, its first slot in a GPU list
  DType dtype;
};

// Consecutive chunks, of one tensor or of several: what a CPU thread takes at once.
struct ChunkSpan {
  int64_t entry;
  int64_t chunk;  // within the entry
  int64_t chunks;
};

struct TensorList {
  const TensorEntry* entries;
  int64_t size;
  int64_t chunk_size;  // elements in a chunk; the last chunk of a tensor may hold fewer
  int64_t chunks;
  const ChunkSpan* spans;
  int64_t span_count;
};

constexpr int64_t kMinChunkSize = int64_t{1} << 14;
constexpr int64_t kMaxChunkSize = int64_t{1} << 20;
constexpr int64_t kMaxChunks = int64_t{1} << 14;

// The choice depends only on the element count, not on the machine or the number of threads, so
// that the partials, and with them the bits of the norm, are the same everywhere. 16 Ki elements
// are enough work to hide a call; past 16,384 chunks the table and the partials would begin to
// cost.
constexpr int64_t choose_chunk_size(int64_t total_count) {
  int64_t chunk_size = kMinChunkSize;
  while (chunk_size < kMaxChunkSize && total_count / chunk_size > kMaxChunks) chunk_size *= 2;
  return chunk_size;
}

constexpr int64_t chunks_of(int64_t count, int64_t chunk_size) {
  if (count <= chunk_size) return count > 0;  // most tensors: no division
  return (count + chunk_size - 1) / chunk_size;
}

}  // namespace fastclip
