// Where threads wait for each other.
#include <string_view>

#include "engine.h"

namespace emulator::runtime {
namespace {

void begin_wait(Fiber& self, Meeting meeting, bool predicate, Place place) {
  self.waits = meeting;
  self.predicate = predicate;
  self.place = place;
}

bool is_same_place(const Fiber& a, const Fiber& b) {
  return a.waits == b.waits && a.place.line == b.place.line &&
         std::string_view(a.place.file) == b.place.file;
}

void require_same_place(const Fiber& a, const Fiber& b, const char* who) {
  if (is_same_place(a, b)) return;
  fail(Fault::kDivergence, b.place,
       "%s arrive at different places: thread %d in %s at %s:%d, thread %d in %s at %s:%d", who,
       a.number, name_of(a.waits), a.place.file, a.place.line, b.number, name_of(b.waits),
       b.place.file, b.place.line);
}

void complete_block(Block& block) {
  for (const Fiber* const fiber : block.fibers) {
    require_same_place(*block.fibers[0], *fiber, "the threads of a block");
  }
  const auto count = static_cast<uint64_t>(block.count);
  block.arrived = block.count = 0;
  block.phase ^= 1;
  made_progress();
  for (Fiber* const fiber : block.fibers) {
    fiber->result = count;
    make_ready(*fiber);
  }
}

void require_same_mask(const Fiber& a, const Fiber& b) {
  require_same_place(a, b, "the lanes of a warp");
  if (a.mask == b.mask) return;
  fail(Fault::kDivergence, b.place,
       "lanes give different masks to %s: thread %d 0x%08x, thread %d 0x%08x", name_of(b.waits),
       a.number, a.mask, b.number, b.mask);
}

bool is_shuffle(Meeting meeting) {
  return meeting == Meeting::kShuffle || meeting == Meeting::kShuffleXor ||
         meeting == Meeting::kShuffleUp || meeting == Meeting::kShuffleDown;
}

void give_results(Warp& warp, uint32_t mask) {
  uint32_t ballot = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) != 0 && warp.lanes[lane]->predicate) ballot |= 1u << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Fiber& fiber = *warp.lanes[lane];
    fiber.result = ballot;
    if (!is_shuffle(fiber.waits)) continue;
    if (fiber.source < 0 || fiber.source >= kLanes || (mask >> fiber.source & 1) == 0) {
      fail(Fault::kBadLane, fiber.place,
           "thread %d reads lane %d, which is not in the mask 0x%08x, in %s", fiber.number,
           fiber.source, mask, name_of(fiber.waits));
    }
    fiber.result = warp.lanes[fiber.source]->bits;
  }
}

void complete_warp(Fiber& last, uint32_t mask) {
  Warp& warp = *last.warp;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) != 0) require_same_mask(last, *warp.lanes[lane]);
  }
  give_results(warp, mask);
  if (last.waits == Meeting::kSyncWarp) warp.phase ^= 1;
  warp.waiting &= ~mask;
  made_progress();
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) != 0) make_ready(*warp.lanes[lane]);
  }
}

uint64_t meet_lanes(Meeting meeting, uint32_t mask, bool predicate, Place place) {
  Fiber& self = running();
  const uint32_t bit = 1u << self.number % kLanes;
  begin_wait(self, meeting, predicate, place);
  self.mask = mask;
  if ((mask & bit) == 0) {
    fail(Fault::kBadLane, place, "the mask 0x%08x does not name its caller, lane %d", mask,
         self.number % kLanes);
  }
  self.warp->waiting |= bit;
  if ((self.warp->waiting & mask) == mask) complete_warp(self, mask);
  go_on();
  return self.result;
}

void complete_grid() {
  Run& now = run();
  now.arrived = 0;
  now.grid_phase ^= 1;
  made_progress();
  for (Block* const block : now.blocks) {
    for (Fiber* const fiber : block->fibers) make_ready(*fiber);
  }
}

}  // namespace
}  // namespace emulator::runtime

namespace emulator::detail {

using namespace runtime;

int meet_block(Meeting meeting, bool predicate, Place place) {
  Fiber& self = running();
  Block& block = *self.owner;
  void* const sync = &block.sync[block.phase];
  begin_wait(self, meeting, predicate, place);
  release(sync);
  block.count += predicate ? 1 : 0;
  if (++block.arrived == static_cast<int>(block.fibers.size())) complete_block(block);
  go_on();
  acquire(sync);
  return static_cast<int>(self.result);
}

uint64_t meet_shuffle(Meeting meeting, uint32_t mask, uint64_t bits, int source, Place place) {
  running().bits = bits;
  running().source = source;
  return meet_lanes(meeting, mask, false, place);
}

uint32_t meet_vote(Meeting meeting, uint32_t mask, bool predicate, Place place) {
  return static_cast<uint32_t>(meet_lanes(meeting, mask, predicate, place));
}

void meet_warp(uint32_t mask, Place place) {
  void* const sync = &running().warp->sync[running().warp->phase];
  release(sync);
  meet_lanes(Meeting::kSyncWarp, mask, false, place);
  acquire(sync);
}

void meet_grid(Ordering ordering, Place place) {
  if (!is_cooperative()) {
    fail(Fault::kNotCooperative, place, "a grid barrier in a launch that is not cooperative");
  }
  Run& now = run();
  Fiber& self = running();
  void* const sync = &now.grid_sync[now.grid_phase];
  const bool is_ordering = ordering == Ordering::kAcquireRelease;
  begin_wait(self, Meeting::kGridSync, false, place);
  if (is_ordering) release(sync);
  if (++now.arrived == uint64_t{now.order.size()} * self.owner->fibers.size()) complete_grid();
  go_on();
  if (is_ordering) acquire(sync);
}

bool is_cooperative() { return run().grid.is_cooperative; }

int lane() { return running().number % kLanes; }

void sleep(Place place) {
  constexpr uint64_t kWeight = 100;
  running().place = place;
  count_idle(kWeight, place);
  run().ready.push_last(&running());
  go_on();
}

void trap(Place place) { fail(Fault::kTrap, place, "__trap()"); }

}  // namespace emulator::detail

namespace emulator {

void relaxed_grid_sync(detail::Place place) {
  detail::meet_grid(detail::Ordering::kRelaxed, place);
}

}  // namespace emulator
