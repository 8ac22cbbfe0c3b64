// Bytes of gradients read and written, and launches: what the kernels are for.
#include "cases.h"
#include "lists.h"
#include "norms.h"

namespace fastclip::kernel_tests {
namespace {

void expect_traffic(Run& run, const std::string& what, const Gradients& gradients, int64_t reads,
                    int64_t writes) {
  const emulator::Traffic traffic = gradients.traffic();
  const int64_t bytes = gradients.bytes();
  run.expect<int64_t>(what + ", bytes read", traffic.read, reads * bytes);
  run.expect<int64_t>(what + ", bytes written", traffic.written, writes * bytes);
  // Expects that each byte was touched as often as any other.
  run.expect<int64_t>(what + ", different bytes read", traffic.unique_read, bytes);
  run.expect<int64_t>(what + ", different bytes written", traffic.unique_written,
                      writes > 0 ? bytes : 0);
  emulator::clear_traffic();
}

void expect_launches(Run& run, const std::string& what, size_t wanted) {
  run.expect(what + ", launches", emulator::launches().size(), wanted);
  emulator::clear_launches();
}

void clip_and_count(Run& run, double max_norm, int64_t reads, int64_t writes) {
  const NamedList& named = awkward_list(run);
  Gradients gradients(run, named.specs);
  Request request;
  request.norm_type = run.seed() / 4 % 2 != 0 ? 1 : 2;
  request.max_norm = max_norm;
  request.mode = CudaMode::kFused;
  clip(run, gradients.list, request);
  expect_launches(run, named.name + ", fused", 1);
  expect_traffic(run, named.name + ", fused", gradients, reads, writes);
  gradients.restore();
  request.mode = CudaMode::kSplit;
  clip(run, gradients.list, request);
  expect_launches(run, named.name + ", split", 2);
  expect_traffic(run, named.name + ", split", gradients, reads, writes);
}

}  // namespace

void count_not_clipped(Run& run) { clip_and_count(run, 1e9, 1, 0); }
void count_clipped(Run& run) { clip_and_count(run, 0.75, 2, 1); }

void count_clamp(Run& run) {
  Gradients gradients(run, awkward_list(run).specs);
  // Magnitudes lie between 2^-8 and 4.
  run.expect_success("clamp", cuda().clamp(gradients.list, {0x1p-9}, 0, nullptr));
  expect_launches(run, "clamp", 1);
  expect_traffic(run, "all of it clamped", gradients, 1, 1);
  gradients.restore();
  run.expect_success("clamp", cuda().clamp(gradients.list, {4}, 0, nullptr));
  expect_traffic(run, "none of it clamped", gradients, 1, 0);
}

// Only what changes is written: a vector of 16 bytes, or an element of a head or a tail.
void count_clamp_of_few(Run& run) {
  const auto specs = run.seed() % 2 != 0 ? head_list() : mixed_list();
  Gradients gradients(run, specs, {[](Random& random, int, int64_t) { return random.uniform(); }});
  int64_t wanted = 0;
  for (int tensor = 0; tensor < gradients.size(); ++tensor) {
    const auto [dtype, count, offset] = gradients.spec(tensor);
    if (count == 0) continue;
    const int64_t size = element_size(dtype), begin = static_cast<int64_t>(offset);
    const int64_t index = run.pick(count, static_cast<uint64_t>(tensor));
    gradients.set(tensor, index, -2);
    const int64_t vector = (begin + index * size) / 16;
    const bool is_whole = vector * 16 >= begin && vector * 16 + 16 <= begin + count * size;
    wanted += is_whole ? 16 : size;
  }
  run.expect_success("clamp", cuda().clamp(gradients.list, {1}, 0, nullptr));
  run.expect<int64_t>("bytes written", gradients.traffic().written, wanted);
  run.expect<int64_t>("bytes read", gradients.traffic().read, gradients.bytes());
}

// Multiples are written for all elements, in range or not, unless inv_scale is 1.
void count_unscaled_clamp(Run& run) {
  Gradients gradients(run, awkward_list(run).specs);
  for (const double inv_scale : {0.5, 1.0}) {
    const Numbers scalar(run, {inv_scale}, false);
    const CudaClamp clamp = {4, static_cast<const float*>(scalar.data()), nullptr};
    run.expect_success("clamp", cuda().clamp(gradients.list, clamp, 0, nullptr));
    expect_launches(run, "clamp", 1);
    expect_traffic(run, "inv_scale " + std::to_string(inv_scale), gradients, 1, inv_scale != 1);
    gradients.restore();
  }
}

void count_scale(Run& run) {
  Gradients gradients(run, awkward_list(run).specs);
  CudaCoefs coefs = {};
  for (const double coef : {1.0, 0.5}) {
    coefs.value = coef;
    run.expect_success("scale", cuda().scale(gradients.list, coefs, 0, nullptr));
    expect_launches(run, "scale", 1);
    const emulator::Traffic traffic = gradients.traffic();
    const int64_t wanted = coef < 1 ? gradients.bytes() : 0;
    run.expect<int64_t>("bytes read by scale", traffic.read, wanted);
    run.expect<int64_t>("bytes written by scale", traffic.written, wanted);
    run.expect<int64_t>("different ones", traffic.unique_written, wanted);
  }
}

// A chunk is read again only if its squares left float32's range: not if all of it is zero, nor
// because elements are small while others are not.
void count_rescue(Run& run) {
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16};
  const DType dtype = dtypes[run.seed() % 2];
  // Whole vectors: single elements are summed in float64 at once.
  const std::vector<TensorSpec> specs = {
      {dtype, 48}, {dtype, 9000}, {dtype, 0}, {dtype, 1504}, {dtype, 8304}};
  Request request;
  request.max_norm = kInf;
  for (const double value : {0.0, -0.0, 0x1p-49, 0x1p60, 1e-30}) {
    const Gradients gradients(run, specs, {[&](Random&, int, int64_t i) {
                                return i % 9 == 0 ? value : value * 0x1p-40;
                              }});
    clip(run, gradients.list, request);
    const int64_t times = value == 1e-30 ? 2 : 1;
    run.expect<int64_t>("bytes read, values of " + std::to_string(value), gradients.traffic().read,
                        times * gradients.bytes());
  }
}

// What was read last is written first, because it is most likely still in a cache.
void count_backwards(Run& run) {
  const DType dtype = kAllDTypes[run.seed() % kDTypes];
  // A chunk each. A block of this device takes every second one.
  run.select(1);
  constexpr int kBlocks = kMultiprocessors[1] * 2;
  const std::vector<TensorSpec> specs(7, {dtype, 20'000 / element_size(dtype)});
  for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
    Gradients gradients(run, specs);
    Request request;
    request.max_norm = 0.75;
    request.mode = mode;
    clip(run, gradients.list, request);
    run.expect<int64_t>("blocks", emulator::launches().back().grid.x, kBlocks);
    for (int tensor = kBlocks; tensor < gradients.size(); ++tensor) {
      const emulator::Traffic before = gradients.traffic(tensor - kBlocks);
      const emulator::Traffic after = gradients.traffic(tensor);
      run.expect_true(before.first_read < after.first_read, "not read in the order of the list");
      run.expect_true(before.first_write > after.first_write, "not written in the reverse order");
    }
  }
}

}  // namespace fastclip::kernel_tests
