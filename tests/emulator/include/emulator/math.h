// Arithmetic that device code has without std::, with CUDA's overloads and no others, so that a
// call that is ambiguous for nvcc is ambiguous here.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace emulator::detail {

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace emulator::detail

inline int __float_as_int(float x) { return emulator::detail::bit_cast<int>(x); }
inline float __int_as_float(int x) { return emulator::detail::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return emulator::detail::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulator::detail::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::detail::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::detail::bit_cast<double>(x); }
inline int __double2hiint(double x) { return static_cast<int>(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return static_cast<int>(__double_as_longlong(x)); }
inline double __hiloint2double(int high, int low) {
  return __longlong_as_double(static_cast<long long>(
      static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low)));
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

// Neither nvcc nor g++, by -ffp-contract=off, contracts these to a fused operation.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }

// clang-format off
#define FASTCLIP_EMULATOR_MIN_MAX(type)                          \
  inline type min(type a, type b) { return b < a ? b : a; }      \
  inline type max(type a, type b) { return a < b ? b : a; }
FASTCLIP_EMULATOR_MIN_MAX(int)
FASTCLIP_EMULATOR_MIN_MAX(unsigned)
FASTCLIP_EMULATOR_MIN_MAX(long)
FASTCLIP_EMULATOR_MIN_MAX(unsigned long)
FASTCLIP_EMULATOR_MIN_MAX(long long)
FASTCLIP_EMULATOR_MIN_MAX(unsigned long long)
#undef FASTCLIP_EMULATOR_MIN_MAX
// clang-format on

// Like fmin and fmax, these return the other operand if one is NaN.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(float a, double b) { return std::fmin(a, b); }
inline double max(float a, double b) { return std::fmax(a, b); }
inline double min(double a, float b) { return std::fmin(a, b); }
inline double max(double a, float b) { return std::fmax(a, b); }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
