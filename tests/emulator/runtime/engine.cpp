// Runs the threads of a launch: makes their fibers, starts blocks as others end, and passes the
// turn from thread to thread.
#include "engine.h"

#include <cstdio>
#include <cstdlib>

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulator::runtime {
namespace {

Fiber* current = nullptr;

// To be followed by the switch to its context.
Fiber& take_turn(Fiber* fiber) {
  current = fiber;
  fiber->has_started = true;
  threadIdx = fiber->thread;
  blockIdx = fiber->block;
  return *fiber;
}

// gcc 12's ThreadSanitizer knows at most 8,128 threads at a time.
constexpr size_t kMaxTsanFibers = 7000;
// Linux allows 65,530 mappings, and a stack with a guard page takes two.
constexpr size_t kMaxGuards = 8192;

// Fibers that no launch uses. Stacks are costly to make and stay for the next launch.
class Pool {
 public:
  Fiber* take() {
    if (free_.empty()) return make();
    Fiber* const fiber = free_.back();
    free_.pop_back();
    return fiber;
  }

  void give(Fiber* fiber) {
    if (fiber->has_started && !fiber->has_ended) abandon(*fiber);
    free_.push_back(fiber);
  }

  // ThreadSanitizer takes two blocks that share fibers for ordered. A launch therefore uses every
  // fiber once, up to half of what ThreadSanitizer allows.
  bool may_reuse() const { return !kHasThread || made_ >= kMaxTsanFibers / 2; }

 private:
  Fiber* make() {
    if (kHasThread && made_ >= kMaxTsanFibers) {
      std::fprintf(stderr, "emulator: ThreadSanitizer takes at most %zu threads at a time\n",
                   kMaxTsanFibers);
      std::abort();
    }
    auto* const fiber = new Fiber;
    fiber->context.bottom = allocate_stack(made_ < kMaxGuards, &fiber->context.size);
    fiber->context.tsan_fiber = create_tsan_fiber();
    ++made_;
    return fiber;
  }

  static void abandon(Fiber& fiber) {
    clean_stack(fiber.context);
    // The fiber never leaves its frames, and its accesses come before the next launch.
    release_as(fiber.context.tsan_fiber, &run().end);
    destroy_tsan_fiber(fiber.context.tsan_fiber);
    fiber.context.tsan_fiber = create_tsan_fiber();
  }

  std::vector<Fiber*> free_;
  size_t made_ = 0;
};

Pool& pool() {
  static Pool* const only = new Pool;
  return *only;
}

void end_thread() {
  Fiber& self = running();
  release(&run().end);
  made_progress();
  self.has_ended = true;
  --run().live_threads;
  if (--self.owner->live == 0) run().finished = self.owner;
  if (run().finished != nullptr || run().ready.is_empty()) {
    leave_for(self.context, run().host);
  }
  leave_for(self.context, take_turn(run().ready.pop()).context);
}

void run_thread() {
  arrive();
  acquire(&run().begin);
  const detail::Call& call = *run().grid.call;
  call.run(call.arguments.get());
  end_thread();
}

void prepare_fiber(Fiber& fiber, Block& block, int number, uint3 index) {
  const dim3 size = run().grid.block_size;
  const auto n = static_cast<unsigned>(number);
  fiber.thread = {n % size.x, n / size.x % size.y, n / size.x / size.y};
  fiber.block = index;
  fiber.owner = &block;
  fiber.number = number;
  fiber.has_started = fiber.has_ended = false;
  fiber.waits = Meeting::kNone;
  fiber.place = {};
  fiber.warp = &block.warps[static_cast<size_t>(number / kLanes)];
  fiber.warp->lanes[number % kLanes] = &fiber;
  fiber.atomics.clear();
  prepare(fiber.context, &run_thread, n);
}

void start_block() {
  Run& now = run();
  const dim3 size = now.grid.block_size, grid = now.grid.size;
  const uint64_t number = now.order[now.started++].value;
  const uint3 index = {static_cast<unsigned>(number % grid.x),
                       static_cast<unsigned>(number / grid.x % grid.y),
                       static_cast<unsigned>(number / grid.x / grid.y)};
  auto* const block = new Block;
  const int threads = static_cast<int>(size.x * size.y * size.z);
  block->warps.resize(static_cast<size_t>((threads + kLanes - 1) / kLanes));
  block->live = threads;
  for (int i = 0; i < threads; ++i) {
    Fiber* const fiber = pool().take();
    prepare_fiber(*fiber, *block, i, index);
    block->fibers.push_back(fiber);
    now.ready.push_new(fiber);
  }
  block->arena = take_arena();
  now.blocks.push_back(block);
  now.live_threads += static_cast<uint64_t>(threads);
  ++now.live_blocks;
  release(&now.begin);
}

void give_fibers(Block& block) {
  for (Fiber* const fiber : block.fibers) pool().give(fiber);
  block.fibers.clear();
}

void give_shared_memory(Block& block) {
  if (block.arena != nullptr) give_arena(block.arena);
  block.arena = nullptr;
}

void end_block() {
  Block& block = *run().finished;
  run().finished = nullptr;
  --run().live_blocks;
  if (pool().may_reuse()) give_fibers(block);
  // Two blocks in the same memory would look like a race.
  if (!kHasThread) give_shared_memory(block);
}

void set_up(const Grid& grid) {
  Run& now = run();
  const uint64_t blocks = uint64_t{grid.size.x} * grid.size.y * grid.size.z;
  const Execution& how = execution();
  now.grid = grid;
  blockDim = grid.block_size;
  gridDim = grid.size;
  const uint64_t resident = blocks < grid.resident ? blocks : grid.resident;
  const uint64_t threads = uint64_t{grid.block_size.x} * grid.block_size.y * grid.block_size.z;
  now.ready.reset(how.schedule, how.seed, resident * threads);
  now.order.clear();
  for (uint64_t i = 0; i < blocks; ++i) now.order.push_back({i});
  if (how.schedule == Schedule::kRandom || how.schedule == Schedule::kPriorities) {
    for (size_t i = blocks; i > 1; --i) {
      std::swap(now.order[i - 1], now.order[now.ready.random().below(i)]);
    }
  }
  now.started = 0;
  now.live_blocks = 0;
  now.live_threads = 0;
  now.finished = nullptr;
  now.has_failed = false;
  now.idle = 0;
  now.arrived = 0;
}

void tear_down() {
  Run& now = run();
  for (Block* const block : now.blocks) {
    give_fibers(*block);
    give_shared_memory(*block);
  }
  acquire(&now.end);
  for (Block* const block : now.blocks) delete block;
  now.blocks.clear();
  now.grid.call = nullptr;
}

}  // namespace

Run& run() {
  static Run* const only = new Run;
  return *only;
}

Fiber& running() { return *current; }

bool run_grid(const Grid& grid) {
  Run& now = run();
  set_up(grid);
  adopt(now.host);
  while (now.started < now.order.size() && now.started < grid.resident) start_block();
  while (!now.has_failed) {
    if (now.finished != nullptr) {
      end_block();
      if (now.started < now.order.size()) start_block();
    }
    if (now.live_blocks == 0) break;
    if (now.ready.is_empty()) {
      report_deadlock();
      break;
    }
    switch_to(now.host, take_turn(now.ready.pop()).context);
    if (now.has_failed) report_failure();
  }
  const bool has_failed = now.has_failed;
  tear_down();
  return !has_failed;
}

void go_on() {
  Fiber& self = running();
  if (run().ready.is_empty()) {
    switch_to(self.context, run().host);
    return;
  }
  Fiber& next = take_turn(run().ready.pop());
  if (&next != &self) switch_to(self.context, next.context);
}

void make_ready(Fiber& fiber) {
  fiber.waits = Meeting::kNone;
  run().ready.push(&fiber);
}

void made_progress() { run().idle = 0; }

void count_idle(uint64_t weight, Place place) {
  // This is long enough for every thread to have had many turns under a random schedule.
  constexpr uint64_t kBase = 100'000'000, kPerThread = 1'000'000;
  run().idle += weight;
  if (run().idle > kBase + kPerThread * run().live_threads) {
    fail(Fault::kLivelock, place, "threads only sleep and retry");
  }
}

}  // namespace emulator::runtime
