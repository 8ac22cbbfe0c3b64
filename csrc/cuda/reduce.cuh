// Sums of squares, of magnitudes and of powers, and maxima: over a thread's elements, a warp, a
// block. Every order of additions is fixed by the list, so that equal inputs give equal bits.
#pragma once

#include <type_traits>

#include "vector.cuh"

// tests/emulator defines its own: on the host, __shared__ would mean one copy for each thread.
#ifndef FASTCLIP_SHARED
#define FASTCLIP_SHARED(type, name) __shared__ type name
#endif

namespace fastclip::device {

constexpr uint32_t kAllLanes = 0xffffffff;

// What one thread has seen of a chunk for each kind of norm. `combine` joins two results, `root`
// makes a norm of the whole list's.
struct Additive {
  double sum = 0;

  __device__ double value() const { return sum; }
  static __device__ double combine(double a, double b) { return a + b; }
};

// Float64 throughout: squares of 16- and 32-bit elements are exact and stay in range.
struct SumSqWide : Additive {
  static constexpr bool kRescues = false;

  template <typename T>
  __device__ void add(const uint4& vector) {
    typename T::Value values[T::kPerVector];
    T::unpack(vector, values);
#pragma unroll
    for (const double x : values) sum = fma(x, x, sum);
  }
  template <typename T>
  __device__ void add(typename T::Element element) {
    const double x = T::value(element);
    sum = fma(x, x, sum);
  }
  static __device__ double root(double total, double) { return sqrt(total); }
};

// Four squares at a time are added in float32, in pairs, before they go to float64: two roundings,
// so that the sum is within 2 x 2^-24 of the exact one, and the norm within half of that. The
// square of a float32 is rounded too; fma gives what the rounding dropped, exactly.
struct SumSq : Additive {
  static constexpr bool kRescues = true;
  uint32_t magnitudes = 0;  // the bits of all elements, or-ed: zero only if all of them are

  template <typename T>
  __device__ void add(const uint4& vector) {
    typename T::Value x[T::kPerVector];
    T::unpack(vector, x);
    if constexpr (T::kDType == DType::kFloat64) {
      sum = fma(x[0], x[0], sum);
      sum = fma(x[1], x[1], sum);
    } else {
      magnitudes |= (vector.x | vector.y | vector.z | vector.w) & T::kMagnitudes;
#pragma unroll
      for (int i = 0; i < T::kPerVector; i += 4) {
        sum += four_squares<T::kDType == DType::kFloat32>(&x[i]);
      }
    }
  }
  template <typename T>
  __device__ void add(typename T::Element element) {
    const double x = T::value(element);
    sum = fma(x, x, sum);
  }
  static __device__ double root(double total, double) { return sqrt(total); }

  // A float32 square overflows above 2^64 and loses digits below 2^-63. A lost square is off by at
  // most 2^-149, so a sum above count * 2^-102 has lost nothing that counts. Other chunks are
  // summed again in float64, among them those with NaN or inf, which give NaN or inf again.
  static __device__ bool needs_rescue(double sum, bool any_magnitude, int count) {
    return !isfinite(sum) || (any_magnitude && sum < count * 0x1p-102);
  }

 private:
  template <bool kRounds>
  static __device__ double four_squares(const float* x) {
    const float a = x[0] * x[0], b = x[1] * x[1], c = x[2] * x[2], d = x[3] * x[3];
    const double squares = (a + b) + (c + d);
    if constexpr (!kRounds) return squares;  // 16-bit elements: the products are exact
    const float dropped = (fmaf(x[0], x[0], -a) + fmaf(x[1], x[1], -b)) +
                          (fmaf(x[2], x[2], -c) + fmaf(x[3], x[3], -d));
    return squares + dropped;
  }
};

struct AbsSum : Additive {
  static constexpr bool kRescues = false;

  template <typename T>
  __device__ void add(const uint4& vector) {
    typename T::Value values[T::kPerVector];
    T::unpack(vector, values);
#pragma unroll
    for (const double x : values) sum += fabs(x);
  }
  template <typename T>
  __device__ void add(typename T::Element element) {
    sum += fabs(static_cast<double>(T::value(element)));
  }
  static __device__ double root(double total, double) { return total; }
};

// The magnitude bits of IEEE numbers order as integers, with NaN above inf: an integer maximum
// keeps NaN, where fmax drops it.
struct AbsMax {
  static constexpr bool kRescues = false;
  uint32_t narrow = 0;  // of float32 values, which 16-bit ones are converted to
  uint64_t wide = 0;    // of float64 values

  template <typename T>
  __device__ void add(const uint4& vector) {
    typename T::Value values[T::kPerVector];
    T::unpack(vector, values);
#pragma unroll
    for (const auto value : values) add_value(value);
  }
  template <typename T>
  __device__ void add(typename T::Element element) {
    add_value(T::value(element));
  }
  __device__ double value() const {
    return combine(__uint_as_float(narrow), __longlong_as_double(static_cast<long long>(wide)));
  }
  // Once NaN, a maximum stays NaN: no comparison with it is true.
  static __device__ double combine(double a, double b) { return b > a || b != b ? b : a; }
  static __device__ double root(double total, double) { return total; }

 private:
  __device__ void add_value(float value) {
    const uint32_t bits = __float_as_uint(value) & 0x7fffffffu;
    narrow = bits > narrow ? bits : narrow;
  }
  __device__ void add_value(double value) {
    const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value)) & INT64_MAX;
    wide = bits > wide ? bits : wide;
  }
};

// |x|^p as 2^(p log2 |x|) in float64: pow() is a function call with local memory.
struct PowerSum : Additive {
  static constexpr bool kRescues = false;
  double norm_type;

  explicit __device__ PowerSum(double p) : norm_type(p) {}
  template <typename T>
  __device__ void add(const uint4& vector) {
    typename T::Value values[T::kPerVector];
    T::unpack(vector, values);
    // This loop stays a loop, so that the long code for a power exists once. The values move past
    // it: an index that the compiler does not know would put them into local memory.
#pragma unroll 1
    for (int i = 0; i < T::kPerVector; ++i) {
      sum += power(values[0]);
#pragma unroll
      for (int k = 1; k < T::kPerVector; ++k) values[k - 1] = values[k];
    }
  }
  template <typename T>
  __device__ void add(typename T::Element element) {
    sum += power(T::value(element));
  }
  static __device__ double root(double total, double norm_type) {
    return exp2(log2(total) / norm_type);
  }

 private:
  __device__ double power(double x) const { return exp2(norm_type * log2(fabs(x))); }
};

template <typename Sum>
__device__ Sum start(double norm_type) {
  if constexpr (std::is_same_v<Sum, PowerSum>) {
    return Sum(norm_type);
  } else {
    return Sum();
  }
}

// Returns the same for every lane: combine() is commutative, so both ends of a shuffle agree.
template <typename Sum>
__device__ double combine_warp(double value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = Sum::combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

struct Scratch {
  double values[2][kWarps];
  int seen[2][kWarps];
};

// Combines one value of each warp, in the order of the warps. Two buffers take turns: a thread
// writes one again only after the barrier of the call in between, which every thread reaches after
// it has read that buffer.
class Block {
 public:
  explicit __device__ Block(Scratch& scratch) : scratch_(scratch) {}

  template <typename Sum>
  __device__ double combine(double value, bool* seen) {
    turn_ ^= 1;
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    if (threadIdx.x % kWarpSize == 0) {
      scratch_.values[turn_][warp] = value;
      scratch_.seen[turn_][warp] = *seen;
    }
    __syncthreads();
    double combined = scratch_.values[turn_][0];
    *seen = scratch_.seen[turn_][0] != 0;
#pragma unroll
    for (int i = 1; i < kWarps; ++i) {
      combined = Sum::combine(combined, scratch_.values[turn_][i]);
      *seen |= scratch_.seen[turn_][i] != 0;
    }
    return combined;
  }

  template <typename Sum>
  __device__ double combine(double value) {
    bool seen = false;
    return combine<Sum>(value, &seen);
  }

 private:
  Scratch& scratch_;
  int turn_ = 0;
};

}  // namespace fastclip::device
