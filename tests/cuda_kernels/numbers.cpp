#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace fastclip::kernel_tests {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// A format of 16 bits: a sign, an exponent, a fraction.
struct Format {
  int fraction_bits;
  int min_exponent;  // of the smallest normal number
  int max_exponent;  // of the largest
};

constexpr Format kBFloat16 = {7, -126, 127};
constexpr Format kFloat16 = {10, -14, 15};

const Format& format_of(DType dtype) { return dtype == DType::kBFloat16 ? kBFloat16 : kFloat16; }

double decode_16(const Format& format, uint64_t bits) {
  const uint64_t fractions = uint64_t{1} << format.fraction_bits;
  const double fraction = static_cast<double>(bits % fractions);
  const int field = static_cast<int>(bits % 0x8000 / fractions);
  const double sign = bits >= 0x8000 ? -1 : 1;
  if (field > format.max_exponent - format.min_exponent + 1)
    return fraction > 0 ? kNan : sign * kInf;
  if (field == 0) return sign * std::ldexp(fraction, format.min_exponent - format.fraction_bits);
  return sign * std::ldexp(fraction + static_cast<double>(fractions),
                           field - 1 + format.min_exponent - format.fraction_bits);
}

uint64_t encode_16(const Format& format, double value) {
  const auto fractions = static_cast<double>(uint64_t{1} << format.fraction_bits);
  const uint64_t sign = std::signbit(value) ? 0x8000 : 0;
  const auto infinity = static_cast<uint64_t>((format.max_exponent - format.min_exponent + 2) *
                                              static_cast<int>(fractions));
  if (std::isnan(value)) return infinity + 1;
  if (std::isinf(value)) return sign + infinity;
  if (value == 0) return sign;
  int exponent = 0;
  std::frexp(value, &exponent);
  exponent = std::max(exponent - 1, format.min_exponent);
  // Numbers that follow each other are one apart in this unit.
  const double steps =
      std::nearbyint(std::ldexp(std::fabs(value), format.fraction_bits - exponent));
  const double below = (exponent - format.min_exponent) * fractions;
  const auto magnitude = static_cast<uint64_t>(below + steps);
  return sign + (magnitude < infinity ? magnitude : infinity);
}

}  // namespace

uint64_t load_bits(const char* data, DType dtype) {
  uint64_t bits = 0;
  std::memcpy(&bits, data, static_cast<size_t>(element_size(dtype)));
  return bits;
}

void store_bits(char* data, DType dtype, uint64_t bits) {
  std::memcpy(data, &bits, static_cast<size_t>(element_size(dtype)));
}

double decode(DType dtype, uint64_t bits) {
  if (dtype == DType::kFloat64) {
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  return decode_16(format_of(dtype), bits);
}

uint64_t encode(DType dtype, double value) {
  uint64_t bits = 0;
  if (dtype == DType::kFloat64) {
    std::memcpy(&bits, &value, sizeof(value));
  } else if (dtype == DType::kFloat32) {
    const auto narrow = static_cast<float>(value);
    std::memcpy(&bits, &narrow, sizeof(narrow));
  } else {
    bits = encode_16(format_of(dtype), value);
  }
  return bits;
}

bool is_equal(DType dtype, uint64_t a, uint64_t b) {
  return a == b || (std::isnan(decode(dtype, a)) && std::isnan(decode(dtype, b)));
}

uint64_t multiplied(DType dtype, uint64_t bits, double coef) {
  const double value = decode(dtype, bits);
  if (dtype == DType::kFloat64) return encode(dtype, value * coef);
  return encode(dtype, static_cast<float>(value) * static_cast<float>(coef));
}

uint64_t clamped(DType dtype, uint64_t bits, double clip_value) {
  const double value = decode(dtype, bits);
  const double narrow =
      dtype == DType::kFloat64 ? clip_value : static_cast<double>(static_cast<float>(clip_value));
  const double limit = decode(dtype, encode(dtype, narrow));
  if (value > limit) return encode(dtype, limit);
  if (value < -limit) return encode(dtype, -limit);
  return bits;
}

}  // namespace fastclip::kernel_tests
