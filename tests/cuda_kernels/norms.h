// Calls that take a norm, and what they must return: an oracle in long double, plain loops.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gradients.h"

namespace fastclip::kernel_tests {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// What a caller chooses; its tensors are numbers here and device memory in the call.
struct Request {
  double norm_type = 2;
  double max_norm = 1;
  double inv_scale = 1;
  double found_inf = 0;  // what it holds before the call
  bool is_wide = false;
  bool is_float64 = false;
  bool error_if_nonfinite = false;
  bool has_max_norm_tensor = false;
  bool has_inv_scale = false;
  bool has_found_inf = false;
  bool has_sums = true;
  CudaMode mode = CudaMode::kSplit;
  cudaStream_t stream = nullptr;
};

// What a call wrote.
struct Outcome {
  double total;
  double total_norm;
  double clip_coef;
  double found_inf;
  std::vector<double> sums;
};

// The device memory of a call.
class Workspace {
 public:
  Workspace(Run& run, const CudaList& list, const Request& request);

  CudaSums sums() const;
  CudaResult result() const;
  Outcome outcome() const;
  const Request& request() const { return request_; }
  // Returns it as float32 or float64, as the request's results are.
  static double read(const void* data, bool is_float64);

 private:
  Request request_;
  int size_;
  Memory partials_;
  Memory sums_;
  Memory total_;
  Memory total_norm_;
  Memory clip_coef_;
  Memory max_norm_;
  Memory inv_scale_;
  Memory found_inf_;
};

// Calls clip on the run's device.
int call_clip(Run& run, const CudaList& list, const Workspace& workspace);
// Calls clip, which must succeed.
Outcome clip(Run& run, const CudaList& list, const Request& request);

struct Norm {
  std::vector<long double> sums;
  long double total;
  long double total_norm;  // without inv_scale
};
Norm norm_of(const Gradients& gradients, double norm_type);
// Returns what a call must return for a given sum.
Norm norm_of_total(long double total, double norm_type);

// Return the relative error that a norm may have before it is rounded to its dtype, and that of a
// sum.
double norm_tolerance(const Request& request);
double sum_tolerance(const Request& request);

// Returns (1 / (total_norm + 1e-6)) * max_norm in the dtype of the results, at most 1.
double coefficient(double total_norm, double max_norm, bool is_float64);
// Returns what the gradients are multiplied by.
double factor(const Outcome& outcome, const Request& request);
// Returns whether they are to be written at all.
bool should_write(const Outcome& outcome, const Request& request);

// Expects that sums, total, total_norm and clip_coef are right. `list` describes the request.
void expect_norm(Run& run, const std::string& list, const Gradients& gradients,
                 const Request& request, const Outcome& outcome);
void expect_norm(Run& run, const std::string& list, const Norm& wanted, const Request& request,
                 const Outcome& outcome);
// Expects the same, and that every gradient is right.
void expect_clipped(Run& run, const std::string& list, const Gradients& gradients,
                    const Request& request, const Outcome& outcome);
void expect_same_outcome(Run& run, const std::string& what, const Outcome& got,
                         const Outcome& wanted);
void expect_outcome_as_ever(Run& run, const std::string& key, const Outcome& outcome);

}  // namespace fastclip::kernel_tests
