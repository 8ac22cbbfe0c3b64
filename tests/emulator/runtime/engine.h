// A launch while it runs: a fiber for each CUDA thread, its warps and blocks.
#pragma once

#include <string>
#include <vector>

#include "../emulator.h"
#include "context.h"
#include "queue.h"

namespace emulator::runtime {

using detail::Meeting;
using detail::Place;

constexpr int kLanes = 32;
constexpr int kMaxBlockSize = 1024;
constexpr int kMaxSlots = 32;

struct Block;
struct Warp;

struct Fiber {
  uint3 thread;
  uint3 block;
  Context context;
  Block* owner = nullptr;
  Warp* warp = nullptr;
  int number = 0;  // within the block, x first
  int64_t priority = 0;
  bool has_started = false;
  bool has_ended = false;

  Meeting waits = Meeting::kNone;  // kNone: it runs, or could
  Place place = {};                // of the latest wait
  uint32_t mask = 0;
  bool predicate = false;
  int source = 0;
  uint64_t bits = 0;
  uint64_t result = 0;

  // For ThreadSanitizer: a stand-in that knows what the thread knew at its last fence, and the
  // atomics that it has touched since.
  struct Atomic {
    void* address;
  };
  void* fence = nullptr;
  char fence_sync = 0;
  std::vector<Atomic> atomics;
};

struct Warp {
  Fiber* lanes[kLanes] = {};
  uint32_t waiting = 0;
  // Two in turn: a thread that has left a barrier and arrives at the next one releases into the
  // other. Disjoint masks share them, which may hide a race between the halves of a warp.
  char sync[2] = {};
  int phase = 0;
};

struct Slot {
  const void* key;
  char* data;
};

struct Block {
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  int live = 0;
  int arrived = 0;
  int count = 0;  // of those that arrived with a true predicate
  char sync[2] = {};
  int phase = 0;
  char* arena = nullptr;
  size_t arena_used = 0;
  size_t shared_bytes = 0;
  // This is no vector, because the thread that first asks would allocate it.
  Slot slots[kMaxSlots];
  int slots_used = 0;
};

struct Grid {
  const detail::Call* call = nullptr;
  dim3 size;
  dim3 block_size;
  bool is_cooperative = false;
  uint64_t resident = 0;  // blocks alive at a time
  int device = 0;
};

struct BlockNumber {
  uint64_t value;
};

// What a thread has to say when it gives its launch up. No strings: a fiber that is left for good
// runs no destructors.
struct Failure {
  Fault fault;
  Place place;
  uint3 block;
  uint3 thread;
  char text[512];
};

struct Run {
  Grid grid;
  Context host;
  Queue<Fiber> ready;
  std::vector<BlockNumber> order;
  size_t started = 0;
  std::vector<Block*> blocks;  // those that were started
  int live_blocks = 0;
  uint64_t live_threads = 0;
  Block* finished = nullptr;  // whose last thread has just ended
  bool has_failed = false;
  Failure failure;
  uint64_t idle = 0;
  uint64_t arrived = 0;  // at the grid's barrier
  char grid_sync[2] = {};
  int grid_phase = 0;
  char begin = 0;
  char end = 0;
};

Run& run();
// The fiber of the thread that runs now.
Fiber& running();

// Runs all blocks; false after a fault.
bool run_grid(const Grid& grid);

// Lets another fiber run. The caller waits, or has put itself into the queue.
void go_on();
void make_ready(Fiber& fiber);
void made_progress();
// Counts what may go on for ever without bringing the launch any further.
void count_idle(uint64_t weight, Place place);

// Leaves the launch from a thread of it. The text is a printf format, without the place.
[[noreturn, gnu::format(printf, 3, 4)]] void fail(Fault fault, Place place, const char* text, ...);
// Makes a report of the failure, or of the fact that all threads wait. Called by the host.
void report_failure();
void report_deadlock();

char* take_arena();
void give_arena(char* arena);

std::string name_of_kernel(const void* function);
const char* name_of(Meeting meeting);

}  // namespace emulator::runtime
