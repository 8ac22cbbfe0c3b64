// The list as kernels see it: for every tensor its address, count, dtype and first slot; by value
// in the kernel's arguments, or in device memory when it is too long for them.
#pragma once

#include <cuda_runtime.h>

#include "vector.cuh"

namespace fastclip::device {

template <int kCapacity>
struct ArgumentTable {
  static constexpr int kTensors = kCapacity;
  uint64_t addresses[kCapacity];
  int64_t counts[kCapacity];
  int32_t first_slots[kCapacity];

  __device__ uint64_t address(int tensor) const { return addresses[tensor]; }
  __device__ int64_t packed_count(int tensor) const { return counts[tensor]; }
  __device__ int first_slot(int tensor) const { return first_slots[tensor]; }
};

// Kernels may read it through L1, because their launch does not write it.
struct DeviceTable {
  const uint64_t* addresses;
  const int64_t* counts;
  const int32_t* first_slots;

  __device__ uint64_t address(int tensor) const { return __ldca(addresses + tensor); }
  __device__ int64_t packed_count(int tensor) const { return __ldca(counts + tensor); }
  __device__ int first_slot(int tensor) const { return __ldca(first_slots + tensor); }
};

using ShortTable = ArgumentTable<kShortTable>;
using LongTable = ArgumentTable<kLongTable>;
static_assert(sizeof(ShortTable) + kArguments <= 4096 && sizeof(LongTable) + kArguments <= 32764);

// How much work there is. `has_targets`: the table holds a target for every tensor, after all
// tensors.
struct Shape {
  int32_t tensors;
  int32_t chunk_size;
  int32_t groups;
  bool has_targets;

  // Returns the shape for kernels that never have targets, so that nvcc drops their code for
  // targets.
  __device__ Shape in_place() const { return {tensors, chunk_size, groups, false}; }
};

template <typename Table>
__device__ DType dtype_of(const Table& table, int tensor) {
  return static_cast<DType>(table.packed_count(tensor) & 3);
}

// Returns the last of `size` tensors whose first slot is at most `slot`. The search starts at
// `near`: every tensor has at least one slot, so tensors lie no farther apart than slots. In a run
// of small tensors that bound is the answer.
template <typename Table>
__device__ int find_tensor(const Table& table, int size, int slot, int near) {
  const int distance = slot - table.first_slot(near);
  int low = distance < 0 ? max(0, near + distance) : near;
  int high = distance < 0 ? near - 1 : min(size - 1, near + distance);
  if (table.first_slot(high) <= slot) return high;
  if (table.first_slot(low) == slot) return low;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_slot(middle) <= slot) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// What a block, or each of its warps, works on in one group of slots.
struct Work {
  int tensor;     // -1 if this warp has none
  bool is_large;  // the whole block shares the chunk
  int64_t begin;  // the chunk's first element within the tensor
  Chunk chunk;
};

template <typename Table>
__device__ int64_t count_of(const Table& table, int tensor) {
  return table.packed_count(tensor) >> 2;
}

// `tensor` is find_tensor() of the group's first slot.
template <typename Table>
__device__ Work work_of(const Table& table, int size, int64_t chunk_size, int group, int tensor) {
  const int slot = group * kWarps;
  const int64_t count = count_of(table, tensor);
  const DType dtype = dtype_of(table, tensor);
  if (!is_small(count, dtype)) {
    const uint64_t address = table.address(tensor);
    const int64_t chunk = (slot - table.first_slot(tensor)) / kWarps;
    const int64_t head = head_of(address, count, dtype);
    const int64_t begin = chunk == 0 ? 0 : head + chunk * chunk_size;
    const int64_t end = min(count, head + (chunk + 1) * chunk_size);
    return {tensor,
            true,
            begin,
            {reinterpret_cast<char*>(address + begin * element_size(dtype)),
             static_cast<int>(end - begin), dtype}};
  }
  // The slots that follow belong to the tensors that follow, up to the next large one.
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int mine = tensor + warp;
  if (mine >= size || table.first_slot(mine) != slot + warp) {
    return {-1, false, 0, {nullptr, 0, DType::kFloat32}};
  }
  return {mine,
          false,
          0,
          {reinterpret_cast<char*>(table.address(mine)), static_cast<int>(count_of(table, mine)),
           dtype_of(table, mine)}};
}

__device__ inline Team team_of(const Work& work) {
  const int thread = static_cast<int>(threadIdx.x);
  return work.is_large ? Team{thread, kBlockSize} : Team{thread % kWarpSize, kWarpSize};
}

}  // namespace fastclip::device
