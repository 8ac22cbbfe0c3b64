// What fences order, for ThreadSanitizer: whatever a thread knew at a fence goes with every atomic
// that it makes afterwards, to every thread that touches the same atomic and then makes a fence.
#include "engine.h"

namespace emulator::detail {

using namespace runtime;

namespace {

void yield() {
  make_ready(running());
  go_on();
}

}  // namespace

void fence() {
  Fiber& self = running();
  if (kHasThread) {
    for (const Fiber::Atomic atomic : self.atomics) acquire(atomic.address);
    self.atomics.clear();
    if (self.fence == nullptr) self.fence = create_tsan_fiber();
    release(&self.fence_sync);
    acquire_as(self.fence, &self.fence_sync);
  }
  yield();
}

void before_atomic(const volatile void* address) {
  Fiber& self = running();
  count_idle(1, self.place);
  yield();
  if (kHasThread && self.fence != nullptr) {
    release_as(self.fence, const_cast<void*>(address));
  }
}

void after_atomic(const volatile void* address) {
  if (!kHasThread) return;
  std::vector<Fiber::Atomic>& seen = running().atomics;
  // A loop retries the same one.
  if (!seen.empty() && seen.back().address == address) return;
  seen.push_back({const_cast<void*>(address)});
}

}  // namespace emulator::detail
