// What Python tests set and ask of the emulator inside the extension, by ctypes
// (tests/support/emulated_native.py).
#include <ATen/ATen.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "binding/accelerator.h"
#include "cpu_kernels.h"
#include "cuda_launchers.h"
#include "emulator.h"

namespace fastclip {

// The CPU kernels, for lists that lie on the CPU in part; the baseline is enough.
const ChunkKernels* const* runnable_kernels(int* size) {
  static const ChunkKernels* const kTables[] = {&kBaselineKernels};
  *size = 1;
  return kTables;
}
const ChunkKernels& active_kernels() { return kBaselineKernels; }
bool select_kernels(const char* name) { return std::strcmp(name, kBaselineKernels.name) == 0; }

namespace accelerator {
namespace {

std::map<const void*, int>& places() {
  static std::map<const void*, int> known;
  return known;
}
std::map<int, void*>& streams() {
  static std::map<int, void*> known;
  return known;
}

// The memory that a graph writes is kept, as in the memory pool that torch gives a graph.
std::vector<at::Tensor>& kept() {
  static std::vector<at::Tensor> tensors;
  return tensors;
}

// The binding's own memory that is watched. A tensor may outlive a reset, which forgets it.
std::set<const void*>& watched() {
  static std::set<const void*> known;
  return known;
}
bool& is_capturing() {
  static bool value = false;
  return value;
}
bool& is_counting() {
  static bool value = false;
  return value;
}

}  // namespace

int place_of(const void* data) {
  const auto found = places().find(data);
  return found == places().end() ? 0 : found->second;
}

at::Tensor place(const at::Tensor& tensor, int device) {
  void* const data = tensor.mutable_data_ptr();
  // With one device there is nothing to confuse, and watching memory is slow.
  if (tensor.nbytes() == 0 || (emulator::machine().devices == 1 && !is_counting())) {
    if (is_capturing()) kept().push_back(tensor);
    return tensor;
  }
  places()[data] = device;
  if (device != kOnCpu) {
    emulator::watch("workspace", data, tensor.nbytes(), {false, device});
    watched().insert(data);
  }
  const auto forget = [tensor](void* gone) {
    if (watched().erase(gone) > 0) emulator::unwatch(gone);
    places().erase(gone);
  };
  const at::Tensor placed = at::from_blob(data, tensor.sizes(), forget, tensor.options());
  if (is_capturing() || is_counting()) kept().push_back(placed);
  return placed;
}

void make_current(int device) { emulator::make_current(device); }

int current() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

void* stream_of(int device) {
  void*& stream = streams()[device];
  if (stream == nullptr) stream = emulator::make_stream(device);
  return stream;
}

}  // namespace accelerator
}  // namespace fastclip

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulated_reset() {
  fastclip::accelerator::watched().clear();
  emulator::reset();
  fastclip::accelerator::kept().clear();
  fastclip::accelerator::places().clear();
  fastclip::accelerator::streams().clear();
  fastclip::accelerator::is_capturing() = false;
  fastclip::accelerator::is_counting() = false;
}

EXPORT void emulated_set_machine(int devices, int multiprocessors, int driver_version,
                                 int has_cooperative_launch) {
  emulator::Machine& machine = emulator::machine();
  machine.devices = devices;
  machine.multiprocessors = multiprocessors;
  machine.driver_version = driver_version;
  machine.has_cooperative_launch = has_cooperative_launch != 0;
}
EXPORT void emulated_set_errors(int device_error, int cooperative_error, int code_error) {
  emulator::Machine& machine = emulator::machine();
  machine.device_error = static_cast<cudaError_t>(device_error);
  machine.cooperative_error = static_cast<cudaError_t>(cooperative_error);
  machine.code_error = static_cast<cudaError_t>(code_error);
}
EXPORT void emulated_set_schedule(int schedule, uint64_t seed) {
  emulator::execution().schedule = emulator::kSchedules[schedule];
  emulator::execution().seed = seed;
}
EXPORT void emulated_fail_launch(int n, int error) {
  emulator::fail_launch(n, static_cast<cudaError_t>(error));
}

// `device` -1 is the CPU. GPU memory that is placed is watched: no other device may touch it.
EXPORT void emulated_place(void* data, uint64_t bytes, int device) {
  fastclip::accelerator::places()[data] = device;
  if (device >= 0) emulator::watch("a placed tensor", data, bytes, {false, device});
}
EXPORT void emulated_watch(void* data, uint64_t bytes) {
  emulator::watch("a watched tensor", data, bytes);
}
// Bytes read, written, read at least once, written at least once.
EXPORT void emulated_traffic(const void* data, uint64_t* counts) {
  const emulator::Traffic traffic = emulator::traffic(data);
  counts[0] = traffic.read;
  counts[1] = traffic.written;
  counts[2] = traffic.unique_read;
  counts[3] = traffic.unique_written;
}
// From this call on, all memory that the binding allocates is kept and watched.
EXPORT void emulated_count_workspace() { fastclip::accelerator::is_counting() = true; }
EXPORT void emulated_workspace_traffic(uint64_t* counts) {
  for (int i = 0; i < 4; ++i) counts[i] = 0;
  for (const at::Tensor& tensor : fastclip::accelerator::kept()) {
    uint64_t own[4] = {};
    if (tensor.nbytes() > 0) emulated_traffic(tensor.const_data_ptr(), own);
    for (int i = 0; i < 4; ++i) counts[i] += own[i];
  }
}

// How a list of float32 tensors at 16-byte boundaries would be cut: groups, chunk size, bytes of
// the table in device memory.
EXPORT void emulated_plan(const int64_t* counts, int64_t size, int64_t* result) {
  std::vector<fastclip::TensorEntry> entries(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    entries[static_cast<size_t>(i)] = {nullptr, counts[i], 0, fastclip::DType::kFloat32};
  }
  const fastclip::CudaList list = fastclip::cuda_launchers()->plan(entries.data(), size, nullptr);
  result[0] = list.groups;
  result[1] = list.chunk_size;
  result[2] = list.table_bytes;
}

EXPORT void emulated_clear() {
  emulator::clear_traffic();
  emulator::clear_launches();
  emulator::clear_reports();
}

EXPORT int emulated_reports() { return static_cast<int>(emulator::reports().size()); }
EXPORT const char* emulated_report(int i) { return emulator::reports()[i].text.c_str(); }
EXPORT int emulated_launches() { return static_cast<int>(emulator::launches().size()); }
EXPORT const char* emulated_launch_kernel(int i) { return emulator::launches()[i].kernel.c_str(); }
EXPORT int emulated_launch_device(int i) { return emulator::launches()[i].device; }
EXPORT int emulated_launch_is_cooperative(int i) {
  return emulator::launches()[i].is_cooperative ? 1 : 0;
}

EXPORT void emulated_begin_capture() {
  fastclip::accelerator::is_capturing() = true;
  emulator::begin_capture(static_cast<cudaStream_t>(fastclip::accelerator::stream_of(0)));
}
EXPORT uint64_t emulated_end_capture(int* launches) {
  fastclip::accelerator::is_capturing() = false;
  const emulator::Graph graph =
      emulator::end_capture(static_cast<cudaStream_t>(fastclip::accelerator::stream_of(0)));
  *launches = graph.launches;
  return graph.id;
}
EXPORT int emulated_replay(uint64_t id, int launches) {
  return static_cast<int>(emulator::replay({launches, id}));
}
EXPORT int emulated_last_error() { return static_cast<int>(cudaGetLastError()); }
EXPORT int emulated_current_device() {
  int device = -1;
  cudaGetDevice(&device);
  return device;
}
EXPORT void emulated_use_device(int device) { cudaSetDevice(device); }
EXPORT int emulated_has_context(int device) { return emulator::has_context(device) ? 1 : 0; }
EXPORT int emulated_default_driver() { return emulator::machine().driver_version; }
