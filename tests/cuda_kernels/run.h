// One run of a case: what is checked, in which order of threads, and what came out wrong.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>

#include "cuda_launchers.h"
#include "emulator.h"

namespace fastclip::kernel_tests {

// splitmix64: the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits();
  int64_t below(int64_t limit) { return static_cast<int64_t>(bits() >> 1) % limit; }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }  // in [0, 1)

 private:
  uint64_t state_;
};

// Devices differ in their multiprocessors. The launchers ask a device for them once, so that a
// device must keep its number through the whole program. A case may add devices.
constexpr int kDevices = 3;
constexpr int kMultiprocessors[kDevices] = {2, 1, 4};

class Run {
 public:
  Run(std::string name, emulator::Schedule schedule, uint64_t seed);
  ~Run();
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  uint64_t seed() const { return seed_; }
  int failures() const { return failures_; }
  // Returns a choice that depends only on the seed, and differs for each `use`.
  int64_t pick(int64_t limit, uint64_t use = 0) const {
    return Random(seed_ * 1009 + use).below(limit);
  }

  // Makes the emulated machine that of `device`, to which launches must go until the next call.
  // Device 0 stays current, as it does in torch while a list lies on another device.
  void select(int device);
  int device() const { return device_; }

  void expect_true(bool is_true, const std::string& what);
  template <typename T>
  void expect(const std::string& what, const T& got, const T& wanted) {
    if (is_same(got, wanted)) return;
    std::ostringstream text;
    text.precision(17);
    text << what << ": expected " << wanted << ", got " << got;
    fail(text.str());
  }
  // Expects a value within `tolerance` of `wanted`, relative to it, rounded to float32 if
  // `is_float32`.
  void expect_near(const std::string& what, double got, long double wanted, double tolerance,
                   bool is_float32);
  // Expects the same bits in every run of the case that has this key, whatever the order of
  // threads.
  void expect_as_ever(const std::string& key, uint64_t bits);
  void expect_success(const std::string& what, int status);
  // Expects the status, no report, and no error left for cudaGetLastError.
  void expect_status(const std::string& what, int status, int wanted);
  void fail(const std::string& text);

 private:
  template <typename T>
  static bool is_same(const T& a, const T& b) {
    return a == b || (a != a && b != b);
  }

  std::string name_;
  emulator::Schedule schedule_;
  uint64_t seed_;
  int device_ = 0;
  int failures_ = 0;
};

struct Case {
  const char* name;
  void (*body)(Run&);
};

const CudaLaunchers& cuda();

}  // namespace fastclip::kernel_tests
