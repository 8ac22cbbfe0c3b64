// Reading and writing gradients 16 bytes at a time; each dtype as float32 or float64 values.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "../gpu_work.h"

namespace fastclip::device {

// Independent 16-byte loads that a thread has in flight. With 256 threads and 4 blocks on a
// multiprocessor that makes 64 KiB, which covers the memory's latency at full speed on every GPU
// from sm_80 to sm_120.
constexpr int kLoads = 4;

// These are ld.global and st.global: to the compiler an address that comes from a table is generic.
// .cg keeps gradients out of L1, which is too small to hold a chunk until it is read again.
__device__ inline uint4 load_vector(const char* address) {
  return __ldcg(reinterpret_cast<const uint4*>(address));
}
__device__ inline void store_vector(char* address, const uint4& vector) {
  __stcg(reinterpret_cast<uint4*>(address), vector);
}
template <typename T>
__device__ T load(const char* address) {
  return __ldcg(reinterpret_cast<const T*>(address));
}
template <typename T>
__device__ void store(char* address, T element) {
  __stcg(reinterpret_cast<T*>(address), element);
}

struct Float32 {
  using Element = float;
  using Value = float;
  static constexpr DType kDType = DType::kFloat32;
  static constexpr int kPerVector = 4;
  static constexpr uint32_t kMagnitudes = 0x7fffffff;
  static __device__ float value(float element) { return element; }
  static __device__ float element(float value) { return value; }
  static __device__ void unpack(const uint4& vector, float (&values)[4]) {
    values[0] = __uint_as_float(vector.x);
    values[1] = __uint_as_float(vector.y);
    values[2] = __uint_as_float(vector.z);
    values[3] = __uint_as_float(vector.w);
  }
  static __device__ uint4 pack(const float (&values)[4]) {
    return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]),
                      __float_as_uint(values[2]), __float_as_uint(values[3]));
  }
};

struct Float64 {
  using Element = double;
  using Value = double;
  static constexpr DType kDType = DType::kFloat64;
  static constexpr int kPerVector = 2;
  static __device__ double value(double element) { return element; }
  static __device__ double element(double value) { return value; }
  static __device__ void unpack(const uint4& vector, double (&values)[2]) {
    values[0] = of_words(vector.x, vector.y);
    values[1] = of_words(vector.z, vector.w);
  }
  static __device__ uint4 pack(const double (&values)[2]) {
    const auto low = static_cast<uint64_t>(__double_as_longlong(values[0]));
    const auto high = static_cast<uint64_t>(__double_as_longlong(values[1]));
    return make_uint4(static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                      static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32));
  }

 private:
  static __device__ double of_words(uint32_t low, uint32_t high) {
    return __longlong_as_double(static_cast<long long>(uint64_t{high} << 32 | low));
  }
};

// What two dtypes of 16 bits share: T reads and writes the two elements of a word.
template <typename T>
struct SixteenBits {
  using Element = unsigned short;
  using Value = float;
  static constexpr int kPerVector = 8;
  static constexpr uint32_t kMagnitudes = 0x7fff7fff;
  static __device__ void unpack(const uint4& vector, float (&values)[8]) {
    T::unpack_word(vector.x, &values[0]);
    T::unpack_word(vector.y, &values[2]);
    T::unpack_word(vector.z, &values[4]);
    T::unpack_word(vector.w, &values[6]);
  }
  static __device__ uint4 pack(const float (&values)[8]) {
    return make_uint4(T::pack_word(&values[0]), T::pack_word(&values[2]), T::pack_word(&values[4]),
                      T::pack_word(&values[6]));
  }
};

struct BFloat16 : SixteenBits<BFloat16> {
  static constexpr DType kDType = DType::kBFloat16;
  static __device__ float value(unsigned short element) {
    return __uint_as_float(uint32_t{element} << 16);
  }
  static __device__ unsigned short element(float value) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
  static __device__ void unpack_word(uint32_t word, float* values) {
    values[0] = __uint_as_float(word << 16);
    values[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ uint32_t pack_word(const float* values) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[0], values[1]);
    return uint32_t{__bfloat16_as_ushort(pair.y)} << 16 | __bfloat16_as_ushort(pair.x);
  }
};

struct Float16 : SixteenBits<Float16> {
  static constexpr DType kDType = DType::kFloat16;
  static __device__ float value(unsigned short element) {
    return __half2float(__ushort_as_half(element));
  }
  static __device__ unsigned short element(float value) {
    return __half_as_ushort(__float2half_rn(value));
  }
  static __device__ void unpack_word(uint32_t word, float* values) {
    values[0] = value(static_cast<unsigned short>(word));
    values[1] = value(static_cast<unsigned short>(word >> 16));
  }
  static __device__ uint32_t pack_word(const float* values) {
    const __half2 pair = __floats2half2_rn(values[0], values[1]);
    return uint32_t{__half_as_ushort(pair.y)} << 16 | __half_as_ushort(pair.x);
  }
};

// Calls body(T{}) with the type that stands for `dtype`.
template <typename Body>
__device__ void with_dtype(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(Float32{});
    case DType::kFloat64:
      return body(Float64{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat16:
      return body(Float16{});
  }
}

// Consecutive elements of one tensor, worked on by one block or one warp.
struct Chunk {
  char* data;
  int count;  // below 2^21: a chunk has at most kMaxChunkSize elements and a head
  DType dtype;
};

// The threads that share a chunk: a block, or a warp of it.
struct Team {
  int thread;
  int size;
};

// Calls body(first, all{}) for each batch of kLoads vectors that this thread of the team takes, at
// `first`, `first` + team.size and so on. The type of `all` says whether the whole batch exists, as
// it does except at the end: loads without a condition are issued together.
template <typename Body>
__device__ void for_each_batch(int vectors, Team team, Body body) {
  int first = team.thread;
  for (; first + (kLoads - 1) * team.size < vectors; first += kLoads * team.size) {
    body(first, std::true_type{});
  }
  if (first < vectors) body(first, std::false_type{});
}

// Loads a batch; vectors past the end are zeros, which add nothing to any sum.
template <bool kAll>
__device__ void load_batch(const char* body, int first, int vectors, int stride,
                           uint4 (&batch)[kLoads]) {
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    const int i = first + k * stride;
    batch[k] = kAll || i < vectors ? load_vector(body + i * kVectorBytes) : make_uint4(0, 0, 0, 0);
  }
}

// Calls `on_vector(vector)` and `on_element(element)` for what this thread of the team reads.
template <typename T, typename OnVector, typename OnElement>
__device__ void read_chunk(const Chunk& chunk, Team team, OnVector on_vector,
                           OnElement on_element) {
  using Element = typename T::Element;
  const int head =
      static_cast<int>(head_of(reinterpret_cast<uint64_t>(chunk.data), chunk.count, T::kDType));
  const char* const body = chunk.data + head * sizeof(Element);
  const int vectors = (chunk.count - head) / T::kPerVector;
  for_each_batch(vectors, team, [&](int first, auto all) {
    uint4 batch[kLoads];
    load_batch<decltype(all)::value>(body, first, vectors, team.size, batch);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) on_vector(batch[k]);
  });
  // Each side has fewer elements than a vector: the first threads take the head, the last ones the
  // tail.
  const int tail = chunk.count - head - vectors * T::kPerVector;
  if (team.thread < head) on_element(load<Element>(chunk.data + team.thread * sizeof(Element)));
  const int last = team.size - 1 - team.thread;
  if (last < tail) {
    on_element(load<Element>(body + vectors * kVectorBytes + last * sizeof(Element)));
  }
}

}  // namespace fastclip::device
