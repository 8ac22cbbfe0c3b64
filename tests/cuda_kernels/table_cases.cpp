// Tables of every length: in arguments of 4 KB, of 32 KB, and in device memory.
#include "cases.h"
#include "lists.h"
#include "norms.h"
#include "numbers.h"

namespace fastclip::kernel_tests {
namespace {

constexpr int kOldDriver = 12000;  // takes 4 KB of arguments
constexpr int kNewDriver = 12010;  // the first that takes more

enum class Table { kShort, kLong, kDevice };

// Where the rows must lie, by the limits that CUDA documents.
Table table_for(int rows, int driver) {
  if (rows <= 198) return Table::kShort;
  return rows <= 1630 && driver == kNewDriver ? Table::kLong : Table::kDevice;
}

void expect_table(Run& run, const CudaList& list, int rows, int driver) {
  const std::string what = std::to_string(rows) + " rows, driver " + std::to_string(driver);
  const Table table = table_for(rows, driver);
  const int64_t bytes = table == Table::kDevice ? rows * 20 : 0;
  run.expect(what + ", bytes of table", list.table_bytes, bytes);
  const size_t capacity = driver == kNewDriver ? 1630 : 198;
  const size_t writes = table == Table::kDevice ? (rows + capacity - 1) / capacity : 0;
  run.expect(what + ", launches to write it", emulator::launches().size(), writes);
  for (const auto& launch : emulator::launches()) {
    run.expect_true(launch.kernel.find("write_table") != std::string::npos, launch.kernel);
  }
  emulator::clear_launches();
}

void expect_variant(Run& run, int rows, int driver) {
  const char* const names[] = {"ArgumentTable<198>", "ArgumentTable<1630>", "DeviceTable"};
  const char* const name = names[static_cast<int>(table_for(rows, driver))];
  for (const auto& launch : emulator::launches()) {
    run.expect_true(launch.kernel.find(name) != std::string::npos,
                    std::to_string(rows) + " rows: not by " + name + " but by " + launch.kernel);
  }
}

// Another coefficient for each tensor, so that a row in the wrong place shows.
void scale_each(Run& run, int tensors, int driver, bool has_targets) {
  emulator::machine().driver_version = driver;
  const auto specs = tiny_list(tensors);
  GradientOptions options;
  options.is_read_only = has_targets;
  if (has_targets) options.targets = specs;
  emulator::clear_launches();
  const Gradients gradients(run, specs, options);
  const int rows = has_targets ? 2 * tensors : tensors;
  expect_table(run, gradients.list, rows, driver);
  std::vector<double> values;
  for (int i = 0; i < tensors; ++i) values.push_back((i % 1024) / 1024.0);
  const Numbers per_tensor(run, values, false);
  CudaCoefs coefs = {};
  coefs.per_tensor = per_tensor.data();
  run.expect_success("scale", cuda().scale(gradients.list, coefs, 0, nullptr));
  expect_variant(run, rows, driver);
  gradients.expect_each(std::to_string(rows) + " rows", [&](int i, DType dtype, uint64_t bits) {
    return multiplied(dtype, bits, values[static_cast<size_t>(i)]);
  });
}

}  // namespace

void table_lengths(Run& run) {
  for (const int driver : {kOldDriver, kNewDriver}) {
    for (const int tensors : {150, 198, 199, 1630, 1631, 2500}) {
      scale_each(run, tensors, driver, false);
    }
  }
}

void table_targets(Run& run) {
  for (const int driver : {kOldDriver, kNewDriver}) {
    for (const int tensors : {99, 100, 815, 816, 1700}) scale_each(run, tensors, driver, true);
  }
}

void table_clip(Run& run) {
  const int lengths[] = {198, 199, 1631};
  const int driver = run.pick(2) != 0 ? kOldDriver : kNewDriver;
  emulator::machine().driver_version = driver;
  auto specs = tiny_list(lengths[run.seed() % 3] - 2);
  // Large ones at both ends: a search that goes wrong loses them first.
  specs.insert(specs.begin(), {DType::kFloat32, 1500, 4});
  specs.push_back({DType::kBFloat16, 2500, 6});
  Gradients gradients(run, specs);
  Request request;
  request.max_norm = 0.75;
  for (const CudaMode mode : {CudaMode::kFused, CudaMode::kSplit}) {
    request.mode = mode;
    emulator::clear_launches();
    const Outcome outcome = clip(run, gradients.list, request);
    expect_variant(run, gradients.size(), driver);
    expect_clipped(run, std::to_string(specs.size()) + " tensors", gradients, request, outcome);
    gradients.restore();
  }
}

}  // namespace fastclip::kernel_tests
