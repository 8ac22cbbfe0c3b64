// The host's side of the launchers: devices, grids, plans and the table that the binding is given.
#include "launchers.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "../gpu_work.h"

namespace fastclip {
namespace device {

OnDevice::OnDevice(int device) : status_(cudaGetDevice(&saved_)) {
  if (status_ == cudaSuccess && saved_ != device) {
    status_ = cudaSetDevice(device);
  } else {
    saved_ = -1;
  }
  take_error(status_);
}

OnDevice::~OnDevice() {
  if (saved_ >= 0) take_error(cudaSetDevice(saved_));
}

cudaError_t take_error(cudaError_t status) {
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

cudaError_t resident_blocks(const void* kernel, int* blocks) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return take_error(status);
  const std::lock_guard<std::mutex> lock(mutex);
  int& cached = known[{kernel, device}];
  if (cached == 0) {
    int multiprocessors = 0, each = 0;
    status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (status == cudaSuccess) {
      status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kBlockSize, 0);
    }
    if (status != cudaSuccess) return take_error(status);
    cached = std::max(1, multiprocessors * each);
  }
  *blocks = cached;
  return cudaSuccess;
}

cudaError_t grid_size(const void* kernel, int groups, int* blocks) {
  const cudaError_t status = resident_blocks(kernel, blocks);
  if (status == cudaSuccess) *blocks = std::max(1, std::min(*blocks, groups));
  return status;
}

bool takes_long_arguments() {
  int version = 0;
  return take_error(cudaDriverGetVersion(&version)) == cudaSuccess && version >= 12010;
}

CudaList plan_list(TensorEntry* entries, int64_t size, char* const* targets) {
  const Slots slots = assign_slots(entries, size);
  CudaList list{};
  list.entries = entries;
  list.targets = targets;
  list.size = static_cast<int32_t>(size);
  list.chunk_size = slots.chunk_size;
  list.groups = slots.groups;
  const int64_t rows = targets != nullptr ? 2 * size : size;
  if (rows > kShortTable && !(rows <= kLongTable && takes_long_arguments())) {
    list.table_bytes = rows * kTableRowBytes;
  }
  return list;
}

namespace {

// Runs launch() with the device current.
template <typename Launch>
int on_device(int device, Launch launch) {
  const OnDevice current(device);
  return current.status() != cudaSuccess ? current.status() : launch();
}

int write_table(const CudaList& list, int device, void* stream) {
  return on_device(device,
                   [&] { return launch_write_table(list, static_cast<cudaStream_t>(stream)); });
}

int clip(const CudaList& list, const CudaSums& sums, const CudaResult& result, CudaMode mode,
         int device, void* stream) {
  return on_device(device, [&] {
    auto* const queue = static_cast<cudaStream_t>(stream);
    if (mode == CudaMode::kFused) return launch_fused(list, sums, result, queue);
    const cudaError_t status = launch_reduce(list, sums, queue);
    return status != cudaSuccess ? status : launch_finish_and_scale(list, sums, result, queue);
  });
}

int reduce(const CudaList& list, const CudaSums& sums, int device, void* stream) {
  return on_device(device,
                   [&] { return launch_reduce(list, sums, static_cast<cudaStream_t>(stream)); });
}

int finish(const CudaList& list, const CudaSums& sums, const CudaResult& result, int device,
           void* stream) {
  return on_device(
      device, [&] { return launch_finish(list, sums, result, static_cast<cudaStream_t>(stream)); });
}

int scale(const CudaList& list, const CudaCoefs& coefs, int device, void* stream) {
  return on_device(device,
                   [&] { return launch_scale(list, coefs, static_cast<cudaStream_t>(stream)); });
}

int clamp(const CudaList& list, const CudaClamp& clamp, int device, void* stream) {
  return on_device(device,
                   [&] { return launch_clamp(list, clamp, static_cast<cudaStream_t>(stream)); });
}

int check(int device) {
  return on_device(device, [] { return check_code(); });
}

// Any error counts as yes: asking is an error on the default stream while another one is captured.
bool is_capturing(int device, void* stream) {
  const OnDevice current(device);
  if (current.status() != cudaSuccess) return true;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusActive;
  const auto status = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &capture);
  return take_error(status) != cudaSuccess || capture != cudaStreamCaptureStatusNone;
}

const char* name(int status) { return cudaGetErrorName(static_cast<cudaError_t>(status)); }
const char* reason(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int driver_version() {
  int version = 0;
  take_error(cudaDriverGetVersion(&version));
  return version;
}

const char* advice(int status) {
  switch (status) {
    case cudaErrorInsufficientDriver:
      if (driver_version() == 0) return "install the NVIDIA driver: none was found";
      return "update the NVIDIA driver, or rebuild fastclip with a CUDA toolkit that it supports";
    case cudaErrorNoDevice:
      return "see whether nvidia-smi finds a GPU and CUDA_VISIBLE_DEVICES names one";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidDeviceFunction:
      return "rebuild fastclip with TORCH_CUDA_ARCH_LIST set to the GPU's compute capability";
    default:
      return "an earlier kernel may be what failed: CUDA_LAUNCH_BLOCKING=1 shows which";
  }
}

int runtime_version() {
  int version = 0;
  take_error(cudaRuntimeGetVersion(&version));
  return version;
}

constexpr CudaLaunchers kLaunchers = {
    plan_list, write_table,  clip, reduce, finish, scale,          clamp,
    check,     is_capturing, name, reason, advice, driver_version, runtime_version};

}  // namespace
}  // namespace device

const CudaLaunchers* cuda_launchers() { return &device::kLaunchers; }

}  // namespace fastclip
