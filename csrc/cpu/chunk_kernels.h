// The chunk kernels: sums of squares, of magnitudes and of powers, maxima, scale, clamp.
// Included once per instruction set (kernels_*.cpp), with kVectorBytes set before it.
//
// All instruction sets give the same bits: element i of a block always goes to float64 lane i
// modulo kLanes, whatever the width of a vector; lanes are added in one fixed tree; the build
// forbids contraction. The tail is padded with zeros and goes through the same code as a whole
// block: zero adds nothing.
//
// Accuracy: float32 is squared in float64, where the product of two 24-bit significands is exact.
// Squares of bfloat16 and float16 are exact in float32; four of them are added there, in pairs,
// before they go to float64: two roundings, at most 2 x 2^-24 of the sum, 2^-24 of the norm, which
// is then rounded once more. That quarters the conversions: the work, not the memory, limits 16-bit
// gradients otherwise.
#pragma once

#include <math.h>

#include "../cpu_kernels.h"
#include "vectors.h"

namespace {

using fastclip::ChunkKernels;

constexpr int kLanes = 16;                // two vectors of AVX-512, eight of SSE2
constexpr int kSums = kLanes / kDoubles;  // vectors that hold the lanes
constexpr int kParts = kLanes / kFloats;  // float32 vectors that hold one value per lane
// On an AMD EPYC (Zen 3), 2 threads, 1 GB: 10 to 26 % faster than none for float32, 19 to 33 % for
// 16-bit gradients; 768 and 3072 are no better.
constexpr int64_t kPrefetchBytes = 1536;
constexpr int kLineBytes = 64;  // a line of the cache on every CPU that we know

// One float64 sum per lane.
struct LaneSums {
  f64v sums[kSums] = {};

  [[gnu::always_inline]] inline void add_pair(int part, f32v values) {
    const FloatHalves halves = bit_cast<FloatHalves>(values);
    sums[2 * part] += widen(halves.low);
    sums[2 * part + 1] += widen(halves.high);
  }

  // Adds lane i + kLanes / 2 to lane i, then i + kLanes / 4, ...: whole vectors first.
  double total() const {
    f64v tree[kSums];
    memcpy(tree, sums, sizeof(tree));
#pragma GCC unroll 8
    for (int half = kSums / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) tree[i] += tree[i + half];
    }
    f64v lanes = tree[0];
#pragma GCC unroll 8
    for (int half = kDoubles / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }
};

// kLanes consecutive elements as float64, element i in lane i.
template <typename T>
struct Wide {
  f64v values[kSums];

  [[gnu::always_inline]] explicit Wide(const char* p) {
#pragma GCC unroll 8
    for (int part = 0; part < kParts; ++part) {
      const FloatHalves halves = T::halves(p + part * kFloats * T::kSize);
      values[2 * part] = widen(halves.low);
      values[2 * part + 1] = widen(halves.high);
    }
  }
};

template <>
struct Wide<Float64> {
  f64v values[kSums];

  [[gnu::always_inline]] explicit Wide(const char* p) { memcpy(values, p, sizeof(values)); }
};

// Prefetches what the loop will read next, but nothing past the last byte: around a small tensor
// that would fetch as much again for nothing.
[[gnu::always_inline]] inline void prefetch_ahead(const char* p, const char* end) {
  const int64_t last = end - p - 1;
  __builtin_prefetch(p + (last < kPrefetchBytes ? last : kPrefetchBytes));
}

// Calls step(block) for every whole block of kElements and once for the zero-padded tail.
template <int kElements, int kSize, typename Step>
[[gnu::always_inline]] inline void for_each_block(const void* data, int64_t count, Step step) {
  const char* p = static_cast<const char*>(data);
  const char* const end = p + count / kElements * kElements * kSize;
  for (; p != end; p += kElements * kSize) {
#pragma GCC unroll 8
    for (int i = 0; i < kElements * kSize; i += kLineBytes) prefetch_ahead(p + i, end);
    step(p);
  }
  if (const int64_t rest = count % kElements; rest != 0) {
    char tail[kElements * kSize] = {};
    memcpy(tail, p, rest * kSize);
    step(tail);
  }
}

template <typename T>
double sum_sq_wide(const void* data, int64_t count) {
  LaneSums lanes;
  for_each_block<kLanes, T::kSize>(data, count, [&](const char* block) {
    const Wide<T> x(block);
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) lanes.sums[i] += x.values[i] * x.values[i];
  });
  return lanes.total();
}

// Squares of 16-bit elements are exact in float32, where four are added before they go to float64.
template <int kStride, typename Squares>
[[gnu::always_inline]] inline void add_fours(LaneSums* lanes, const char* block, Squares squares) {
#pragma GCC unroll 8
  for (int part = 0; part < kParts; ++part) {
    const char* p = block + part * kStride;
    lanes->add_pair(part, squares(p) + squares(p + 2 * kLanes * 2));
  }
}

// A word holds two elements; both become float32 without a shuffle.
double sum_sq_bfloat16(const void* data, int64_t count) {
  LaneSums lanes;
  u32v seen = {};
  for_each_block<4 * kLanes, 2>(data, count, [&](const char* block) {
    add_fours<kVectorBytes>(&lanes, block, [&](const char* p) {
      const u32v words = load<u32v>(p);
      const f32v even = bit_cast<f32v>(words << 16);
      const f32v odd = bit_cast<f32v>(words & 0xffff0000u);
      seen |= words;
      return even * even + odd * odd;
    });
  });
  const double sum_sq = lanes.total();
  uint32_t magnitudes = 0;
  for (int i = 0; i < kFloats; ++i) magnitudes |= seen[i] & 0x7fff7fffu;
  // Rescue: a float32 square overflows above 2^64 and loses digits below 2^-63. Each lost square is
  // off by at most 2^-149, so a sum above count * 2^-102 has lost nothing that float64 would show.
  const bool overflowed = !(sum_sq <= __DBL_MAX__);
  const bool underflowed = magnitudes != 0 && sum_sq < static_cast<double>(count) * 0x1p-102;
  return overflowed || underflowed ? sum_sq_wide<BFloat16>(data, count) : sum_sq;
}

// float16's squares lie between 2^-48 and 2^32: no rescue is needed.
double sum_sq_float16(const void* data, int64_t count) {
  LaneSums lanes;
  for_each_block<4 * kLanes, 2>(data, count, [&](const char* block) {
    add_fours<kFloats * 2>(&lanes, block, [](const char* p) {
      const f32v first = floats_from_halfs(load<u16half>(p));
      const f32v second = floats_from_halfs(load<u16half>(p + kLanes * 2));
      return first * first + second * second;
    });
  });
  return lanes.total();
}

template <typename T>
double abs_sum(const void* data, int64_t count) {
  LaneSums lanes;
  for_each_block<kLanes, T::kSize>(data, count, [&](const char* block) {
    const Wide<T> x(block);
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) lanes.sums[i] += magnitude(x.values[i]);
  });
  return lanes.total();
}

// Computes whole exponents up to 8 by repeated multiplication, all others by pow.
template <typename T>
double power_sum(const void* data, int64_t count, double norm_type) {
  const bool is_small_whole = norm_type <= 8.0 && norm_type == static_cast<int>(norm_type);
  const int exponent = is_small_whole ? static_cast<int>(norm_type) : 0;
  LaneSums lanes;
  for_each_block<kLanes, T::kSize>(data, count, [&](const char* block) {
    const Wide<T> x(block);
    for (int i = 0; i < kSums; ++i) {
      const f64v base = magnitude(x.values[i]);
      f64v power = base;
      if (exponent != 0) {
        for (int factor = 1; factor < exponent; ++factor) power *= base;
      } else {
        for (int lane = 0; lane < kDoubles; ++lane) power[lane] = pow(base[lane], norm_type);
      }
      lanes.sums[i] += power;
    }
  });
  return lanes.total();
}

template <typename T>
struct Magnitude;
template <>
struct Magnitude<Float32> {
  static constexpr int32_t kMask = 0x7fffffff, kInfinity = 0x7f800000;
  static double value(int32_t bits) { return bit_cast<float>(bits); }
  static int32_t bits(double limit) { return bit_cast<int32_t>(static_cast<float>(limit)); }
};
template <>
struct Magnitude<Float64> {
  static constexpr int64_t kMask = INT64_MAX, kInfinity = INT64_C(0x7ff0000000000000);
  static double value(int64_t bits) { return bit_cast<double>(bits); }
  static int64_t bits(double limit) { return bit_cast<int64_t>(limit); }
};
template <>
struct Magnitude<BFloat16> {
  static constexpr int16_t kMask = 0x7fff, kInfinity = 0x7f80;
  static double value(int16_t bits) { return bit_cast<float>(static_cast<int32_t>(bits) << 16); }
  static int16_t bits(double limit) {
    const f32v all = f32v{} + static_cast<float>(limit);
    return static_cast<int16_t>(rounded_to_bfloat16(all)[0] >> 16);
  }
};
template <>
struct Magnitude<Float16> {
  static constexpr int16_t kMask = 0x7fff, kInfinity = 0x7c00;
  static double value(int16_t bits) {
    return floats_from_halfs(u16half{} + static_cast<uint16_t>(bits))[0];
  }
  static int16_t bits(double limit) {
    const f32v all = f32v{} + static_cast<float>(limit);
    return static_cast<int16_t>(halfs_from_floats(all)[0]);
  }
};

// The magnitude bits of an IEEE number order as integers, with NaN above infinity: an integer
// maximum keeps NaN, where a floating-point maximum instruction drops it.
template <typename T>
double abs_max(const void* data, int64_t count) {
  typedef typename T::Words Words;
  constexpr int kVectors = 4;
  Words maxima[kVectors] = {};
  for_each_block<kVectors * kVectorBytes / T::kSize, T::kSize>(data, count, [&](const char* block) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      const Words bits = load<Words>(block + i * kVectorBytes) & Magnitude<T>::kMask;
      maxima[i] = bits > maxima[i] ? bits : maxima[i];
    }
  });
  auto bits = maxima[0][0];
  for (int i = 0; i < kVectors; ++i) {
    for (int lane = 0; lane < kVectorBytes / T::kSize; ++lane) {
      if (maxima[i][lane] > bits) bits = maxima[i][lane];
    }
  }
  return Magnitude<T>::value(bits);
}

// Calls step(source, target) for every whole vector and once for the tail, through a buffer.
template <int kSize, typename Step>
[[gnu::always_inline]] inline void map_vectors(const void* source, void* target, int64_t count,
                                               Step step) {
  const char* from = static_cast<const char*>(source);
  char* to = static_cast<char*>(target);
  const int64_t bytes = count * kSize;
  int64_t at = 0;
  for (; at + kLineBytes <= bytes; at += kLineBytes) {
    prefetch_ahead(from + at, from + bytes);
#pragma GCC unroll 8
    for (int i = 0; i < kLineBytes; i += kVectorBytes) step(from + at + i, to + at + i);
  }
  for (; at + kVectorBytes <= bytes; at += kVectorBytes) step(from + at, to + at);
  if (at < bytes) {
    char tail[kVectorBytes] = {};
    memcpy(tail, from + at, bytes - at);
    step(tail, tail);
    memcpy(to + at, tail, bytes - at);
  }
}

void scale_float32(const void* source, void* target, int64_t count, double clip_coef) {
  const float coef = static_cast<float>(clip_coef);
  map_vectors<4>(source, target, count,
                 [&](const char* from, char* to) { store(to, load<f32v>(from) * coef); });
}

void scale_float64(const void* source, void* target, int64_t count, double clip_coef) {
  map_vectors<8>(source, target, count,
                 [&](const char* from, char* to) { store(to, load<f64v>(from) * clip_coef); });
}

void scale_bfloat16(const void* source, void* target, int64_t count, double clip_coef) {
  const float coef = static_cast<float>(clip_coef);
  map_vectors<2>(source, target, count, [&](const char* from, char* to) {
    const u32v words = load<u32v>(from);
    const u32v even = rounded_to_bfloat16(bit_cast<f32v>(words << 16) * coef);
    const u32v odd = rounded_to_bfloat16(bit_cast<f32v>(words & 0xffff0000u) * coef);
    store(to, (even >> 16) | (odd & 0xffff0000u));
  });
}

void scale_float16(const void* source, void* target, int64_t count, double clip_coef) {
  const float coef = static_cast<float>(clip_coef);
  map_vectors<2>(source, target, count, [&](const char* from, char* to) {
    const f32v low = floats_from_halfs(load<u16half>(from)) * coef;
    const f32v high = floats_from_halfs(load<u16half>(from + kVectorBytes / 2)) * coef;
    store(to, halfs_from_floats(low));
    store(to + kVectorBytes / 2, halfs_from_floats(high));
  });
}

// Compares magnitude bits: exact for every dtype, and NaN, above infinity, stays as it is.
// A span is written only if some element of it is out of range; it is still in the first-level
// cache.
template <typename T>
void clamp(void* data, int64_t count, double clip_value) {
  typedef typename T::Words Words;
  constexpr int64_t kSpan = 4096 / T::kSize;
  const auto limit = Magnitude<T>::bits(clip_value);
  const auto out_of_range = [&](Words magnitudes) {
    return (magnitudes > limit) & (magnitudes <= Magnitude<T>::kInfinity);
  };
  for (int64_t first = 0; first < count; first += kSpan) {
    char* span = static_cast<char*>(data) + first * T::kSize;
    const int64_t elements = count - first < kSpan ? count - first : kSpan;
    Words any = {};
    for_each_block<kVectorBytes / T::kSize, T::kSize>(span, elements, [&](const char* block) {
      any |= bit_cast<Words>(out_of_range(load<Words>(block) & Magnitude<T>::kMask));
    });
    auto written = any[0];
    for (int lane = 1; lane < kVectorBytes / T::kSize; ++lane) written |= any[lane];
    if (written == 0) continue;
    map_vectors<T::kSize>(span, span, elements, [&](const char* from, char* to) {
      const Words bits = load<Words>(from);
      const Words clamped = (bits & ~Magnitude<T>::kMask) | limit;
      store(to, out_of_range(bits & Magnitude<T>::kMask) ? clamped : bits);
    });
  }
}

constexpr ChunkKernels chunk_kernels(const char* name) {
  return {
      name,
      {sum_sq_wide<Float32>, sum_sq_wide<Float64>, sum_sq_bfloat16, sum_sq_float16},
      {sum_sq_wide<Float32>, sum_sq_wide<Float64>, sum_sq_wide<BFloat16>, sum_sq_wide<Float16>},
      {abs_sum<Float32>, abs_sum<Float64>, abs_sum<BFloat16>, abs_sum<Float16>},
      {abs_max<Float32>, abs_max<Float64>, abs_max<BFloat16>, abs_max<Float16>},
      {power_sum<Float32>, power_sum<Float64>, power_sum<BFloat16>, power_sum<Float16>},
      {scale_float32, scale_float64, scale_bfloat16, scale_float16},
      {clamp<Float32>, clamp<Float64>, clamp<BFloat16>, clamp<Float16>},
  };
}

}  // namespace
