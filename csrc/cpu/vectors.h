// Vectors of one instruction set, and how each dtype is read into and written from them.
// Included only by chunk_kernels.h, once per instruction set, with kVectorBytes set before it.
//
// Everything here has internal linkage and no C++ standard header is included: a weak symbol
// compiled with -mavx512f could replace the baseline's copy at link time and crash on an older CPU.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

constexpr int kDoubles = kVectorBytes / 8;  // float64 lanes of a vector
constexpr int kFloats = kVectorBytes / 4;   // float32 lanes of a vector

typedef double f64v __attribute__((vector_size(kVectorBytes)));
typedef float f32v __attribute__((vector_size(kVectorBytes)));
typedef float f32half __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t u32v __attribute__((vector_size(kVectorBytes)));
typedef int32_t i32v __attribute__((vector_size(kVectorBytes)));
typedef int64_t i64v __attribute__((vector_size(kVectorBytes)));
typedef int16_t i16v __attribute__((vector_size(kVectorBytes)));
typedef uint16_t u16half __attribute__((vector_size(kVectorBytes / 2)));

template <typename V>
[[gnu::always_inline]] inline V load(const char* address) {
  V vector;
  memcpy(&vector, address, sizeof(V));
  return vector;
}

template <typename V>
[[gnu::always_inline]] inline void store(char* address, V vector) {
  memcpy(address, &vector, sizeof(V));
}

template <typename To, typename From>
[[gnu::always_inline]] inline To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes must agree");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

struct FloatHalves {
  f32half low, high;
};

// Uses intrinsics where there are any, because gcc 12 splits __builtin_convertvector into 16-byte
// pieces.
[[gnu::always_inline]] inline f64v widen(f32half x) {
#if defined(__AVX512F__)  // maskz: the plain form reads an undefined value in gcc 12's header
  return bit_cast<f64v>(_mm512_maskz_cvtps_pd(0xff, bit_cast<__m256>(x)));
#elif defined(__AVX__)
  return bit_cast<f64v>(_mm256_cvtps_pd(bit_cast<__m128>(x)));
#else
  return __builtin_convertvector(x, f64v);
#endif
}

[[gnu::always_inline]] inline f64v magnitude(f64v x) {
  return bit_cast<f64v>(bit_cast<i64v>(x) & INT64_C(0x7fffffffffffffff));
}

// float16 to float32 is exact. Only the baseline of x86-64 lacks an instruction for it: there the
// exponent is moved by a multiplication, which also normalises denormals, and inf and NaN are
// patched.
[[gnu::always_inline]] inline f32v floats_from_halfs(u16half h) {
#if defined(__AVX512F__)
  return bit_cast<f32v>(_mm512_maskz_cvtph_ps(0xffff, bit_cast<__m256i>(h)));
#elif defined(__F16C__)
  return bit_cast<f32v>(_mm256_cvtph_ps(bit_cast<__m128i>(h)));
#elif defined(__aarch64__)
  typedef __fp16 f16half __attribute__((vector_size(kVectorBytes / 2)));
  return __builtin_convertvector(bit_cast<f16half>(h), f32v);
#else
  const u32v u = __builtin_convertvector(h, u32v);
  const u32v shifted = (u & 0x7fffu) << 13;
  const f32v value = bit_cast<f32v>(shifted) * 0x1p112f;
  const u32v special = bit_cast<u32v>(bit_cast<i32v>(shifted) >= 0x0f800000) & 0x7f800000u;
  return bit_cast<f32v>(bit_cast<u32v>(value) | special | ((u & 0x8000u) << 16));
#endif
}

// float32 to float16, to nearest even.
[[gnu::always_inline]] inline u16half halfs_from_floats(f32v x) {
#if defined(__AVX512F__)
  return bit_cast<u16half>(
      _mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return bit_cast<u16half>(_mm256_cvtps_ph(bit_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  typedef __fp16 f16half __attribute__((vector_size(kVectorBytes / 2)));
  return bit_cast<u16half>(__builtin_convertvector(x, f16half));
#else
  const u32v bits = bit_cast<u32v>(x);
  const i32v mag = bit_cast<i32v>(bits & 0x7fffffffu);
  const u32v normal =
      (bit_cast<u32v>(mag) + 0xc8000fffu + ((bit_cast<u32v>(mag) >> 13) & 1u)) >> 13;
  // Adding 0.5 lines the bits of a value below 2^-14 up with float16's denormals and rounds them.
  const u32v denormal = bit_cast<u32v>(bit_cast<f32v>(mag) + 0.5f) - 0x3f000000u;
  u32v result = mag < 0x38800000 ? denormal : normal;
  result = mag >= 0x477ff000 ? result * 0u + 0x7c00u : result;
  result = mag > 0x7f800000 ? 0x7e00u | ((bits >> 13) & 0x1ffu) : result;
  return __builtin_convertvector(result | ((bits >> 16) & 0x8000u), u16half);
#endif
}

// float32 to bfloat16, to nearest even; the result stands in the high 16 bits of each word. A NaN
// is made quiet instead of rounded, which could carry it over to infinity.
[[gnu::always_inline]] inline u32v rounded_to_bfloat16(f32v x) {
  const u32v bits = bit_cast<u32v>(x);
  const u32v rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const i32v is_nan = bit_cast<i32v>(bits & 0x7fffffffu) > 0x7f800000;
  return is_nan ? bits | 0x00400000u : rounded;
}

struct Float32 {
  typedef i32v Words;
  static constexpr int kSize = 4;
  [[gnu::always_inline]] static inline FloatHalves halves(const char* p) {
    return {load<f32half>(p), load<f32half>(p + kVectorBytes / 2)};
  }
};

struct BFloat16 {
  typedef i16v Words;
  static constexpr int kSize = 2;
  [[gnu::always_inline]] static inline FloatHalves halves(const char* p) {
    return bit_cast<FloatHalves>(__builtin_convertvector(load<u16half>(p), u32v) << 16);
  }
};

struct Float16 {
  typedef i16v Words;
  static constexpr int kSize = 2;
  [[gnu::always_inline]] static inline FloatHalves halves(const char* p) {
    return bit_cast<FloatHalves>(floats_from_halfs(load<u16half>(p)));
  }
};

struct Float64 {
  typedef i64v Words;
  static constexpr int kSize = 8;
};

}  // namespace
