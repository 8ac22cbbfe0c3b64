// Everything the binding may call for lists in GPU memory. Plain C++: a status is a cudaError_t
// and a stream a cudaStream_t, so that no toolkit is needed to read this.
//
// A launcher puts its kernels on `stream` of `device` and returns. It allocates nothing and waits
// for nothing: all memory comes from the caller, and a CUDA graph can capture the call.
#pragma once

#include <cstdint>

#include "tensor_list.h"

namespace fastclip {

// A list on one device, cut into work for thread blocks; made by CudaLaunchers::plan.
struct CudaList {
  const TensorEntry* entries;  // on the host; `first_unit` is a slot (gpu_work.h)
  char* const* targets;        // one for each entry, for results out of place; null: in place
  int32_t size;
  int32_t chunk_size;   // elements in a chunk
  int32_t groups;       // pieces of work, with a partial each
  int64_t table_bytes;  // device memory for a table too long for kernel arguments, or 0
  char* table;          // that memory, aligned to 16 bytes; write_table must have filled it
};

// What the first step of a norm writes. Partials and sums hold squares, magnitudes or powers: no
// roots.
struct CudaSums {
  double norm_type;  // above 0, and inf
  double* partials;  // one for each group
  double* sums;      // one for each entry; may be null
  float* found_inf;  // set to 1 where an element is inf or NaN, never cleared; may be null
  bool is_wide;      // p = 2 in float64 throughout
};

// What the second step reads and where its results go. Every pointer is to device memory.
struct CudaResult {
  double* total;                // all partials combined, no root; may be null
  void* total_norm;             // a float, or a double if `is_float64`; may be null
  void* clip_coef;              // as total_norm; may be null
  const void* max_norm_tensor;  // as total_norm; null: `max_norm` counts
  const float* inv_scale;       // gradients count and are written as multiples of it; null: 1
  double max_norm;
  bool is_float64;
  bool error_if_nonfinite;  // leave the gradients alone when total_norm is not finite
};

// Where the coefficients of a scale come from: the first of per_tensor, clip_coef and total_norm
// that is not null, else `value`. Gradients are multiplied by a coefficient times inv_scale, a
// product that is evaluated in float64 if `is_float64`, else in float32.
struct CudaCoefs {
  const void* per_tensor;       // one for each entry
  const void* clip_coef;        // one for all
  const void* total_norm;       // the coefficient of this norm
  const void* max_norm_tensor;  // with total_norm; null: `value` is max_norm
  const float* inv_scale;       // null: 1
  const float* found_inf;       // not 0: nothing is written in place; may be null
  double value;
  bool is_float64;  // what the first four pointers point to: doubles, else floats
};

// A clamp of multiples of the gradients to [-clip_value, clip_value].
struct CudaClamp {
  double clip_value;
  const float* inv_scale;  // null: 1
  const float* found_inf;  // not 0: nothing is written; may be null
};

// How clip is launched: two kernels, or one cooperative kernel, which waits until every other
// kernel on the device is done.
enum class CudaMode : int { kSplit, kFused };

struct CudaLaunchers {
  // Assigns slots to the entries and returns the list. `targets` may be null.
  CudaList (*plan)(TensorEntry* entries, int64_t size, char* const* targets);

  // Fills `list.table`, before any other launcher gets a list whose `table_bytes` is not 0.
  int (*write_table)(const CudaList& list, int device, void* stream);

  // Norm and rescale in place. kFused is an error where a cooperative launch is refused.
  int (*clip)(const CudaList& list, const CudaSums& sums, const CudaResult& result, CudaMode mode,
              int device, void* stream);

  // The first step of a norm, and the second step without a rescale.
  int (*reduce)(const CudaList& list, const CudaSums& sums, int device, void* stream);
  int (*finish)(const CudaList& list, const CudaSums& sums, const CudaResult& result, int device,
                void* stream);

  // Multiplies. In place nothing is written where the coefficient is 1 or more and inv_scale is 1;
  // targets are always written.
  int (*scale)(const CudaList& list, const CudaCoefs& coefs, int device, void* stream);

  // Clamps in place; NaN stays. Where inv_scale is 1, only vectors of 16 bytes in which something
  // was out of range are written.
  int (*clamp)(const CudaList& list, const CudaClamp& clamp, int device, void* stream);

  // 0 if kernels can run on the device: there is a driver, it is new enough for the runtime that
  // is linked in, and the build holds code for the device.
  int (*check)(int device);

  // Returns whether a CUDA graph is being captured on the stream, or may be.
  bool (*is_capturing)(int device, void* stream);

  const char* (*name)(int status);    // such as "cudaErrorNoDevice"
  const char* (*reason)(int status);  // in words
  const char* (*advice)(int status);  // what to do about it
  int (*driver_version)();            // 12010 is 12.1; 0 without a driver
  int (*runtime_version)();
};

// Null in a build without CUDA.
const CudaLaunchers* cuda_launchers();

}  // namespace fastclip
