// Switches between fibers, by hand on x86-64 and with ucontext elsewhere, and tells sanitizers
// about it.
#include "context.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(EMULATOR_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(EMULATOR_THREAD)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#define EMULATOR_UCONTEXT
#endif
#if defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator::runtime {
namespace {

// Kernel arguments of 32 KB are copied to every thread's stack; sanitizers ask for larger frames.
#if defined(EMULATOR_ADDRESS) || defined(EMULATOR_THREAD)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr size_t kPage = 4096;

Context* leaving = nullptr;

#if !defined(EMULATOR_UCONTEXT)

extern "C" void fastclip_emulator_switch(void** from, void* to);

// Saves what the System V ABI asks a callee to preserve; the caller saves the rest.
asm(R"(
.text
.type fastclip_emulator_switch, @function
fastclip_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastclip_emulator_switch, . - fastclip_emulator_switch
)");

void jump(Context& from, Context& to) { fastclip_emulator_switch(&from.position, to.position); }

void start_at(Context& context, void (*entry)(), size_t offset) {
  auto top = reinterpret_cast<uintptr_t>(context.bottom + context.size - offset) / 16 * 16;
  auto* const words = reinterpret_cast<uintptr_t*>(top);
  words[-1] = 0;  // where `entry` would return to: the end of every stack trace
  words[-2] = reinterpret_cast<uintptr_t>(entry);
  for (int i = 3; i <= 8; ++i) words[-i] = 0;
  context.position = words - 8;
}

#else

// This is about ten times slower: a switch makes two system calls.
void jump(Context& from, Context& to) {
  swapcontext(static_cast<ucontext_t*>(from.position), static_cast<ucontext_t*>(to.position));
}

void start_at(Context& context, void (*entry)(), size_t offset) {
  if (context.position == nullptr) context.position = new ucontext_t;
  auto* const target = static_cast<ucontext_t*>(context.position);
  getcontext(target);
  target->uc_stack.ss_sp = context.bottom;
  target->uc_stack.ss_size = context.size - offset;
  target->uc_link = nullptr;
  makecontext(target, entry, 0);
}

#endif

void start_switch(Context& from, Context& to, bool is_last) {
  leaving = &from;
#if defined(EMULATOR_ADDRESS)
  __sanitizer_start_switch_fiber(is_last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(EMULATOR_THREAD)
  __tsan_switch_to_fiber(to.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  (void)is_last, (void)to;
}

void finish_switch(void* fake_stack) {
#if defined(EMULATOR_ADDRESS)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
  leaving->bottom = const_cast<char*>(static_cast<const char*>(bottom));
  leaving->size = size;
#endif
  (void)fake_stack;
}

}  // namespace

char* allocate_stack(bool has_guard, size_t* size) {
  void* const memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::fprintf(stderr, "emulator: no memory for another stack\n");
    std::abort();
  }
  auto* const bottom = static_cast<char*>(memory);
  const size_t guard = has_guard ? kPage : 0;
  if (has_guard) mprotect(bottom, kPage, PROT_NONE);
  *size = kStackBytes - guard;
  return bottom + guard;
}

void prepare(Context& context, void (*entry)(), unsigned number) {
  // Equal offsets would put the frames of all threads into the same few sets of the caches.
  start_at(context, entry, number % 32 * 128);
}

void adopt(Context& context) {
#if defined(EMULATOR_UCONTEXT)
  if (context.position == nullptr) context.position = new ucontext_t;
#endif
#if defined(EMULATOR_THREAD)
  context.tsan_fiber = __tsan_get_current_fiber();
#endif
  (void)context;
}

void switch_to(Context& from, Context& to) {
  start_switch(from, to, false);
  jump(from, to);
  finish_switch(from.fake_stack);
}

void leave_for(Context& from, Context& to) {
  start_switch(from, to, true);
  jump(from, to);
  __builtin_unreachable();
}

void arrive() { finish_switch(nullptr); }

#if defined(EMULATOR_THREAD)

void acquire(void* sync) { __tsan_acquire(sync); }
void release(void* sync) { __tsan_release(sync); }

void acquire_as(void* tsan_fiber, void* sync) {
  void* const self = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber, __tsan_switch_to_fiber_no_sync);
  __tsan_acquire(sync);
  __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
}

void release_as(void* tsan_fiber, void* sync) {
  void* const self = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber, __tsan_switch_to_fiber_no_sync);
  __tsan_release(sync);
  __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
}

const bool kHasThread = true;

void* create_tsan_fiber() { return __tsan_create_fiber(0); }
void destroy_tsan_fiber(void* tsan_fiber) { __tsan_destroy_fiber(tsan_fiber); }

#else

void acquire(void*) {}
void release(void*) {}
void acquire_as(void*, void*) {}
void release_as(void*, void*) {}
const bool kHasThread = false;

void* create_tsan_fiber() { return nullptr; }
void destroy_tsan_fiber(void*) {}

#endif

#if defined(EMULATOR_ADDRESS)

void poison(void* begin, size_t bytes) { __asan_poison_memory_region(begin, bytes); }
void unpoison(void* begin, size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }

#else

void poison(void*, size_t) {}
void unpoison(void*, size_t) {}

#endif

void clean_stack(Context& context) { unpoison(context.bottom, context.size); }

}  // namespace emulator::runtime
