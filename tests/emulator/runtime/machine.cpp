// The CUDA runtime API, as far as it is simulated; the toolkit's headers declare it.
#include "machine.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace emulator {
namespace runtime {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int this_device = 0;

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorCooperativeLaunchTooLarge, "cudaErrorCooperativeLaunchTooLarge",
     "too many blocks in cooperative launch"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

using Streams = std::map<cudaStream_t, Stream>;

Streams& streams() {
  static auto* const only = new Streams;
  return *only;
}

// What has been loaded: a kernel, on a device. Several host threads may ask.
struct Loaded {
  std::mutex mutex;
  std::set<std::pair<const void*, int>> codes;
};

Loaded& loaded() {
  static auto* const only = new Loaded;
  return *only;
}

// Devices that were used. A launch comes to the one that is current.
struct Contexts {
  std::mutex mutex;
  std::set<int> devices;
};

Contexts& contexts() {
  static auto* const only = new Contexts;
  return *only;
}

void use(int device) {
  const std::lock_guard<std::mutex> lock(contexts().mutex);
  contexts().devices.insert(device);
}

}  // namespace

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

int current_device() { return this_device; }

Stream* find_stream(cudaStream_t stream) {
  const auto found = streams().find(stream);
  return found == streams().end() ? nullptr : &found->second;
}

void forget_streams() { streams().clear(); }

cudaError_t load_code(const void* kernel) {
  if (machine().code_error != cudaSuccess) return machine().code_error;
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  const bool captures = std::any_of(streams().begin(), streams().end(), [](const auto& each) {
    return each.second.status != cudaStreamCaptureStatusNone;
  });
  const std::lock_guard<std::mutex> lock(loaded().mutex);
  const std::pair<const void*, int> code = {kernel, current_device()};
  if (captures && !machine().loads_in_capture && loaded().codes.count(code) == 0) {
    return cudaErrorStreamCaptureUnsupported;
  }
  loaded().codes.insert(code);
  use(current_device());
  return cudaSuccess;
}

void forget_devices() {
  loaded().codes.clear();
  contexts().devices.clear();
}

void forget_last_error() {
  last_error = cudaSuccess;
  this_device = 0;
}

}  // namespace runtime

using namespace runtime;

Machine& machine() {
  static auto* const only = new Machine;
  return *only;
}

Execution& execution() {
  static auto* const only = new Execution;
  return *only;
}

void reset() {
  machine() = {};
  execution() = {};
  clear_reports();
  forget_launches();
  forget_graphs();
  forget_streams();
  forget_devices();
  forget_regions();
  forget_last_error();
}

bool has_context(int device) {
  const std::lock_guard<std::mutex> lock(contexts().mutex);
  return contexts().devices.count(device) > 0;
}

void make_current(int device) { this_device = device; }

cudaStream_t make_stream(int device) {
  static uintptr_t next = 0x1000;
  const auto stream = reinterpret_cast<cudaStream_t>(next += 0x10);
  streams()[stream].device = device;
  return stream;
}

void set_stream_device(cudaStream_t stream, int device) { streams()[stream].device = device; }

void set_capture_status(cudaStream_t stream, cudaStreamCaptureStatus status) {
  streams()[stream].status = status;
}

}  // namespace emulator

using emulator::machine;
using emulator::runtime::note;

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  for (const auto& known : emulator::runtime::kErrors) {
    if (known.error == error) return known.name;
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  for (const auto& known : emulator::runtime::kErrors) {
    if (known.error == error) return known.text;
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() { return emulator::runtime::last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::runtime::last_error;
  emulator::runtime::last_error = cudaSuccess;
  return error;
}

// Zero where no driver is installed, and no error.
cudaError_t cudaDriverGetVersion(int* version) {
  if (version == nullptr) return note(cudaErrorInvalidValue);
  *version = machine().driver_version;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  if (version == nullptr) return note(cudaErrorInvalidValue);
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  if (count == nullptr) return note(cudaErrorInvalidValue);
  *count = machine().device_error == cudaSuccess ? machine().devices : 0;
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  return machine().devices > 0 ? cudaSuccess : note(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int* device) {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  if (device == nullptr) return note(cudaErrorInvalidValue);
  *device = emulator::runtime::this_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  if (device < 0 || device >= machine().devices) return note(cudaErrorInvalidDevice);
  emulator::runtime::this_device = device;
  emulator::runtime::use(device);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  if (device < 0 || device >= machine().devices) return note(cudaErrorInvalidDevice);
  if (value == nullptr) return note(cudaErrorInvalidValue);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = machine().multiprocessors;
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      *value = machine().has_cooperative_launch ? 1 : 0;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = machine().compute_capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = machine().compute_capability % 10;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = emulator::runtime::kMaxBlockSize;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = emulator::runtime::kLanes;
      return cudaSuccess;
    default:
      return note(cudaErrorInvalidValue);
  }
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int block_size, size_t) {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  if (blocks == nullptr || block_size <= 0) return note(cudaErrorInvalidValue);
  const cudaError_t loaded = emulator::runtime::load_code(kernel);
  if (loaded != cudaSuccess) return note(loaded);
  const bool fits = block_size <= emulator::runtime::kMaxBlockSize;
  *blocks = fits ? machine().blocks_per_multiprocessor : 0;
  return cudaSuccess;
}

// What the toolkit's template over the kernel's type calls.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* kernel,
                                                                   int block_size, size_t bytes,
                                                                   unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, block_size, bytes);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  if (attributes == nullptr) return note(cudaErrorInvalidValue);
  const cudaError_t loaded = emulator::runtime::load_code(kernel);
  if (loaded != cudaSuccess) return note(loaded);
  *attributes = {};
  attributes->maxThreadsPerBlock = emulator::runtime::kMaxBlockSize;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = machine().compute_capability;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  if (attributes == nullptr) return note(cudaErrorInvalidValue);
  const int device = emulator::runtime::device_of(pointer);
  *attributes = {};
  attributes->type = cudaMemoryTypeDevice;
  attributes->device = device < 0 ? 0 : device;
  attributes->devicePointer = const_cast<void*>(pointer);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  if (machine().capture_error != cudaSuccess) return note(machine().capture_error);
  if (status == nullptr) return note(cudaErrorInvalidValue);
  const auto* const known = emulator::runtime::find_stream(stream);
  *status = known != nullptr ? known->status : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

// Waiting is an error while a stream captures: it ends the capture.
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  auto* const known = emulator::runtime::find_stream(stream);
  if (known == nullptr || known->status == cudaStreamCaptureStatusNone) return cudaSuccess;
  known->status = cudaStreamCaptureStatusInvalidated;
  return note(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaDeviceSynchronize() {
  if (machine().device_error != cudaSuccess) return note(machine().device_error);
  for (auto& [stream, known] : emulator::runtime::streams()) {
    if (known.status == cudaStreamCaptureStatusNone) continue;
    known.status = cudaStreamCaptureStatusInvalidated;
    return note(cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

}  // extern "C"
