// Launches: what a driver refuses, what a capture keeps, and the record of all of them.
#include <deque>
#include <map>
#include <mutex>

#include "machine.h"

namespace emulator {
namespace runtime {
namespace {

constexpr size_t kArgumentBytes = 4096;  // on every driver
constexpr size_t kLongArgumentBytes = 32764;
constexpr int kLongArgumentsDriver = 12010;

struct Kept {
  detail::Call call;
  Grid grid;
};

struct State {
  std::mutex one_launch;
  std::vector<LaunchRecord> records;
  std::map<uint64_t, std::deque<Kept>> graphs;
  uint64_t last_graph = 0;
  int failing = 0;  // 1: the next launch
  cudaError_t failure = cudaSuccess;
};

State& state() {
  static auto* const only = new State;
  return *only;
}

bool is_cooperative(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) return attribute.val.cooperative != 0;
  }
  return false;
}

uint64_t resident_blocks() {
  const int blocks = machine().multiprocessors * machine().blocks_per_multiprocessor;
  return blocks > 0 ? static_cast<uint64_t>(blocks) : 0;
}

cudaError_t check_configuration(const cudaLaunchConfig_t& config) {
  constexpr uint64_t kMaxGrid = 0x7fffffff, kMaxGridYz = 0xffff, kMaxBlockZ = 64;
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool fits = threads > 0 && threads <= kMaxBlockSize && block.z <= kMaxBlockZ &&
                    grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= kMaxGrid &&
                    grid.y <= kMaxGridYz && grid.z <= kMaxGridYz;
  if (!fits) return cudaErrorInvalidConfiguration;
  // extern __shared__ is not emulated.
  return config.dynamicSmemBytes == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t check_cooperative(const cudaLaunchConfig_t& config) {
  if (!machine().has_cooperative_launch) return cudaErrorNotSupported;
  if (machine().cooperative_error != cudaSuccess) return machine().cooperative_error;
  const uint64_t blocks = uint64_t{config.gridDim.x} * config.gridDim.y * config.gridDim.z;
  return blocks <= resident_blocks() ? cudaSuccess : cudaErrorCooperativeLaunchTooLarge;
}

cudaError_t refusal(const cudaLaunchConfig_t& config, const detail::Call& call) {
  if (machine().device_error != cudaSuccess) return machine().device_error;
  const cudaError_t loaded = load_code(call.kernel);
  if (loaded != cudaSuccess) return loaded;
  const cudaError_t status = check_configuration(config);
  if (status != cudaSuccess) return status;
  const bool is_long = machine().driver_version >= kLongArgumentsDriver;
  if (call.argument_bytes > (is_long ? kLongArgumentBytes : kArgumentBytes)) {
    return cudaErrorInvalidValue;
  }
  const Stream* const stream = find_stream(config.stream);
  if (stream != nullptr && stream->device >= 0 && stream->device != current_device()) {
    return cudaErrorInvalidResourceHandle;
  }
  if (stream != nullptr && stream->status == cudaStreamCaptureStatusInvalidated) {
    return cudaErrorStreamCaptureInvalidated;
  }
  if (state().failing > 0 && --state().failing == 0) return state().failure;
  return is_cooperative(config) ? check_cooperative(config) : cudaSuccess;
}

cudaError_t run_now(const Kept& kept) {
  Grid grid = kept.grid;
  grid.call = &kept.call;
  decide_watching();
  return run_grid(grid) ? cudaSuccess : cudaErrorLaunchFailure;
}

cudaError_t keep_or_run(const cudaLaunchConfig_t& config, const Kept& kept, bool* is_captured) {
  const Stream* const stream = find_stream(config.stream);
  *is_captured = stream != nullptr && stream->keeps_launches;
  if (!*is_captured) return run_now(kept);
  state().graphs[stream->graph].push_back(kept);
  return cudaSuccess;
}

}  // namespace

void forget_launches() {
  state().records.clear();
  state().failing = 0;
}

void forget_graphs() { state().graphs.clear(); }

}  // namespace runtime

namespace detail {

using namespace runtime;

cudaError_t launch(const cudaLaunchConfig_t* config, const Call& call) {
  if (config == nullptr) return note(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(state().one_launch);
  const bool cooperates = runtime::is_cooperative(*config);
  const uint64_t resident = resident_blocks();
  const Kept kept = {call,
                     {nullptr, config->gridDim, config->blockDim, cooperates,
                      resident > 0 ? resident : 1, current_device()}};
  bool is_captured = false;
  cudaError_t status = refusal(*config, call);
  if (status == cudaSuccess) status = keep_or_run(*config, kept, &is_captured);
  state().records.push_back({name_of_kernel(call.kernel), call.kernel, config->gridDim,
                             config->blockDim, call.argument_bytes, current_device(),
                             config->stream, cooperates, is_captured, status});
  return note(status);
}

}  // namespace detail

using namespace runtime;

void fail_launch(int n, cudaError_t error) {
  state().failing = n;
  state().failure = error;
}

const std::vector<LaunchRecord>& launches() { return state().records; }
void clear_launches() { state().records.clear(); }

void begin_capture(cudaStream_t stream) {
  set_capture_status(stream, cudaStreamCaptureStatusActive);
  Stream& known = *find_stream(stream);
  known.keeps_launches = true;
  known.graph = ++state().last_graph;
}

Graph end_capture(cudaStream_t stream) {
  set_capture_status(stream, cudaStreamCaptureStatusNone);
  Stream& known = *find_stream(stream);
  known.keeps_launches = false;
  return {static_cast<int>(state().graphs[known.graph].size()), known.graph};
}

cudaError_t replay(const Graph& graph) {
  const std::lock_guard<std::mutex> lock(state().one_launch);
  for (const Kept& kept : state().graphs[graph.id]) {
    const cudaError_t status = run_now(kept);
    if (status != cudaSuccess) return note(status);
  }
  return cudaSuccess;
}

}  // namespace emulator
