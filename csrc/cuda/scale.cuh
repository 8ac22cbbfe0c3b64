// Multiplying and clamping gradients, in place or into other tensors, group by group.
#pragma once

#include "norm.cuh"
#include "table.cuh"

namespace fastclip::device {

// A change of gradients has two members: apply() changes a value and returns whether to write it,
// and `should_write` is false where a whole tensor is to be left alone.

// Multiplies by a coefficient: float32 for 16- and 32-bit elements, one rounding.
struct Multiply {
  double coef;
  bool should_write = true;

  template <typename T>
  __device__ bool apply(typename T::Value& value) const {
    value *= static_cast<typename T::Value>(coef);
    return true;
  }
};

// Clamps to [-limit, limit]; NaN stays. Only what was out of range counts as changed.
struct Clamp {
  static constexpr bool should_write = true;
  double clip_value;

  template <typename T>
  __device__ bool apply(typename T::Value& value) const {
    // The limit is rounded to the dtype, so that values are compared with what would be written.
    const auto limit = T::value(T::element(static_cast<typename T::Value>(clip_value)));
    const bool is_out = fabs(value) > limit;
    value = is_out ? copysign(limit, value) : value;
    return is_out;
  }
};

// Clamps the product. It is not rounded to the dtype before: that would change nothing, since the
// limit is a number of the dtype.
struct MultiplyAndClamp {
  static constexpr bool should_write = true;
  Multiply multiply;
  Clamp clamp;
  bool writes_all;  // false: only what was out of range counts as changed

  template <typename T>
  __device__ bool apply(typename T::Value& value) const {
    multiply.template apply<T>(value);
    const bool is_out = clamp.template apply<T>(value);
    return writes_all || is_out;
  }
};

template <typename T, typename Change>
__device__ void change_element(const char* source, char* target, const Change& change) {
  auto value = T::value(load<typename T::Element>(source));
  if (change.template apply<T>(value)) store(target, T::element(value));
}

// Changes a vector in registers; returns whether any of its elements changed.
template <typename T, typename Change>
__device__ bool change_vector(uint4& vector, const Change& change) {
  typename T::Value values[T::kPerVector];
  T::unpack(vector, values);
  bool is_changed = false;
#pragma unroll
  for (auto& value : values) is_changed |= change.template apply<T>(value);
  vector = T::pack(values);
  return is_changed;
}

// `target` is chunk.data, or memory that does not overlap it. A target with a different offset from
// a 16-byte boundary is written element by element.
template <typename T, typename Change>
__device__ void change_chunk(const Chunk& chunk, char* target, Team team, const Change& change) {
  constexpr int kSize = sizeof(typename T::Element);
  const auto address = reinterpret_cast<uint64_t>(chunk.data);
  const bool has_same_alignment =
      (address ^ reinterpret_cast<uint64_t>(target)) % kVectorBytes == 0;
  const int head =
      has_same_alignment ? static_cast<int>(head_of(address, chunk.count, T::kDType)) : chunk.count;
  const int vectors = (chunk.count - head) / T::kPerVector;
  const int body = head * kSize;
  for_each_batch(vectors, team, [&](int first, auto all) {
    constexpr bool kAll = decltype(all)::value;
    uint4 batch[kLoads];
    load_batch<kAll>(chunk.data + body, first, vectors, team.size, batch);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int i = first + k * team.size;
      const bool is_changed = change_vector<T>(batch[k], change);
      if ((kAll || i < vectors) && is_changed) {
        store_vector(target + body + i * kVectorBytes, batch[k]);
      }
    }
  });
  for (int i = team.thread; i < head; i += team.size) {
    change_element<T>(chunk.data + i * kSize, target + i * kSize, change);
  }
  const int rest = head + vectors * T::kPerVector;
  for (int i = rest + team.thread; i < chunk.count; i += team.size) {
    change_element<T>(chunk.data + i * kSize, target + i * kSize, change);
  }
}

// Calls change_of(tensor) for every piece of work and applies the change that it returns. A block
// goes through its groups backwards: what it read last for the norm is still in L2.
template <typename Table, typename ChangeOf>
__device__ void change_groups(const Table& table, const Shape& shape, ChangeOf change_of) {
  const int blocks = static_cast<int>(gridDim.x);
  const int block = static_cast<int>(blockIdx.x);
  if (block >= shape.groups) return;
  int tensor = shape.tensors - 1;
  for (int group = block + (shape.groups - 1 - block) / blocks * blocks; group >= 0;
       group -= blocks) {
    tensor = find_tensor(table, shape.tensors, group * kWarps, tensor);
    const Work work = work_of(table, shape.tensors, shape.chunk_size, group, tensor);
    if (work.tensor < 0) continue;
    const auto change = change_of(work.tensor);
    if (!change.should_write) continue;
    with_dtype(work.chunk.dtype, [&](auto type) {
      using T = decltype(type);
      char* target = work.chunk.data;
      if (shape.has_targets) {
        target = reinterpret_cast<char*>(table.address(shape.tensors + work.tensor)) +
                 work.begin * static_cast<int64_t>(sizeof(typename T::Element));
      }
      change_chunk<T>(work.chunk, target, team_of(work), change);
    });
  }
}

// The second step of a norm with the rescale: what a fused clip does after its grid sync, and a
// split one in its second launch.
template <typename Sum, typename Table>
__device__ void finish_and_change(const Table& table, const Shape& shape, const CudaSums& sums,
                                  const CudaResult& result, Block& block) {
  const Factor factor = finish_norm<Sum>(shape.groups, sums, result, block);
  write_sums<Sum>(table, shape, sums);
  if (!factor.should_write) return;
  change_groups(table, shape.in_place(), [&](int) { return Multiply{factor.value}; });
}

}  // namespace fastclip::device
