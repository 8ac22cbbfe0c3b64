// The runtime API as the machine is set, and launches as a driver refuses, keeps and records them.
#include <cooperative_groups.h>

#include <string>

#include "case.h"

namespace {

using emulator::machine;

__global__ void add(int* sum, int value) {
  if (threadIdx.x == 0) atomicAdd(sum, value);
}

__global__ void add_after_barrier(int* sum) {
  cooperative_groups::this_grid().sync();
  if (threadIdx.x == 0) atomicAdd(sum, 1);
}

template <int kBytes>
struct Table {
  char bytes[kBytes];
};

template <typename T>
__global__ void take_table(const __grid_constant__ T table, int* sum) {
  if (threadIdx.x == 0) atomicAdd(sum, table.bytes[sizeof(T) - 1]);
}

bool run_devices() {
  machine().devices = 2;
  machine().compute_capability = 86;
  int value = -1;
  CASES_CHECK(cudaGetDeviceCount(&value) == cudaSuccess && value == 2);
  CASES_CHECK(cudaSetDevice(1) == cudaSuccess && cudaGetDevice(&value) == cudaSuccess);
  CASES_CHECK(value == 1);
  CASES_CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice);
  CASES_CHECK(cudaPeekAtLastError() == cudaErrorInvalidDevice);
  CASES_CHECK(cudaGetDevice(&value) == cudaSuccess);  // a success does not clear it
  CASES_CHECK(cudaGetLastError() == cudaErrorInvalidDevice && cudaGetLastError() == cudaSuccess);
  CASES_CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 1) == cudaSuccess);
  CASES_CHECK(value == 8);
  CASES_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&value, &add, 256, 0) == cudaSuccess);
  CASES_CHECK(value == machine().blocks_per_multiprocessor);
  CASES_CHECK(std::string(cudaGetErrorName(cudaErrorNotSupported)) == "cudaErrorNotSupported");
  int sum = 0;
  cases::Shape shape;
  shape.stream = emulator::make_stream(0);
  CASES_CHECK(cases::launch(&add, shape, &sum, 1) == cudaErrorInvalidResourceHandle);
  shape.stream = emulator::make_stream(1);
  CASES_CHECK(cases::launch(&add, shape, &sum, 1) == cudaSuccess && sum == 1);
  CASES_CHECK(emulator::launches().back().device == 1);
  return true;
}

bool run_loading() {
  machine().loads_in_capture = false;
  int blocks = 0, sum = 0;
  const cudaStream_t stream = emulator::make_stream(0);
  emulator::begin_capture(stream);
  cases::Shape shape;
  shape.stream = stream;
  CASES_CHECK(cases::launch(&add, shape, &sum, 1) == cudaErrorStreamCaptureUnsupported);
  CASES_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, &add, 256, 0) ==
              cudaErrorStreamCaptureUnsupported);
  emulator::end_capture(stream);
  CASES_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, &add, 256, 0) == cudaSuccess);
  emulator::begin_capture(stream);
  CASES_CHECK(cases::launch(&add, shape, &sum, 1) == cudaSuccess);
  CASES_CHECK(emulator::end_capture(stream).launches == 1 && sum == 0);
  return true;
}

bool run_no_device() {
  int value = 7, sum = 0;
  for (const cudaError_t error : {cudaErrorNoDevice, cudaErrorInsufficientDriver}) {
    machine().device_error = error;
    CASES_CHECK(cudaGetDeviceCount(&value) == error && value == 0);
    CASES_CHECK(cudaGetDevice(&value) == error && cudaSetDevice(0) == error);
    CASES_CHECK(cases::launch(&add, {}, &sum, 1) == error && sum == 0);
    CASES_CHECK(cudaGetLastError() == error);
  }
  machine().driver_version = 0;
  CASES_CHECK(cudaDriverGetVersion(&value) == cudaSuccess && value == 0);
  return true;
}

cudaError_t launch_cooperative(int blocks, int* sum) {
  return cases::launch(&add_after_barrier, {blocks, 32, true}, sum);
}

bool run_cooperative() {
  machine().multiprocessors = 3;
  machine().blocks_per_multiprocessor = 2;
  int sum = 0;
  CASES_CHECK(launch_cooperative(6, &sum) == cudaSuccess && sum == 6);
  CASES_CHECK(launch_cooperative(7, &sum) == cudaErrorCooperativeLaunchTooLarge && sum == 6);
  machine().cooperative_error = cudaErrorNotSupported;
  CASES_CHECK(launch_cooperative(1, &sum) == cudaErrorNotSupported && sum == 6);
  machine().cooperative_error = cudaSuccess;
  machine().has_cooperative_launch = false;
  CASES_CHECK(launch_cooperative(1, &sum) == cudaErrorNotSupported && sum == 6);
  CASES_CHECK(cases::launch(&add, {7}, &sum, 1) == cudaSuccess && sum == 13);
  CASES_CHECK(cudaGetLastError() == cudaErrorNotSupported);
  CASES_CHECK(emulator::launches()[0].is_cooperative && !emulator::launches()[4].is_cooperative);
  return true;
}

bool run_arguments() {
  int sum = 0;
  const auto launch_table = [&](auto table) {
    table = {};
    table.bytes[sizeof(table) - 1] = 1;
    const cudaError_t status = cases::launch(&take_table<decltype(table)>, {}, table, &sum);
    return status;
  };
  machine().driver_version = 12000;
  CASES_CHECK(launch_table(Table<4088>()) == cudaSuccess && sum == 1);
  CASES_CHECK(emulator::launches().back().argument_bytes == 4096);
  CASES_CHECK(launch_table(Table<4089>()) == cudaErrorInvalidValue && sum == 1);
  machine().driver_version = 12010;
  CASES_CHECK(launch_table(Table<4089>()) == cudaSuccess && sum == 2);
  CASES_CHECK(launch_table(Table<32752>()) == cudaSuccess && sum == 3);
  CASES_CHECK(launch_table(Table<32764>()) == cudaErrorInvalidValue && sum == 3);
  return true;
}

bool run_capture() {
  int sum = 0;
  cases::Shape shape;
  shape.stream = emulator::make_stream(0);
  cudaStreamCaptureStatus status;
  CASES_CHECK(cudaStreamIsCapturing(shape.stream, &status) == cudaSuccess);
  CASES_CHECK(status == cudaStreamCaptureStatusNone);
  emulator::begin_capture(shape.stream);
  CASES_CHECK(cudaStreamIsCapturing(shape.stream, &status) == cudaSuccess);
  CASES_CHECK(status == cudaStreamCaptureStatusActive);
  CASES_CHECK(cases::launch(&add, shape, &sum, 3) == cudaSuccess && sum == 0);
  CASES_CHECK(emulator::launches().back().is_captured);
  const emulator::Graph graph = emulator::end_capture(shape.stream);
  CASES_CHECK(graph.launches == 1);
  CASES_CHECK(emulator::replay(graph) == cudaSuccess && sum == 3);
  CASES_CHECK(emulator::replay(graph) == cudaSuccess && sum == 6);
  emulator::begin_capture(shape.stream);
  CASES_CHECK(cudaStreamSynchronize(shape.stream) == cudaErrorStreamCaptureUnsupported);
  CASES_CHECK(cases::launch(&add, shape, &sum, 3) == cudaErrorStreamCaptureInvalidated);
  return true;
}

bool run_log() {
  int sum = 0;
  emulator::fail_launch(2, cudaErrorLaunchOutOfResources);
  CASES_CHECK(cases::launch(&add, {2, 33}, &sum, 1) == cudaSuccess);
  CASES_CHECK(cases::launch(&add, {2, 33}, &sum, 1) == cudaErrorLaunchOutOfResources);
  CASES_CHECK(cases::launch(&add, {2, 1025}, &sum, 1) == cudaErrorInvalidConfiguration);
  CASES_CHECK(cases::launch(&add, {0}, &sum, 1) == cudaErrorInvalidConfiguration);
  const auto& launches = emulator::launches();
  CASES_CHECK(launches.size() == 4 && sum == 2);
  const emulator::LaunchRecord& first = launches[0];
  CASES_CHECK(first.kernel == "(anonymous namespace)::add(int*, int)");
  CASES_CHECK(first.function == reinterpret_cast<const void*>(&add));
  CASES_CHECK(first.grid.x == 2 && first.block.x == 33 && first.argument_bytes == 12);
  CASES_CHECK(first.status == cudaSuccess && !first.is_cooperative && !first.is_captured);
  CASES_CHECK(launches[1].status == cudaErrorLaunchOutOfResources);
  emulator::clear_launches();
  CASES_CHECK(emulator::launches().empty());
  return true;
}

bool run_pointers() {
  int sum = 0, value = 5;
  int* target = &sum;
  void* arguments[] = {&target, &value};
  CASES_CHECK(cudaLaunchKernel(&add, dim3(3), dim3(32), arguments) == cudaSuccess && sum == 15);
  return true;
}

const cases::Case kCases[] = {
    {"devices", &run_devices},
    {"loading", &run_loading},
    {"no_device", &run_no_device},
    {"cooperative", &run_cooperative},
    {"arguments", &run_arguments},
    {"capture", &run_capture},
    {"log", &run_log},
    {"pointers", &run_pointers},
};

}  // namespace
