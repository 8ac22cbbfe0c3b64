// What the runtime API knows between launches.
#pragma once

#include "engine.h"

namespace emulator::runtime {

// Makes the error the last one of this thread, unless it is cudaSuccess, and returns it.
cudaError_t note(cudaError_t error);
int current_device();

struct Stream {
  int device = -1;  // -1: whichever is current
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  bool keeps_launches = false;
  uint64_t graph = 0;
};

// Null where nothing was ever said about the stream.
Stream* find_stream(cudaStream_t stream);
int device_of(const void* address);
// The kernel's code, on the current device from here on. An error where that may not be.
cudaError_t load_code(const void* kernel);
void forget_devices();
void forget_regions();
// Accesses are observed while there is watched memory, and in strict mode.
void decide_watching();
void forget_streams();
void forget_launches();
void forget_graphs();
void forget_last_error();

}  // namespace emulator::runtime
