// Stacks and the switch between them; tells sanitizers about both.
#pragma once

#include <cstddef>

namespace emulator::runtime {

// Returns whether kernels are compiled for ThreadSanitizer. Only context.cpp differs between
// builds.
extern const bool kHasThread;

// Where a fiber, or the host thread that launched it, goes on.
struct Context {
  void* position = nullptr;  // the saved stack pointer
  char* bottom = nullptr;    // of its stack, the lowest address
  size_t size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan_fiber = nullptr;
};

char* allocate_stack(bool has_guard, size_t* size);

// Makes the context start `entry` at its next turn; `number` spreads stacks over cache sets.
void prepare(Context& context, void (*entry)(), unsigned number);
// The host's own context, before it switches away.
void adopt(Context& context);

void switch_to(Context& from, Context& to);
// Never to return to `from`.
[[noreturn]] void leave_for(Context& from, Context& to);
// The first thing that `entry` does.
void arrive();

// What orders memory, for ThreadSanitizer; nothing in other builds.
void acquire(void* sync);
void release(void* sync);
// Do what acquire() and release() do, for another fiber, which does not run.
void acquire_as(void* tsan_fiber, void* sync);
void release_as(void* tsan_fiber, void* sync);
void* create_tsan_fiber();
void destroy_tsan_fiber(void* tsan_fiber);

// What a fiber left poisoned that was not run to its end.
void clean_stack(Context& context);
void poison(void* begin, size_t bytes);
void unpoison(void* begin, size_t bytes);

}  // namespace emulator::runtime
