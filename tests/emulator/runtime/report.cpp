// What went wrong, in words.
#include <cstdarg>
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

// Where the threads of one block stand: a line for each place.
class Places {
 public:
  void add(const Fiber& fiber) {
    std::string text = text_of(fiber);
    for (Place& place : places_) {
      if (place.text == text) return place.add(fiber.number);
    }
    places_.push_back({std::move(text), {}});
    places_.back().add(fiber.number);
  }

  std::string text() const {
    std::string all;
    for (const Place& place : places_) {
      all += "\n    threads " + place.numbers() + ": " + place.text;
    }
    return all;
  }

 private:
  struct Place {
    struct Range {
      int first;
      int last;
    };
    std::string text;
    std::vector<Range> ranges;

    void add(int number) {
      if (!ranges.empty() && ranges.back().last == number - 1) {
        ranges.back().last = number;
      } else {
        ranges.push_back({number, number});
      }
    }
    std::string numbers() const {
      std::string list;
      for (const Range& range : ranges) {
        if (!list.empty()) list += ", ";
        list += std::to_string(range.first);
        if (range.last > range.first) list += "-" + std::to_string(range.last);
      }
      return list;
    }
  };

  static std::string text_of(const Fiber& fiber) {
    if (fiber.has_ended) return "ended";
    if (!fiber.has_started) return "not started";
    std::string text =
        fiber.waits == Meeting::kNone ? "running" : std::string("in ") + name_of(fiber.waits);
    if (fiber.place.file != nullptr) {
      text += fiber.waits == Meeting::kNone ? ", last seen at " : " at ";
      text += std::string(fiber.place.file) + ":" + std::to_string(fiber.place.line);
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
    text += "\n  block " + triple(block->fibers[0]->block) + ":" + places.text();
  }
  if (left_out > 0) text += "\n  and " + std::to_string(left_out) + " more blocks";
  if (stuck.started < stuck.order.size()) {
    text += "\n  " + std::to_string(stuck.order.size() - stuck.started) + " blocks not started";
  }
  return text;
}

void record(Report report) {
  report.kernel = name_of_kernel(run().grid.call->kernel);
  report.text += "\n  in " + report.kernel + ", schedule " +
                 emulator::name_of(execution().schedule) + ", seed " +
                 std::to_string(execution().seed);
  if (execution().aborts) {
    std::fprintf(stderr, "emulator: %s\n", report.text.c_str());
    std::abort();
  }
  all_reports().push_back(std::move(report));
}

}  // namespace

const char* name_of(Meeting meeting) {
  static const char* const kNames[] = {
      "nothing",    "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count",
      "__syncwarp", "__shfl_sync",   "__shfl_xor_sync",  "__shfl_up_sync",    "__shfl_down_sync",
      "__any_sync", "__all_sync",    "__ballot_sync",    "grid sync"};
  return kNames[static_cast<int>(meeting)];
}

void fail(Fault fault, Place place, const char* text, ...) {
  Run& now = run();
  Fiber& self = running();
  Failure& failure = now.failure;
  failure.fault = fault;
  failure.place = place;
  failure.block = self.block;
  failure.thread = self.thread;
  va_list values;
  va_start(values, text);
  std::vsnprintf(failure.text, sizeof(failure.text), text, values);
  va_end(values);
  now.has_failed = true;
  release(&now.end);
  leave_for(self.context, now.host);
}

void report_failure() {
  acquire(&run().end);
  const Failure& failure = run().failure;
  std::string text = std::string(emulator::name_of(failure.fault)) + ": " + failure.text +
                     "\n  at " + failure.place.file + ":" + std::to_string(failure.place.line) +
                     ", block " + triple(failure.block) + ", thread " + triple(failure.thread);
  if (failure.fault == Fault::kLivelock) text += waiting_threads(run());
  record({failure.fault, std::move(text), "", failure.block, failure.thread, failure.place.file,
          failure.place.line});
}

void report_deadlock() {
  const Fiber* first = nullptr;
  for (const Block* const block : run().blocks) {
    for (const Fiber* const fiber : block->fibers) {
      if (first == nullptr && !fiber->has_ended) first = fiber;
    }
  }
  run().has_failed = true;
  record({Fault::kDeadlock, "deadlock: no thread can go on" + waiting_threads(run()), "",
          first->block, first->thread, first->place.file, first->place.line});
}

}  // namespace runtime
}  // namespace emulator
