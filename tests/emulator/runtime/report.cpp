// What went wrong, in words.
#include <cstdio>
#include <cstdlib>

#include "engine.h"

namespace emulator {
namespace {

std::vector<Report>& all_reports() {
  static auto* const only = new std::vector<Report>;
  return *only;
}

}  // namespace

const std::vector<Report>& reports() { return all_reports(); }
void clear_reports() { all_reports().clear(); }

const char* name_of(Fault fault) {
  switch (fault) {
    case Fault::kDeadlock:
      return "deadlock";
    case Fault::kLivelock:
      return "livelock";
    case Fault::kDivergence:
      return "divergence";
    case Fault::kBadLane:
      return "bad lane";
    case Fault::kMisaligned:
      return "misaligned";
    case Fault::kReadOnly:
      return "read-only";
    case Fault::kOutside:
      return "outside";
    case Fault::kOtherDevice:
      return "other device";
    case Fault::kNotCooperative:
      return "not cooperative";
    case Fault::kSharedMemory:
      return "shared memory";
    case Fault::kTrap:
      return "trap";
  }
  return "unknown";
}

const char* name_of(Schedule schedule) {
  switch (schedule) {
    case Schedule::kFifo:
      return "fifo";
    case Schedule::kLifo:
      return "lifo";
    case Schedule::kRandom:
      return "random";
    case Schedule::kPriorities:
      return "priorities";
  }
  return "unknown";
}

namespace runtime {
namespace {

std::string triple(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}

std::string reproduction() {
  return std::string("schedule ") + emulator::name_of(execution().schedule) + ", seed " +
         std::to_string(execution().seed);
}

// Where the threads of one block stand: a line for each place.
class Places {
 public:
  void add(const Fiber& fiber) {
    std::string text = text_of(fiber);
    for (Place& place : places_) {
      if (place.text == text) return place.add(fiber.number);
    }
    places_.push_back({std::move(text), fiber.number, fiber.number, 1});
  }

  std::string text() const {
    std::string all;
    for (const Place& place : places_) {
      all += "    " + std::to_string(place.count) + " threads, " + std::to_string(place.first) +
             " to " + std::to_string(place.last) + ": " + place.text + "\n";
    }
    return all;
  }

 private:
  struct Place {
    std::string text;
    int first;
    int last;
    int count;

    void add(int number) {
      last = number;
      ++count;
    }
  };

  static std::string text_of(const Fiber& fiber) {
    if (fiber.has_ended) return "ended";
    if (!fiber.has_started) return "not started";
    std::string text = fiber.waits == Meeting::kNone ? "running, last seen"
                                                     : std::string("in ") + name_of(fiber.waits);
    if (fiber.place.file != nullptr) {
      text += std::string(" at ") + fiber.place.file + ":" + std::to_string(fiber.place.line);
    }
    const bool is_warp = fiber.waits >= Meeting::kSyncWarp && fiber.waits <= Meeting::kBallot;
    if (is_warp) {
      char mask[32];
      std::snprintf(mask, sizeof(mask), ", mask 0x%08x", fiber.mask);
      text += mask;
    }
    return text;
  }

  std::vector<Place> places_;
};

}  // namespace

const char* name_of(Meeting meeting) {
  static const char* const kNames[] = {
      "nothing",    "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count",
      "__syncwarp", "__shfl_sync",   "__shfl_xor_sync",  "__shfl_up_sync",    "__shfl_down_sync",
      "__any_sync", "__all_sync",    "__ballot_sync",    "grid sync"};
  return kNames[static_cast<int>(meeting)];
}

std::string waiting_threads(const Run& stuck) {
  constexpr int kMaxBlocks = 8;
  std::string text;
  int shown = 0, left_out = 0;
  for (const Block* const block : stuck.blocks) {
    if (block->live == 0) continue;
    if (shown++ >= kMaxBlocks) {
      ++left_out;
      continue;
    }
    Places places;
    for (const Fiber* const fiber : block->fibers) places.add(*fiber);
    text += "  block " + triple(block->fibers[0]->block) + ":\n" + places.text();
  }
  if (left_out > 0) text += "  and " + std::to_string(left_out) + " more blocks\n";
  if (stuck.started < stuck.order.size()) {
    text += "  " + std::to_string(stuck.order.size() - stuck.started) + " blocks not started\n";
  }
  return text;
}

void record(Report report) {
  run().has_failed = true;
  if (execution().aborts) {
    std::fprintf(stderr, "emulator: %s\n", report.text.c_str());
    std::abort();
  }
  all_reports().push_back(std::move(report));
}

void fail(Fault fault, const std::string& what, Place place) {
  Fiber& self = running();
  const std::string kernel = name_of_kernel(run().grid.call->kernel);
  const std::string where = std::string(place.file) + ":" + std::to_string(place.line);
  record({fault,
          std::string(emulator::name_of(fault)) + ": " + what + "\n  at " + where + ", kernel " +
              kernel + ", block " + triple(self.block) + ", thread " + triple(self.thread) + ", " +
              reproduction(),
          kernel, self.block, self.thread, place.file, place.line});
  leave_for(self.context, run().host);
}

void report_deadlock() {
  const std::string kernel = name_of_kernel(run().grid.call->kernel);
  const Fiber* first = nullptr;
  for (const Block* const block : run().blocks) {
    for (const Fiber* const fiber : block->fibers) {
      if (first == nullptr && !fiber->has_ended) first = fiber;
    }
  }
  record({Fault::kDeadlock,
          "deadlock: no thread of kernel " + kernel + " can go on, " + reproduction() + "\n" +
              waiting_threads(run()),
          kernel, first->block, first->thread, first->place.file, first->place.line});
}

}  // namespace runtime
}  // namespace emulator
