// What the emulated device functions call: implemented in ../../runtime, which is compiled without
// sanitizers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "driver_types.h"
#include "vector_types.h"

namespace emulator::detail {

// A place in a kernel's source. As a default argument, here() is the caller's place.
struct Place {
  const char* file;
  int line;

  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Meeting : uint8_t {
  kNone,
  kSyncThreads,
  kSyncThreadsOr,
  kSyncThreadsAnd,
  kSyncThreadsCount,
  kSyncWarp,
  kShuffle,
  kShuffleXor,
  kShuffleUp,
  kShuffleDown,
  kAny,
  kAll,
  kBallot,
  kGridSync,
};

enum class Ordering : uint8_t { kRelaxed, kAcquireRelease };

// The number of threads whose predicate holds.
int meet_block(Meeting meeting, bool predicate, Place place);
// The bits of `source`, a lane of `mask`.
uint64_t meet_shuffle(Meeting meeting, uint32_t mask, uint64_t bits, int source, Place place);
// The lanes of `mask` whose predicate holds.
uint32_t meet_vote(Meeting meeting, uint32_t mask, bool predicate, Place place);
void meet_warp(uint32_t mask, Place place);
void meet_grid(Ordering ordering, Place place);
bool is_cooperative();

// Lane within the warp; threads are numbered x first.
int lane();
void sleep(Place place);
void fence();
// Called around an atomic on `address`: lets other threads run first, and carries what fences
// order.
void before_atomic(const volatile void* address);
void after_atomic(const volatile void* address);

void* shared_memory(const void* key, size_t bytes, size_t alignment, Place place);

enum class Access : uint8_t { kRead, kWrite, kAtomic };

// Returns whether accesses have to be observed even when they are aligned.
extern bool is_watching;
void observe(const volatile void* address, size_t bytes, size_t alignment, Access access,
             Place place);
[[noreturn]] void trap(Place place);

// A kernel with its arguments, ready to be called by every thread.
struct Call {
  const void* kernel;
  std::shared_ptr<const void> arguments;
  void (*run)(const void* arguments);
  size_t argument_bytes;
};

cudaError_t launch(const cudaLaunchConfig_t* config, const Call& call);

}  // namespace emulator::detail
