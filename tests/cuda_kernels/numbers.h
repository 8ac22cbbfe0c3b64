// Elements of every dtype on the host, by arithmetic on numbers where the kernels work on bits.
#pragma once

#include <cstdint>

#include "tensor_list.h"

namespace fastclip::kernel_tests {

uint64_t load_bits(const char* data, DType dtype);
void store_bits(char* data, DType dtype, uint64_t bits);

double decode(DType dtype, uint64_t bits);
// To nearest, ties to even; beyond the largest number, inf.
uint64_t encode(DType dtype, double value);

// NaNs are equal: nobody promises their payloads.
bool is_equal(DType dtype, uint64_t a, uint64_t b);

// The element times a coefficient: float32 for all but float64, and one rounding to the dtype.
uint64_t multiplied(DType dtype, uint64_t bits, double coef);
// Clamps as torch does: the limit is rounded to the dtype, and NaN stays.
uint64_t clamped(DType dtype, uint64_t bits, double clip_value);

}  // namespace fastclip::kernel_tests
