#include "run.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <utility>

namespace fastclip::kernel_tests {

uint64_t Random::bits() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

Run::Run(std::string name, emulator::Schedule schedule, uint64_t seed)
    : name_(std::move(name)), schedule_(schedule), seed_(seed) {
  emulator::reset();
  emulator::machine().devices = kDevices;
  emulator::execution().schedule = schedule;
  emulator::execution().seed = seed;
  emulator::execution().is_strict = true;
  select(0);
}

Run::~Run() { emulator::reset(); }

void Run::select(int device) {
  device_ = device;
  emulator::machine().multiprocessors = kMultiprocessors[device % kDevices];
}

void Run::fail(const std::string& text) {
  constexpr int kShown = 5;  // what comes after them says little more
  if (++failures_ > kShown) return;
  std::printf("%s, schedule %s, seed %d: %s\n", name_.c_str(), emulator::name_of(schedule_),
              static_cast<int>(seed_), text.c_str());
  std::fflush(stdout);
}

void Run::expect_true(bool is_true, const std::string& what) {
  if (!is_true) fail(what);
}

void Run::expect_near(const std::string& what, double got, long double wanted, double tolerance,
                      bool is_float32) {
  const double rounded =
      is_float32 ? static_cast<double>(static_cast<float>(wanted)) : static_cast<double>(wanted);
  if (!std::isfinite(rounded) || !std::isfinite(got)) return expect(what, got, rounded);
  // Below the normal numbers, rounding is off by half of the smallest one.
  const double smallest = is_float32 ? std::numeric_limits<float>::denorm_min()
                                     : std::numeric_limits<double>::denorm_min();
  const long double bound = tolerance * fabsl(wanted) + smallest;
  if (fabsl(got - wanted) > bound) expect(what, got, rounded);
}

void Run::expect_as_ever(const std::string& key, uint64_t bits) {
  static auto* const known = new std::map<std::pair<std::string, std::string>, uint64_t>;
  const auto [found, is_new] = known->try_emplace({name_, key}, bits);
  if (!is_new && found->second != bits) fail(key + ": other bits than in an earlier run");
}

void Run::expect_success(const std::string& what, int status) {
  expect_status(what, status, cudaSuccess);
}

void Run::expect_status(const std::string& what, int status, int wanted) {
  for (const emulator::Report& report : emulator::reports()) fail(what + ": " + report.text);
  if (status != wanted) {
    fail(what + ": expected " + cuda().name(wanted) + ", got " + cuda().name(status));
  }
  emulator::clear_reports();
  expect_true(cudaGetLastError() == cudaSuccess, what + ": left its error behind");
}

const CudaLaunchers& cuda() { return *cuda_launchers(); }

}  // namespace fastclip::kernel_tests
