// Conversions of the toolkit's own headers as g++ compiles them, and functions without std::.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "case.h"

namespace {

constexpr int kRandomFloats = 200000;

bool is_same(float a, float b) {
  return __float_as_uint(a) == __float_as_uint(b) || (a != a && b != b);
}

// What g++ makes of the type that x86 knows.
float widen(unsigned short bits) {
  _Float16 value;
  __builtin_memcpy(&value, &bits, sizeof(bits));
  return static_cast<float>(value);
}

unsigned short narrow(float value) {
  const auto half = static_cast<_Float16>(value);
  unsigned short bits;
  __builtin_memcpy(&bits, &half, sizeof(bits));
  return bits;
}

unsigned short narrow_bfloat16(float value) {
  const uint32_t bits = __float_as_uint(value);
  return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

bool check_narrowing(float value) {
  CASES_CHECK(__half_as_ushort(__float2half_rn(value)) == narrow(value));
  CASES_CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(value)) == narrow_bfloat16(value));
  const __half2 halves = __floats2half2_rn(1.0f, value);
  CASES_CHECK(__half_as_ushort(halves.y) == narrow(value) &&
              widen(__half_as_ushort(halves.x)) == 1);
  const __nv_bfloat162 pair = __floats2bfloat162_rn(value, 1.0f);
  CASES_CHECK(__bfloat16_as_ushort(pair.x) == narrow_bfloat16(value));
  return true;
}

bool run_conversions() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto narrow_bits = static_cast<unsigned short>(bits);
    CASES_CHECK(is_same(__half2float(__ushort_as_half(narrow_bits)), widen(narrow_bits)));
    CASES_CHECK(
        is_same(__bfloat162float(__ushort_as_bfloat16(narrow_bits)), __uint_as_float(bits << 16)));
  }
  uint32_t state = 1;
  for (int i = 0; i < kRandomFloats; ++i) {
    state = state * 1664525 + 1013904223;
    // Half of them in the range of float16.
    const float value =
        i % 2 == 0 ? __uint_as_float(state) : __uint_as_float(0x32000000 + state % 0x16000000);
    if (value == value && !check_narrowing(value)) return false;
  }
  return true;
}

__global__ void compute(double* out) {
  out[0] = fma(3.0, 5.0, 7.0) + fmaf(2.0f, 3.0f, 4.0f);
  out[1] = exp2(3.0) + log2(8.0) + sqrt(16.0) + fabs(-2.0);
  out[2] = isfinite(out[0]) + 2 * isnan(__longlong_as_double(-1)) + 4 * isinf(1 / 0.0f);
  out[3] = min(3, 5) + max(int64_t{1}, int64_t{9}) + min(2.5f, 1.5f) + max(1u, 2);
  out[4] = __uint_as_float(0x3f800000u) + __popc(0xf0) + __ffs(8) + __clz(1);
  out[5] = static_cast<double>(__double_as_longlong(1.0) >> 52);
}

bool run_functions() {
  double out[6] = {};
  cases::launch(&compute, {1, 1}, static_cast<double*>(out));
  CASES_CHECK(out[0] == 32 && out[1] == 17 && out[2] == 7 && out[3] == 15.5);
  CASES_CHECK(out[4] == 40 && out[5] == 1023);
  return true;
}

const cases::Case kCases[] = {{"conversions", &run_conversions}, {"functions", &run_functions}};

}  // namespace
