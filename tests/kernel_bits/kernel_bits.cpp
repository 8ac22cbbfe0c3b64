// Prints the bits of every chunk kernel's result on fixed data, for each instruction set that this
// CPU can run: one line per instruction set, dtype, size and kernel. Two machines must print the
// same lines. kernel_bits [NAME] runs the one instruction set of that name.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/cpu_kernels.h"

using namespace fastclip;

namespace {

uint64_t state = 88172645463325252u;

uint64_t next_random() {  // xorshift64, the same everywhere
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

// Random bit patterns with, in turn, small exponents, any exponent, and inf and NaN among them.
std::vector<char> random_data(DType dtype, int64_t count, int kind) {
  std::vector<char> data(count * element_size(dtype) + 64);
  for (int64_t i = 0; i < count; ++i) {
    const double unit = static_cast<double>(next_random() >> 11) * 0x1p-52 - 1.0;
    uint64_t bits = next_random();
    if (kind == 0) {  // within [-1, 1]
      const float f = static_cast<float>(unit);
      uint32_t u;
      memcpy(&u, &f, 4);
      if (dtype == DType::kFloat64) memcpy(&bits, &unit, 8);
      if (dtype == DType::kFloat32) bits = u;
      if (dtype == DType::kBFloat16) bits = u >> 16;
      if (dtype == DType::kFloat16) bits = (bits & 0x83ff) | ((8 + (bits >> 20) % 7) << 10);
    } else if (kind == 1) {  // any finite value: clear one exponent bit
      if (dtype == DType::kFloat64) bits &= ~(uint64_t{1} << 61);
      if (dtype == DType::kFloat32) bits &= ~(uint64_t{1} << 29);
      if (dtype == DType::kBFloat16) bits &= ~(uint64_t{1} << 13);
      if (dtype == DType::kFloat16) bits &= ~(uint64_t{1} << 13);
    }
    memcpy(&data[i * element_size(dtype)], &bits, element_size(dtype));
  }
  return data;
}

// NaNs are equal as NaNs: their payloads may differ between instruction sets.
uint64_t canonical(double value) {
  if (std::isnan(value)) return UINT64_MAX;
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return bits;
}

uint64_t canonical_element(DType dtype, const char* p) {
  uint64_t bits = 0;
  memcpy(&bits, p, element_size(dtype));
  const uint64_t magnitude_of[] = {0x7fffffff, INT64_MAX, 0x7fff, 0x7fff};
  const uint64_t infinity_of[] = {0x7f800000, 0x7ff0000000000000, 0x7f80, 0x7c00};
  const int i = static_cast<int>(dtype);
  return (bits & magnitude_of[i]) > infinity_of[i] ? UINT64_MAX : bits;
}

uint64_t hash(DType dtype, const std::vector<char>& data, int64_t count) {
  uint64_t h = 1469598103934665603u;
  for (int64_t i = 0; i < count; ++i) {
    h = (h ^ canonical_element(dtype, &data[i * element_size(dtype)])) * 1099511628211u;
  }
  return h;
}

void print_case(const ChunkKernels& k, DType dtype, int64_t count, int kind) {
  const int d = static_cast<int>(dtype);
  const std::vector<char> data = random_data(dtype, count, kind);
  std::printf("dtype %d count %" PRId64 " kind %d:", d, count, kind);
  for (const ReduceKernel reduce : {k.sum_sq[d], k.sum_sq_wide[d], k.abs_sum[d], k.abs_max[d]}) {
    std::printf(" %016" PRIx64, canonical(reduce(data.data(), count)));
  }
  std::printf(" %016" PRIx64, canonical(k.power_sum[d](data.data(), count, 3.0)));
  for (const double coefficient : {0.37, -1.0, 1e-30}) {
    std::vector<char> target(data.size());
    k.scale[d](data.data(), target.data(), count, coefficient);
    std::printf(" %016" PRIx64, hash(dtype, target, count));
  }
  std::vector<char> clamped = data;
  k.clamp[d](clamped.data(), count, 0.25);
  std::printf(" %016" PRIx64 "\n", hash(dtype, clamped, count));
}

void print_all(const ChunkKernels& kernels) {
  state = 88172645463325252u;
  for (int d = 0; d < kDTypes; ++d) {
    for (const int64_t count :
         {0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 1000, 4099, 16384}) {
      for (int kind = 0; kind < 3; ++kind) print_case(kernels, static_cast<DType>(d), count, kind);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !select_kernels(argv[1])) {
    std::fprintf(stderr, "instruction set %s is not runnable here\n", argv[1]);
    return 2;
  }
  std::fprintf(stderr, "instruction set %s\n", active_kernels().name);
  print_all(active_kernels());
}
