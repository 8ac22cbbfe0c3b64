// How lists are cut into work, also those that are larger than any memory here.
#include "cases.h"
#include "lists.h"
#include "norms.h"
#include "numbers.h"

namespace fastclip::kernel_tests {
namespace {

constexpr int kWarps = 8;  // slots of a group

char* address(uint64_t value) { return reinterpret_cast<char*>(value); }

// The plan that is expected, counted one tensor after another.
void expect_plan(Run& run, const std::string& name, const CudaList& list) {
  int64_t slots = 0;
  for (int i = 0; i < list.size; ++i) {
    const TensorEntry& entry = list.entries[i];
    const int64_t size = element_size(entry.dtype);
    const bool is_large = entry.count * size > 16384;
    while (is_large && slots % kWarps != 0) ++slots;
    run.expect(name + ", slot of tensor " + std::to_string(i), entry.first_unit, slots);
    int64_t head = 0;
    while ((reinterpret_cast<uint64_t>(entry.data) + static_cast<uint64_t>(head * size)) % 16 !=
           0) {
      ++head;
    }
    // The first chunk also takes the head.
    int64_t chunks = (entry.count - head) / list.chunk_size;
    if (head + chunks * list.chunk_size < entry.count) ++chunks;
    slots += is_large ? kWarps * chunks : 1;
  }
  run.expect<int64_t>(name + ", groups", list.groups, (slots + kWarps - 1) / kWarps);
  run.expect_true(slots < INT32_MAX, name + ", slots that a table cannot hold");
}

}  // namespace

void plan_chunk_sizes(Run& run) {
  constexpr int64_t kUnit = int64_t{1} << 14;
  const struct {
    int64_t count;
    int64_t chunk_size;
  } sizes[] = {{0, kUnit},
               {1, kUnit},
               {2048 * kUnit, kUnit},
               {2049 * kUnit - 1, kUnit},
               {2049 * kUnit, 2 * kUnit},
               {2 * 2049 * kUnit - 1, 2 * kUnit},
               {2 * 2049 * kUnit, 4 * kUnit},
               {int64_t{1} << 30, 32 * kUnit},
               {int64_t{1} << 31, 64 * kUnit},
               {int64_t{1} << 40, 64 * kUnit}};
  for (const auto& [count, chunk_size] : sizes) {
    // The size follows from the elements of all tensors, not of the longest.
    TensorEntry entries[] = {{address(0x10000), count / 2, -1, DType::kBFloat16},
                             {address(0x10000), count - count / 2, -1, DType::kFloat64}};
    const CudaList list = cuda().plan(entries, 2, nullptr);
    run.expect<int64_t>(std::to_string(count) + " elements, chunk", list.chunk_size, chunk_size);
  }
}

void plan_slots(Run& run) {
  for (const NamedList& named : awkward_lists()) {
    const Gradients gradients(run, named.specs);
    expect_plan(run, named.name, gradients.list);
    run.expect(named.name + ", size", gradients.list.size, gradients.size());
    run.expect(named.name + ", chunk", gradients.list.chunk_size, 1 << 14);
  }
}

void plan_huge(Run& run) {
  constexpr int64_t kHuge = int64_t{1} << 40;
  for (const DType dtype : kAllDTypes) {
    const auto size = static_cast<uint64_t>(element_size(dtype));
    TensorEntry entries[] = {{address(0x10000), 3, -1, dtype},
                             {address(0x10000 + size), kHuge, -1, dtype},
                             {address(0x10000), (int64_t{1} << 31) + 1, -1, dtype},
                             {nullptr, 0, -1, DType::kFloat16},
                             {address(0x10010 - size), kHuge + 1, -1, DType::kFloat64},
                             {address(0x10000), (int64_t{1} << 33) - 1, -1, dtype}};
    entries[4].data = address(0x10008);
    const CudaList list = cuda().plan(entries, 6, nullptr);
    expect_plan(run, "a list of 2^41 elements", list);
    run.expect(std::string("chunk"), list.chunk_size, 1 << 20);
  }
}

// The last chunk of a tensor that begins 2^33 elements before it. The list has only this group, and
// only this chunk has memory.
void offsets_beyond_32_bits(Run& run) {
  constexpr int64_t kChunkSize = 1 << 20, kChunk = 1 << 13, kCount = 5003;
  for (const DType dtype : kAllDTypes) {
    const std::vector<TensorSpec> specs = {{dtype, kCount}};
    Gradients gradients(run, specs), copy(run, specs, {ordinary_value, true, specs});
    const int64_t head = 16 / element_size(dtype) - 1;
    const int64_t before = head + kChunk * kChunkSize;
    const auto far = [&](char* data) {
      return address(reinterpret_cast<uint64_t>(data) -
                     static_cast<uint64_t>(before * element_size(dtype)));
    };
    TensorEntry entry = gradients.list.entries[0];
    entry = {far(entry.data), before + kCount, -kWarps * kChunk, dtype};
    CudaList list = gradients.list;
    list.entries = &entry;
    list.chunk_size = kChunkSize;
    Request request;
    request.max_norm = 0.75;
    request.has_sums = false;
    for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
      request.mode = mode;
      expect_clipped(run, "far away", gradients, request, clip(run, list, request));
      gradients.restore();
    }
    run.expect_success("clamp", cuda().clamp(list, {0.1}, 0, nullptr));
    gradients.expect_each("far away, clamped",
                          [&](int, DType type, uint64_t bits) { return clamped(type, bits, 0.1); });
    char* target = far(copy.list.targets[0]);
    entry.data = far(copy.list.entries[0].data);
    list.targets = &target;
    CudaCoefs coefs = {};
    coefs.value = 0.3;
    coefs.is_float64 = true;
    run.expect_success("scale", cuda().scale(list, coefs, 0, nullptr));
    copy.expect_multiplied("far away, into a target", 0.3);
  }
}

}  // namespace fastclip::kernel_tests
