// Watched memory: bounds, owners, and how many bytes were read and written.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "machine.h"

namespace emulator {

using detail::Access;
using detail::Place;

namespace runtime {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr int kGuardByte = 0xa5;
constexpr size_t kAlignment = 256;  // as cudaMalloc's

// A bit for each byte of a region.
class ByteSet {
 public:
  explicit ByteSet(size_t bytes) : words_((bytes + 63) / 64), bits_(new uint64_t[words_]()) {}
  ~ByteSet() { delete[] bits_; }
  ByteSet(const ByteSet&) = delete;
  ByteSet& operator=(const ByteSet&) = delete;

  void add(size_t first, size_t count) {
    for (size_t i = first; i < first + count;) {
      const size_t here = std::min(first + count - i, 64 - i % 64);
      const uint64_t ones = here == 64 ? ~uint64_t{0} : (uint64_t{1} << here) - 1;
      bits_[i / 64] |= ones << i % 64;
      i += here;
    }
  }
  uint64_t count() const {
    uint64_t sum = 0;
    for (size_t i = 0; i < words_; ++i) {
      sum += static_cast<uint64_t>(__builtin_popcountll(bits_[i]));
    }
    return sum;
  }
  void clear() { std::fill(bits_, bits_ + words_, 0); }

 private:
  size_t words_;
  uint64_t* bits_;
};

struct Region {
  std::string name;
  uintptr_t begin;
  size_t bytes;
  RegionOptions options;
  size_t guard;  // bytes on each side that nobody may touch
  char* memory;  // what allocate() made; null: the caller's
  ByteSet seen_read;
  ByteSet seen_written;
  uint64_t read = 0;
  uint64_t written = 0;
  uint64_t first_read = 0;
  uint64_t first_write = 0;

  Region(const std::string& label, const void* data, size_t size, RegionOptions choices)
      : name(label),
        begin(reinterpret_cast<uintptr_t>(data)),
        bytes(size),
        options(choices),
        guard(0),
        memory(nullptr),
        seen_read(size),
        seen_written(size) {}
  char* data() const { return reinterpret_cast<char*>(begin); }
  uintptr_t end() const { return begin + bytes; }
};

// In the order of their addresses.
std::vector<Region*>& regions() {
  static auto* const only = new std::vector<Region*>;
  return *only;
}

uint64_t accesses = 0;     // to watched memory, of any launch
Region* latest = nullptr;  // that an access met: the next one is likely to meet it again

size_t index_after(uintptr_t address) {
  std::vector<Region*>& all = regions();
  const auto after =
      std::upper_bound(all.begin(), all.end(), address,
                       [](uintptr_t value, const Region* region) { return value < region->begin; });
  return static_cast<size_t>(after - all.begin());
}

Region* add_region(const std::string& name, const void* data, size_t bytes, RegionOptions options) {
  auto* const region = new Region(name, data, bytes, options);
  std::vector<Region*>& all = regions();
  const size_t at = index_after(region->begin);
  const bool overlaps = (at > 0 && all[at - 1]->end() > region->begin) ||
                        (at < all.size() && all[at]->begin < region->end());
  if (overlaps) {
    std::fprintf(stderr, "emulator: %s overlaps memory that is watched\n", name.c_str());
    std::abort();
  }
  all.insert(all.begin() + static_cast<std::ptrdiff_t>(at), region);
  decide_watching();
  return region;
}

Region* region_at(const void* data) {
  for (Region* const region : regions()) {
    if (region->data() == data) return region;
  }
  std::fprintf(stderr, "emulator: %p is not the beginning of watched memory\n", data);
  std::abort();
}

void forget(Region* region) {
  std::vector<Region*>& all = regions();
  all.erase(std::find(all.begin(), all.end(), region));
  delete region;
  latest = nullptr;
  decide_watching();
}

bool free_region(Region* region) {
  char* const memory = region->memory;
  char* const data = region->data();
  const size_t guard = region->guard, bytes = region->bytes;
  unpoison(data - guard, guard);
  unpoison(data + bytes, guard);
  const auto is_guard = [](char byte) { return byte == static_cast<char>(kGuardByte); };
  const bool is_intact = std::all_of(data - guard, data, is_guard) &&
                         std::all_of(data + bytes, data + bytes + guard, is_guard);
  forget(region);
  std::free(memory);
  return is_intact;
}

// "a read of 16 bytes at 0x1000", for the reports.
#define ACCESS_FORMAT "%s of %zu bytes at 0x%zx"
#define ACCESS_VALUES(what) verb((what).access), (what).bytes, (what).begin

struct Accessed {
  uintptr_t begin;
  size_t bytes;
  Access access;
  Place place;
};

const char* verb(Access access) {
  return access == Access::kRead ? "a read" : access == Access::kWrite ? "a store" : "an atomic";
}

// Fails if the access is near the region but not within it.
void require_outside(const Accessed& what, const Region& region) {
  const uintptr_t first = region.begin - region.guard, last = region.end() + region.guard;
  if (what.begin + what.bytes <= first || what.begin >= last) return;
  fail(Fault::kOutside, what.place, ACCESS_FORMAT ", byte %td of %s, which has %zu bytes",
       ACCESS_VALUES(what), static_cast<std::ptrdiff_t>(what.begin - region.begin),
       region.name.c_str(), region.bytes);
}

Region* find_region(const Accessed& what) {
  const auto holds = [&](const Region* region) {
    return what.begin >= region->begin && what.begin + what.bytes <= region->end();
  };
  if (latest != nullptr && holds(latest)) return latest;
  const std::vector<Region*>& all = regions();
  const size_t after = index_after(what.begin);
  if (after > 0 && holds(all[after - 1])) return latest = all[after - 1];
  if (after > 0) require_outside(what, *all[after - 1]);
  if (after < all.size()) require_outside(what, *all[after]);
  if (execution().is_strict) {
    fail(Fault::kOutside, what.place, ACCESS_FORMAT ", which is in no watched memory",
         ACCESS_VALUES(what));
  }
  return nullptr;
}

}  // namespace

// Returns the device that memory belongs to, for the runtime API; -1 if the memory is not watched.
int device_of(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const size_t after = index_after(at);
  if (after == 0 || regions()[after - 1]->end() <= at) return -1;
  return regions()[after - 1]->options.device;
}

void decide_watching() { detail::is_watching = !regions().empty() || execution().is_strict; }

void forget_regions() {
  while (!regions().empty()) {
    Region* const region = regions().back();
    if (region->memory != nullptr) {
      free_region(region);
    } else {
      forget(region);
    }
  }
}

}  // namespace runtime

namespace detail {

using namespace runtime;

bool is_watching = false;

void observe(const volatile void* address, size_t bytes, size_t alignment, Access access,
             Place place) {
  const Accessed what = {reinterpret_cast<uintptr_t>(address), bytes, access, place};
  if (what.begin % alignment != 0) {
    fail(Fault::kMisaligned, place, ACCESS_FORMAT ", which is %zu past a multiple of %zu",
         ACCESS_VALUES(what), what.begin % alignment, alignment);
  }
  Region* const region = find_region(what);
  if (region == nullptr) return;
  const size_t first = what.begin - region->begin;
  if (region->options.device != run().grid.device) {
    fail(Fault::kOtherDevice, place,
         ACCESS_FORMAT ", byte %zu of %s, which is on device %d, by a kernel on device %d",
         ACCESS_VALUES(what), first, region->name.c_str(), region->options.device,
         run().grid.device);
  }
  ++accesses;
  if (access != Access::kWrite) {
    if (region->read == 0) region->first_read = accesses;
    region->read += bytes;
    region->seen_read.add(first, bytes);
  }
  if (access == Access::kRead) return;
  if (region->options.is_read_only) {
    fail(Fault::kReadOnly, place, ACCESS_FORMAT ", byte %zu of %s, which is read-only",
         ACCESS_VALUES(what), first, region->name.c_str());
  }
  if (region->written == 0) region->first_write = accesses;
  region->written += bytes;
  region->seen_written.add(first, bytes);
}

}  // namespace detail

using namespace runtime;

void watch(const std::string& name, void* data, size_t bytes, RegionOptions options) {
  add_region(name, data, bytes, options);
}

void unwatch(const void* data) { forget(region_at(data)); }

void* allocate(const std::string& name, size_t bytes, RegionOptions options, size_t offset) {
  const size_t total = bytes + offset + kAlignment + 2 * kGuardBytes;
  auto* const memory = static_cast<char*>(std::malloc(total));
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory) + kGuardBytes;
  const size_t skipped = (kAlignment - first % kAlignment) % kAlignment + kGuardBytes + offset;
  char* const data = memory + skipped;
  std::fill(memory, memory + total, static_cast<char>(kGuardByte));
  std::fill(data, data + bytes, static_cast<char>(0xff));
  Region* const region = add_region(name, data, bytes, options);
  region->guard = kGuardBytes;
  region->memory = memory;
  poison(data - kGuardBytes, kGuardBytes);
  poison(data + bytes, kGuardBytes);
  return data;
}

bool free(void* data) { return free_region(region_at(data)); }

Traffic traffic(const void* data) {
  const Region& region = *region_at(data);
  return {
      region.read,       region.written,    region.seen_read.count(), region.seen_written.count(),
      region.first_read, region.first_write};
}

void clear_traffic() {
  for (Region* const region : regions()) {
    region->read = region->written = 0;
    region->first_read = region->first_write = 0;
    region->seen_read.clear();
    region->seen_written.clear();
  }
}

}  // namespace emulator
