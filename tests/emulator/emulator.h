// What tests set and ask of the emulator: the machine that the runtime API describes, the order in
// which threads run, what went wrong, what was launched, who read and wrote which memory.
// Kernels must not call these functions, except relaxed_grid_sync().
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

// Resets everything below to what it was when the program started; watched memory is forgotten.
void reset();

// ---- The machine

struct Machine {
  int devices = 1;
  int multiprocessors = 4;              // of each device
  int blocks_per_multiprocessor = 2;    // what occupancy queries answer
  int compute_capability = 90;          // major * 10 + minor
  int driver_version = CUDART_VERSION;  // below 12010, 4 KB of arguments at most
  bool has_cooperative_launch = true;
  // Unless cudaSuccess, what every call that needs a device returns, such as cudaErrorNoDevice or
  // cudaErrorInsufficientDriver.
  cudaError_t device_error = cudaSuccess;
  // Unless cudaSuccess, what a cooperative launch returns although the attribute promises it.
  cudaError_t cooperative_error = cudaSuccess;
  // Unless cudaSuccess, what cudaFuncGetAttributes returns: cudaErrorNoKernelImageForDevice.
  cudaError_t code_error = cudaSuccess;
  // Unless cudaSuccess, what cudaStreamIsCapturing returns: cudaErrorStreamCaptureImplicit.
  cudaError_t capture_error = cudaSuccess;
  // If not, the first launch of a kernel on a device, or question about it, fails while any stream
  // captures: a kernel's code is loaded when it is first needed.
  bool loads_in_capture = true;
};

Machine& machine();

// Returns whether the device was used: cudaSetDevice and launches cost it the memory of a context.
bool has_context(int device);
// Makes a device current and does not use it, as torch does where nothing has used it yet.
void make_current(int device);

// The n-th launch from now (1: the next) returns `error` and runs nothing.
void fail_launch(int n, cudaError_t error);

// ---- The order of threads

enum class Schedule {
  kFifo,        // the thread that waited longest
  kLifo,        // the thread that waited shortest: threads run as far as they can
  kRandom,      // any thread, drawn at each switch
  kPriorities,  // random priorities, redrawn now and then: some threads starve for long
};
inline constexpr Schedule kSchedules[] = {Schedule::kFifo, Schedule::kLifo, Schedule::kRandom,
                                          Schedule::kPriorities};

struct Execution {
  Schedule schedule = Schedule::kRandom;
  uint64_t seed = 0;
  bool is_strict = false;  // accesses to memory that is not watched are faults
  bool aborts = false;     // the first fault prints its report and ends the program
};

Execution& execution();

// ---- What went wrong

enum class Fault {
  kDeadlock,        // threads wait for each other, or for threads that have ended
  kLivelock,        // threads only sleep and retry
  kDivergence,      // a barrier, shuffle or vote reached at several places, or with another mask
  kBadLane,         // a shuffle from a lane outside of its mask, a mask without the caller
  kMisaligned,      // an access that is not at a multiple of its size
  kReadOnly,        // a store to read-only memory
  kOutside,         // strict mode: an access to memory that is not watched
  kOtherDevice,     // an access to memory of another device
  kNotCooperative,  // a grid barrier in an ordinary launch
  kSharedMemory,    // a block asks for more than 48 KiB
  kTrap,            // __trap()
};

// A fault ends its launch, which returns cudaErrorLaunchFailure. The next launch starts afresh.
struct Report {
  Fault fault;
  std::string text;  // all of it, for people: what, where, which threads wait for what
  std::string kernel;
  uint3 block;  // of the thread at fault; of no thread where all threads wait
  uint3 thread;
  std::string file;
  int line;
};

const char* name_of(Fault fault);
const char* name_of(Schedule schedule);
const std::vector<Report>& reports();
void clear_reports();

// ---- What was launched

struct LaunchRecord {
  std::string kernel;  // its name, demangled
  const void* function;
  dim3 grid;
  dim3 block;
  size_t argument_bytes;
  int device;
  cudaStream_t stream;
  bool is_cooperative;
  bool is_captured;    // kept for replay(), not run
  cudaError_t status;  // what the launch returned
};

// All launches, refused ones too.
const std::vector<LaunchRecord>& launches();
void clear_launches();

// ---- Streams

// Null and the two other handles that CUDA reserves belong to whichever device is current; so does
// any handle that was never named here.
cudaStream_t make_stream(int device);
void set_stream_device(cudaStream_t stream, int device);

// From this call on, launches on the stream are kept with their arguments and not run.
void begin_capture(cudaStream_t stream);
// Sets only what cudaStreamIsCapturing answers; launches still run.
void set_capture_status(cudaStream_t stream, cudaStreamCaptureStatus status);

// What a stream has captured, in order; replay() runs it, any number of times.
struct Graph {
  int launches = 0;
  uint64_t id = 0;
};
Graph end_capture(cudaStream_t stream);
cudaError_t replay(const Graph& graph);

// ---- Memory

struct RegionOptions {
  bool is_read_only = false;
  int device = 0;
};

// What went through __ldcg, __ldca, __ldcs, __stcg, __stcs and atomics, in bytes. An atomic reads
// and writes. Plain accesses are not seen.
struct Traffic {
  uint64_t read = 0;
  uint64_t written = 0;
  uint64_t unique_read = 0;
  uint64_t unique_written = 0;
  // Times are numbers that grow with every access to watched memory; 0 stands for never.
  uint64_t first_read = 0;
  uint64_t first_write = 0;
};

// `data` stays the caller's. Regions may not overlap.
void watch(const std::string& name, void* data, size_t bytes, RegionOptions options = {});
void unwatch(const void* data);

// Memory filled with 0xFF, which is NaN in every floating-point type, `offset` bytes past a
// 256-byte boundary, with guard zones on both sides; watched. free() also says whether the guard
// zones are as they were.
void* allocate(const std::string& name, size_t bytes, RegionOptions options = {},
               size_t offset = 0);
bool free(void* data);

Traffic traffic(const void* data);
void clear_traffic();

// ---- For faults that the emulator's own tests plant

// A grid barrier that orders no memory: threads meet, but ThreadSanitizer sees no edge.
void relaxed_grid_sync(detail::Place place = detail::Place::here());

}  // namespace emulator
