// The operations on lists that lie on GPUs, in whole or in part. Nothing here waits for a device,
// except error_if_nonfinite and what goes between a GPU and a part of the list, or a norm, on the
// CPU.
#pragma once

#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include "cpu.h"
#include "parts.h"

namespace fastclip {

// max_norm: a number, or a 0-dim tensor on a GPU, which the kernels read there.
struct Limit {
  double value = 0;
  at::Tensor tensor;  // undefined: `value` counts

  double on_host() const { return tensor.defined() ? tensor.item<double>() : value; }
};

struct NormOptions {
  double norm_type;
  bool is_float64;  // the dtype of total_norm and of clip_coef; else float32
  bool error_if_nonfinite;

  at::ScalarType dtype() const { return is_float64 ? at::kDouble : at::kFloat; }
  Norm norm() const { return Norm(norm_type, is_float64); }
};

// A coefficient for all gradients: in memory of a device, or a number.
struct Coef {
  at::Tensor tensor;  // undefined: `value` counts
  double value = 1;

  double on_host() const { return tensor.defined() ? tensor.item<double>() : value; }
};

// What a call leaves behind: the norm, and the sums of each part for the norms of parameters.
struct GpuNorm {
  std::vector<Part> parts;
  at::Tensor total_norm;  // on the first gradient's device
  Coef clip_coef;         // the same; not set by NormOfParts::clip()
};

// How every clip is launched.
inline std::atomic<CudaMode>& clip_mode() {
  static std::atomic<CudaMode> mode{CudaMode::kSplit};
  return mode;
}

inline CudaSums sums_of(const Part& part, const NormOptions& options) {
  return {options.norm_type, part.partials, part.sums, nullptr, options.is_float64};
}

inline void launch_scale(const Operation& operation, const Part& part, const CudaCoefs& coefs) {
  operation.launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
    return launchers.scale(part.on_gpu, coefs, device, stream);
  });
}

// A scalar that is not written while kernels read it: a copy if a gradient holds it.
inline at::Tensor apart_from(const Gradients& gradients, const at::Tensor& scalar) {
  const c10::TensorImpl* const impl = scalar.unsafeGetTensorImpl();
  if (!accelerator::is_plain(impl) || !gradients.holds(scalar.const_data_ptr())) return scalar;
  at::Tensor copy = accelerator::empty({}, scalar.scalar_type(), accelerator::device_of(impl));
  return copy.copy_(scalar.detach());
}

// A coefficient for every part, where the part's kernels read it. What can fail, a copy or an
// allocation, is done for all parts before the first of them is written.
inline std::vector<Coef> coefs_of(const std::vector<Part>& parts, const Coef& coef) {
  std::vector<Coef> coefs;
  for (const Part& part : parts) {
    if (!coef.tensor.defined()) {
      coefs.push_back(coef);
    } else if (part.is_gpu()) {
      coefs.push_back(
          {accelerator::move(coef.tensor, part.device, coef.tensor.scalar_type()), coef.value});
    } else {
      coefs.push_back({{}, coef.on_host()});
    }
  }
  return coefs;
}

// Multiplies a part: in place, except by a coefficient of 1 or more; into its targets always.
inline void scale_part(const Operation& operation, const Part& part, const Coef& coef) {
  if (!part.is_gpu()) {
    if (part.targets.empty()) return scale_entries(part.on_cpu.list, coef.value);
    return scale_entries_into(part.on_cpu.list, part.targets, coef.value);
  }
  CudaCoefs coefs{};
  coefs.value = coef.value;
  coefs.is_float64 = true;
  if (coef.tensor.defined()) {
    coefs.clip_coef = coef.tensor.const_data_ptr();
    coefs.is_float64 = coef.tensor.scalar_type() == at::kDouble;
  }
  launch_scale(operation, part, coefs);
}

inline void scale_parts(const Operation& operation, const Gradients& gradients,
                        const std::vector<Part>& parts, const Coef& coef) {
  const std::vector<Coef> coefs = coefs_of(parts, coef);
  bump_versions(gradients);
  for (size_t i = 0; i < parts.size(); ++i) scale_part(operation, parts[i], coefs[i]);
}

// One norm over all parts: what a call does after its list is split.
class NormOfParts {
 public:
  // `result` has its parts and receives the rest.
  NormOfParts(const Operation& operation, const NormOptions& options, GpuNorm* result)
      : operation_(operation), options_(options), result_(*result) {}

  // The norm and, with a limit, the coefficient.
  void reduce(const Limit* max_norm) {
    std::vector<at::Tensor> totals;  // one for each part, a double on the part's device
    const bool is_alone = result_.parts.size() == 1;
    for (Part& part : result_.parts) {
      if (!part.is_gpu()) {
        part.combined = reduce_entries(part.on_cpu.list, options_.norm());
        totals.push_back(norm_tensor(combine_entries(part.combined, options_.norm()), true));
        continue;
      }
      const CudaSums sums = sums_of(part, options_);
      operation_.launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
        return launchers.reduce(part.on_gpu, sums, device, stream);
      });
      if (is_alone) return finish(part, part.on_gpu, sums, max_norm);
      totals.push_back(accelerator::empty({}, at::kDouble, part.device));
      CudaResult result{};
      result.total = totals.back().mutable_data_ptr<double>();
      launch_finish(part, part.on_gpu, sums, result);
    }
    combine(totals, max_norm);
  }

  // Norm and rescale in one call, for a list on one GPU.
  void clip(const Limit& max_norm) {
    const Part& part = result_.parts[0];
    at::Tensor limit;
    CudaResult result = result_on(part, &max_norm, &limit);
    result.error_if_nonfinite = options_.error_if_nonfinite;
    operation_.launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
      return launchers.clip(part.on_gpu, sums_of(part, options_), result, clip_mode(), device,
                            stream);
    });
  }

 private:
  void launch_finish(const Part& part, const CudaList& list, const CudaSums& sums,
                     const CudaResult& result) const {
    operation_.launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
      return launchers.finish(list, sums, result, device, stream);
    });
  }

  // Where the results on a device go. `limit` keeps a tensor alive until the launch.
  CudaResult result_on(const Part& part, const Limit* max_norm, at::Tensor* limit) {
    CudaResult result{};
    result.is_float64 = options_.is_float64;
    result_.total_norm = accelerator::empty({}, options_.dtype(), part.device);
    result.total_norm = result_.total_norm.mutable_data_ptr();
    if (max_norm == nullptr) return result;
    result.max_norm = max_norm->value;
    if (max_norm->tensor.defined()) {
      *limit = accelerator::move(max_norm->tensor, part.device, options_.dtype());
      result.max_norm_tensor = limit->const_data_ptr();
    }
    return result;
  }

  void finish(const Part& first, const CudaList& list, const CudaSums& sums,
              const Limit* max_norm) {
    at::Tensor limit;
    CudaResult result = result_on(first, max_norm, &limit);
    if (max_norm != nullptr) {
      result_.clip_coef.tensor = accelerator::empty({}, options_.dtype(), first.device);
      result.clip_coef = result_.clip_coef.tensor.mutable_data_ptr();
    }
    launch_finish(first, list, sums, result);
  }

  // The parts' totals, in the order of the list, on the device of the first.
  void combine(const std::vector<at::Tensor>& totals, const Limit* max_norm) {
    const Part& first = result_.parts[0];
    if (!first.is_gpu()) return combine_on_host(totals, max_norm);
    const auto size = static_cast<int64_t>(totals.size());
    const at::Tensor all = accelerator::empty({size}, at::kDouble, first.device);
    for (int64_t i = 0; i < size; ++i) all.select(0, i).copy_(totals[i]);
    CudaList none{};
    none.groups = static_cast<int32_t>(size);
    const CudaSums sums{options_.norm_type, all.mutable_data_ptr<double>(), nullptr, nullptr,
                        options_.is_float64};
    finish(first, none, sums, max_norm);
  }

  void combine_on_host(const std::vector<at::Tensor>& totals, const Limit* max_norm) {
    const Norm norm = options_.norm();
    double combined = 0;
    for (const at::Tensor& total : totals) combined = norm.combine(combined, total.item<double>());
    result_.total_norm = norm_tensor(norm.root(combined), options_.is_float64);
    if (max_norm == nullptr) return;
    result_.clip_coef.value = clip_coefficient(result_.total_norm.item<double>(),
                                               max_norm->on_host(), options_.is_float64);
  }

  Operation operation_;
  NormOptions options_;
  GpuNorm& result_;
};

inline std::vector<double> sums_on_host(const Part& part) {
  if (!part.is_gpu()) return part.combined;
  const at::Tensor sums = accelerator::move(part.sums_tensor(), at::kCPU, at::kDouble);
  const double* const data = sums.const_data_ptr<double>();
  return {data, data + sums.numel()};
}

// Throws where the norm is not finite. This waits for the device, as it does in torch. The maxima
// say which gradients hold inf or nan: a float64 sum that overflowed holds none.
inline void check_finite(const Operation& operation, const Gradients& gradients,
                         const at::Tensor& total_norm) {
  if (std::isfinite(total_norm.item<double>())) return;
  const NormOptions options{INFINITY, false, false};
  GpuNorm maxima{split_by_device(operation, gradients, true), {}, {}};
  NormOfParts(operation, options, &maxima).reduce(nullptr);
  std::vector<char> is_bad(gradients.entries.size());
  for (const Part& part : maxima.parts) {
    const std::vector<double> sums = sums_on_host(part);
    for (size_t i = 0; i < sums.size(); ++i) is_bad[part.positions[i]] = !std::isfinite(sums[i]);
  }
  throw NonFinite{total_norm, sources_of(gradients, is_bad)};
}

// A graph that is captured runs later: nothing can be read back.
inline void check_not_capturing(const Operation& operation, const std::vector<Part>& parts) {
  for (const Part& part : parts) {
    TORCH_CHECK(!part.is_capturing(), operation.name,
                ": error_if_nonfinite must be False while a CUDA graph is captured",
                " (the norm would have to be read back)");
  }
}

// `kept` receives the sums, also where the call ends in NonFinite.
inline at::Tensor clip_on_gpu(const Operation& operation, const Gradients& gradients,
                              const Limit& max_norm, const NormOptions& options,
                              std::optional<GpuNorm>* kept) {
  const WithoutGil without_gil(gradients);
  GpuNorm result{parts_of(gradients, true), {}, {}};
  if (options.error_if_nonfinite) check_not_capturing(operation, result.parts);
  write_tables(operation, result.parts);
  NormOfParts norm(operation, options, &result);
  const bool is_alone = result.parts.size() == 1;
  if (is_alone) {
    norm.clip(max_norm);
  } else {
    norm.reduce(&max_norm);
  }
  GpuNorm& done = kept->emplace(std::move(result));
  if (options.error_if_nonfinite) check_finite(operation, gradients, done.total_norm);
  if (is_alone) {
    bump_versions(gradients);
  } else {
    scale_parts(operation, gradients, done.parts, done.clip_coef);
  }
  return done.total_norm;
}

inline at::Tensor norm_on_gpu(const Operation& operation, const Gradients& gradients,
                              const NormOptions& options) {
  const WithoutGil without_gil(gradients);
  GpuNorm result{parts_of(gradients, true), {}, {}};
  if (options.error_if_nonfinite) check_not_capturing(operation, result.parts);
  write_tables(operation, result.parts);
  NormOfParts(operation, options, &result).reduce(nullptr);
  if (options.error_if_nonfinite) check_finite(operation, gradients, result.total_norm);
  return result.total_norm;
}

// Rescales by a norm that is given. A norm on the CPU becomes a number here, unless the limit lies
// on a GPU.
inline void scale_on_gpu(const Operation& operation, const Gradients& gradients,
                         const Limit& max_norm, const at::Tensor& total_norm, bool is_norm_on_gpu) {
  const WithoutGil without_gil(gradients);
  const std::vector<Part> parts = split_by_device(operation, gradients, false);
  const bool is_float64 = total_norm.scalar_type() == at::kDouble;
  const at::ScalarType type = is_float64 ? at::kDouble : at::kFloat;
  std::vector<CudaCoefs> coefs(parts.size());
  std::vector<at::Tensor> held;  // until the launches
  const auto data_on = [&](const at::Tensor& tensor, const Part& part) {
    return held.emplace_back(accelerator::move(tensor, part.device, type)).const_data_ptr();
  };
  for (size_t i = 0; i < parts.size(); ++i) {
    const bool is_limit_on_gpu = max_norm.tensor.defined();
    coefs[i].is_float64 = is_float64;
    if (parts[i].is_gpu() && (is_norm_on_gpu || is_limit_on_gpu)) {
      coefs[i].total_norm = data_on(total_norm, parts[i]);
      if (is_limit_on_gpu) coefs[i].max_norm_tensor = data_on(max_norm.tensor, parts[i]);
      coefs[i].value = max_norm.value;
    } else {
      coefs[i].value = clip_coefficient(total_norm.item<double>(), max_norm.on_host(), is_float64);
    }
  }
  bump_versions(gradients);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].is_gpu()) {
      launch_scale(operation, parts[i], coefs[i]);
    } else {
      scale_entries(parts[i].on_cpu.list, coefs[i].value);
    }
  }
}

inline void scale_on_gpu_into(const Operation& operation, const Gradients& gradients,
                              const std::vector<char*>& targets, double clip_coef) {
  const WithoutGil without_gil(gradients);
  for (const Part& part : split_by_device(operation, gradients, false, targets)) {
    scale_part(operation, part, {{}, clip_coef});
  }
}

inline void clamp_on_gpu(const Operation& operation, const Gradients& gradients,
                         double clip_value) {
  const WithoutGil without_gil(gradients);
  const std::vector<Part> parts = split_by_device(operation, gradients, false);
  bump_versions(gradients);
  for (const Part& part : parts) {
    if (!part.is_gpu()) {
      clamp_entries(part.on_cpu.list, clip_value);
    } else {
      operation.launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
        return launchers.clamp(part.on_gpu, {clip_value, nullptr, nullptr}, device, stream);
      });
    }
  }
}

// Every norm's root where the sums lie, in the order of the parts, on the first part's device: new
// memory, for the caller to change. The caller's stream may be another than the clip's.
inline at::Tensor roots_of(const GpuNorm& norm, const NormOptions& options) {
  std::vector<at::Tensor> roots;
  const c10::Device first = norm.parts[0].device;
  for (const Part& part : norm.parts) {
    at::Tensor sums = part.is_gpu() ? part.sums_tensor() : at::tensor(part.combined, at::kDouble);
    if (part.is_gpu()) accelerator::record_use(part.memory, part.device);
    if (options.norm_type == 2) {
      sums = sums.sqrt();
    } else if (options.norm_type != 1 && !std::isinf(options.norm_type)) {
      sums = sums.pow(1.0 / options.norm_type);
    } else if (part.is_gpu()) {
      sums = sums.clone();
    }
    roots.push_back(accelerator::move(sums, first, options.dtype()));
  }
  return roots.size() == 1 ? roots[0] : at::cat(roots);
}

}  // namespace fastclip
