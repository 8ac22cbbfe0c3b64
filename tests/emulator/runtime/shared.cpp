// Shared memory of blocks: an arena each, cut into one slot for each FASTCLIP_SHARED.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "engine.h"

namespace emulator::runtime {
namespace {

constexpr size_t kSharedBytes = 48 << 10;  // what a block may have without asking for more
constexpr size_t kGap = 64;                // between slots; poisoned for AddressSanitizer
constexpr size_t kArenaBytes = 2 * kSharedBytes;

struct Arena {
  char* memory;
};

std::vector<Arena>& free_arenas() {
  static auto* const only = new std::vector<Arena>;
  return *only;
}

// This does not use memset, which ThreadSanitizer would see and take for stores of the running
// thread.
void fill(char* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(data)[i] = static_cast<char>(0xff);
}

}  // namespace

char* take_arena() {
  char* memory;
  if (free_arenas().empty()) {
    void* const fresh = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fresh == MAP_FAILED) {
      std::fprintf(stderr, "emulator: no memory for another block\n");
      std::abort();
    }
    memory = static_cast<char*>(fresh);
  } else {
    memory = free_arenas().back().memory;
    free_arenas().pop_back();
  }
  poison(memory, kArenaBytes);
  return memory;
}

void give_arena(char* arena) { free_arenas().push_back({arena}); }

}  // namespace emulator::runtime

namespace emulator::detail {

using namespace runtime;

void* shared_memory(const void* key, size_t bytes, size_t alignment, Place place) {
  Block& block = *running().owner;
  for (int i = 0; i < block.slots_used; ++i) {
    if (block.slots[i].key == key) return block.slots[i].data;
  }
  block.shared_bytes += (bytes + alignment - 1) / alignment * alignment;
  if (block.shared_bytes > kSharedBytes || block.slots_used == kMaxSlots) {
    fail(Fault::kSharedMemory, place, "a block asks for %zu bytes of %zu, in %d variables of %d",
         block.shared_bytes, kSharedBytes, block.slots_used + 1, kMaxSlots);
  }
  const size_t first = (block.arena_used + kGap + alignment - 1) / alignment * alignment;
  block.arena_used = first + bytes;
  char* const data = block.arena + first;
  unpoison(data, bytes);
  fill(data, bytes);
  block.slots[block.slots_used++] = {key, data};
  return data;
}

}  // namespace emulator::detail
