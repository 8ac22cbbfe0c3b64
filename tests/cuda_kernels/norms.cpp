#include "norms.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "numbers.h"

namespace fastclip::kernel_tests {
namespace {

void write(void* data, double value, bool is_float64) {
  if (is_float64) {
    *static_cast<double*>(data) = value;
  } else {
    *static_cast<float*>(data) = static_cast<float>(value);
  }
}

long double power(long double magnitude, double norm_type) {
  if (norm_type == 2) return magnitude * magnitude;
  if (norm_type == 0.5L) return sqrtl(magnitude);  // many times faster than powl
  return norm_type == 1 || std::isinf(norm_type) ? magnitude : powl(magnitude, norm_type);
}

long double joined(long double a, long double b, double norm_type) {
  if (!std::isinf(norm_type)) return a + b;
  return std::isnan(a) || a > b ? a : b;  // NaN stays, whichever side it is on
}

long double rooted(long double total, double norm_type) {
  if (std::isinf(norm_type) || norm_type == 1) return total;
  return norm_type == 2 ? sqrtl(total) : powl(total, 1 / static_cast<long double>(norm_type));
}

uint64_t bits_of(double value) {
  return std::isnan(value) ? UINT64_MAX : encode(DType::kFloat64, value);
}

}  // namespace

Workspace::Workspace(Run& run, const CudaList& list, const Request& request)
    : request_(request),
      size_(list.size),
      partials_(run, "partials", 8 * static_cast<size_t>(std::max(list.groups, 1)), {run.device()}),
      sums_(run, "sums", 8 * static_cast<size_t>(std::max(list.size, 1)), {run.device()}),
      total_(run, "total", 8, {run.device()}),
      total_norm_(run, "total_norm", request.is_float64 ? 8 : 4, {run.device()}),
      clip_coef_(run, "clip_coef", request.is_float64 ? 8 : 4, {run.device()}),
      max_norm_(run, "max_norm", request.is_float64 ? 8 : 4, {run.device(), 0, true}),
      inv_scale_(run, "inv_scale", 4, {run.device(), 0, true}),
      found_inf_(run, "found_inf", 4, {run.device()}) {
  write(max_norm_.as<void>(), request.max_norm, request.is_float64);
  write(inv_scale_.as<void>(), request.inv_scale, false);
  write(found_inf_.as<void>(), request.found_inf, false);
}

CudaSums Workspace::sums() const {
  return {request_.norm_type, partials_.as<double>(),
          request_.has_sums ? sums_.as<double>() : nullptr,
          request_.has_found_inf ? found_inf_.as<float>() : nullptr, request_.is_wide};
}

CudaResult Workspace::result() const {
  return {total_.as<double>(),
          total_norm_.as<void>(),
          clip_coef_.as<void>(),
          request_.has_max_norm_tensor ? max_norm_.as<void>() : nullptr,
          request_.has_inv_scale ? inv_scale_.as<float>() : nullptr,
          request_.has_max_norm_tensor ? kNan : request_.max_norm,
          request_.is_float64,
          request_.error_if_nonfinite};
}

double Workspace::read(const void* data, bool is_float64) {
  return is_float64 ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
}

Outcome Workspace::outcome() const {
  Outcome outcome = {*total_.as<double>(),
                     read(total_norm_.as<void>(), request_.is_float64),
                     read(clip_coef_.as<void>(), request_.is_float64),
                     *found_inf_.as<float>(),
                     {}};
  if (request_.has_sums) outcome.sums.assign(sums_.as<double>(), sums_.as<double>() + size_);
  return outcome;
}

int call_clip(Run& run, const CudaList& list, const Workspace& workspace) {
  return cuda().clip(list, workspace.sums(), workspace.result(), workspace.request().mode,
                     run.device(), workspace.request().stream);
}

Outcome clip(Run& run, const CudaList& list, const Request& request) {
  const Workspace workspace(run, list, request);
  run.expect_success("clip", call_clip(run, list, workspace));
  return workspace.outcome();
}

Norm norm_of(const Gradients& gradients, double norm_type) {
  Norm norm = {};
  for (int tensor = 0; tensor < gradients.size(); ++tensor) {
    long double sum = 0;
    for (int64_t i = 0; i < gradients.spec(tensor).count; ++i) {
      const long double magnitude = std::fabs(gradients.value(tensor, i));
      sum = joined(sum, power(magnitude, norm_type), norm_type);
    }
    norm.sums.push_back(sum);
    norm.total = joined(norm.total, sum, norm_type);
  }
  norm.total_norm = rooted(norm.total, norm_type);
  return norm;
}

Norm norm_of_total(long double total, double norm_type) {
  return {{}, total, rooted(total, norm_type)};
}

// Float64 sums: a thread adds at most 64 numbers of a chunk and fewer than 64 results of other
// threads and chunks, each with an error of 2^-53. Powers add log2 and exp2, of exponents below
// 2^10: 2^-42.
double sum_tolerance(const Request& request) {
  if (std::isinf(request.norm_type)) return 0;
  if (request.norm_type != 1 && request.norm_type != 2) return 0x1p-41;
  // Squares are added in pairs in float32: two roundings of 2^-24 each, and their product.
  const bool is_narrow = request.norm_type == 2 && !request.is_wide;
  return (is_narrow ? 0x1.001p-23 : 0) + 0x1p-46;
}

// What a sum is off by counts p times less in its root; a root by log2 and exp2 is off by 2^-42
// itself. The result's own rounding comes on top, 2^-24 of float32: within 2 x 2^-24 for p = 2.
double norm_tolerance(const Request& request) {
  if (std::isinf(request.norm_type)) return request.is_float64 ? 0 : 0x1p-24;
  const double root = request.norm_type == 1 || request.norm_type == 2 ? 0x1p-52 : 0x1p-41;
  return sum_tolerance(request) / request.norm_type + root + (request.is_float64 ? 0 : 0x1p-24);
}

double coefficient(double total_norm, double max_norm, bool is_float64) {
  if (is_float64) {
    const double coef = 1 / (total_norm + 1e-6) * max_norm;
    return coef > 1 ? 1 : coef;
  }
  const auto norm = static_cast<float>(total_norm);
  const float coef = 1 / (norm + static_cast<float>(1e-6)) * static_cast<float>(max_norm);
  return coef > 1 ? 1 : coef;
}

double factor(const Outcome& outcome, const Request& request) {
  if (!request.has_inv_scale) return outcome.clip_coef;
  const auto inv_scale = static_cast<float>(request.inv_scale);
  if (request.is_float64) return outcome.clip_coef * inv_scale;
  return static_cast<float>(outcome.clip_coef) * inv_scale;
}

bool should_write(const Outcome& outcome, const Request& request) {
  if (request.has_found_inf && outcome.found_inf != 0) return false;
  if (request.error_if_nonfinite && !std::isfinite(outcome.total_norm)) return false;
  return !(outcome.clip_coef >= 1) || (request.has_inv_scale && request.inv_scale != 1);
}

void expect_norm(Run& run, const std::string& list, const Gradients& gradients,
                 const Request& request, const Outcome& outcome) {
  expect_norm(run, list, norm_of(gradients, request.norm_type), request, outcome);
}

void expect_norm(Run& run, const std::string& list, const Norm& wanted, const Request& request,
                 const Outcome& outcome) {
  const long double scale =
      request.has_inv_scale ? std::fabs(static_cast<float>(request.inv_scale)) : 1;
  const double tolerance = sum_tolerance(request);
  run.expect_near(list + ", total", outcome.total, wanted.total, tolerance, false);
  run.expect_near(list + ", total_norm", outcome.total_norm, wanted.total_norm * scale,
                  norm_tolerance(request), !request.is_float64);
  run.expect(list + ", clip_coef", outcome.clip_coef,
             coefficient(outcome.total_norm, request.max_norm, request.is_float64));
  for (size_t i = 0; i < outcome.sums.size(); ++i) {
    run.expect_near(list + ", sum of tensor " + std::to_string(i), outcome.sums[i], wanted.sums[i],
                    tolerance, false);
  }
}

void expect_clipped(Run& run, const std::string& list, const Gradients& gradients,
                    const Request& request, const Outcome& outcome) {
  expect_norm(run, list, gradients, request, outcome);
  if (should_write(outcome, request)) {
    gradients.expect_multiplied(list + ", clipped", factor(outcome, request));
  } else {
    gradients.expect_unchanged(list + ", not clipped");
  }
}

void expect_same_outcome(Run& run, const std::string& what, const Outcome& got,
                         const Outcome& wanted) {
  run.expect(what + ", total", got.total, wanted.total);
  run.expect(what + ", total_norm", got.total_norm, wanted.total_norm);
  run.expect(what + ", clip_coef", got.clip_coef, wanted.clip_coef);
  run.expect(what + ", found_inf", got.found_inf, wanted.found_inf);
  for (size_t i = 0; i < wanted.sums.size(); ++i) {
    run.expect(what + ", sum of tensor " + std::to_string(i), got.sums[i], wanted.sums[i]);
  }
}

void expect_outcome_as_ever(Run& run, const std::string& key, const Outcome& outcome) {
  run.expect_as_ever(key + ", total", bits_of(outcome.total));
  run.expect_as_ever(key + ", total_norm", bits_of(outcome.total_norm));
  run.expect_as_ever(key + ", clip_coef", bits_of(outcome.clip_coef));
  uint64_t hash = 0;
  for (const double sum : outcome.sums) hash = hash * 0x9e3779b97f4a7c15 + bits_of(sum);
  run.expect_as_ever(key + ", sums", hash);
}

}  // namespace fastclip::kernel_tests
