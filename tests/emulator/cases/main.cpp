// main NAME[,NAME...] SEEDS [SCHEDULE]: runs cases under the schedule, or under all, with seeds 0,
// 1, ... A line for each run: the case, the schedule, the seed, and "right", "wrong" or "fault"
// with its kind; the report follows.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>

#include "case.h"

namespace {

using Cases = std::map<std::string, bool (*)()>;

Cases& all_cases() {
  static Cases cases;
  return cases;
}

void run(const std::string& name, emulator::Schedule schedule, int seed) {
  emulator::reset();
  emulator::execution().schedule = schedule;
  emulator::execution().seed = static_cast<uint64_t>(seed);
  const bool is_right = all_cases().at(name)();
  std::printf("%s %s %d ", name.c_str(), emulator::name_of(schedule), seed);
  if (emulator::reports().empty()) {
    std::printf("%s\n", is_right ? "right" : "wrong");
  } else {
    const emulator::Report& report = emulator::reports().front();
    std::printf("fault %s\n%s\n", emulator::name_of(report.fault), report.text.c_str());
  }
  std::fflush(stdout);
}

}  // namespace

namespace cases {

Case::Case(const char* name, bool (*run)()) { all_cases()[name] = run; }

bool is_true(bool condition, const char* text, int line) {
  if (!condition) std::printf("line %d: %s\n", line, text);
  return condition;
}

}  // namespace cases

int main(int argc, char** argv) {
  if (argc < 3) {
    for (const auto& [name, run] : all_cases()) std::printf("%s\n", name.c_str());
    return 2;
  }
  std::istringstream names(argv[1]);
  for (std::string name; std::getline(names, name, ',');) {
    for (const emulator::Schedule schedule : emulator::kSchedules) {
      if (argc > 3 && std::string(emulator::name_of(schedule)) != argv[3]) continue;
      for (int seed = 0; seed < std::atoi(argv[2]); ++seed) run(name, schedule, seed);
    }
  }
  return 0;
}
