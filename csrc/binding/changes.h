// Writes over the parts of a list: products in place or into other tensors, and clamps. Everything
// that can fail is done for all parts before the first of them is written.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "norms.h"

namespace fastclip {

// What gradients are multiplied by: the first of these that is given.
struct Factor {
  std::vector<at::Tensor> each;  // for each part a coefficient for each of its gradients
  Scalar total_norm;             // with max_norm: the coefficient that follows from them
  std::optional<Scalar> max_norm;
  Scalar by = 1;
  Scalar inv_scale = 1;
  bool is_float64 = false;  // what `each`, the norms and `by` are; else float32
};

// The factor of one part, in the memory that its kernels read.
struct PartFactor {
  CudaCoefs on_gpu{};
  CpuFactor on_cpu;
  std::vector<double> each;      // the coefficients of a part on the CPU
  std::vector<at::Tensor> held;  // tensors that must live until the launch
};

using PartFactors = c10::SmallVector<PartFactor, 1>;

inline void check_multiplier(const at::Tensor& tensor, int64_t size) {
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_VALUE(
      tensor.numel() == size && (type == at::kFloat || type == at::kDouble),
      "fastclip: coefficients must be float32 or float64, one for each gradient (got ",
      tensor.numel(), " of ", type, " for ", size, ")");
  if (!is_gpu_tensor(tensor) && !is_plain_cpu_tensor(tensor)) {
    throw Unsupported(ReasonKind::kCall, "a coefficient is on device " + tensor.device().str() +
                                             " (supported: plain tensors on cpu and cuda)");
  }
}

// Checks coefficients that are laid out like Sums: a tensor for each part.
inline void check_multipliers(const std::vector<at::Tensor>& each, const Parts& parts) {
  TORCH_CHECK_VALUE(each.size() == parts.size(), "fastclip: coefficients must be ", parts.size(),
                    " tensors, one for each device of the list (got ", each.size(), ")");
  for (size_t i = 0; i < parts.size(); ++i) {
    check_multiplier(each[i], parts[i].size);
    TORCH_CHECK_VALUE(each[i].dim() == 1 && each[i].is_contiguous() &&
                          each[i].scalar_type() == each[0].scalar_type(),
                      "fastclip: coefficients must be contiguous vectors of one dtype");
  }
}

// torch refuses a finite bound that the gradient's dtype cannot hold, and has its own rules for
// negative and NaN bounds: all of these are left to the reference backend.
inline void check_clip_value(const Gradients& gradients, double clip_value) {
  if (std::signbit(clip_value) || std::isnan(clip_value)) {
    throw Unsupported(ReasonKind::kCall, "clip_value must not be negative or nan");
  }
  if (std::isinf(clip_value)) return;
  const auto refuse = [](const char* dtype) {
    throw Unsupported(ReasonKind::kCall, std::string("clip_value does not fit ") + dtype);
  };
  for (const TensorEntry& entry : gradients.entries) {
    if (c10::overflows<c10::Half, double>(clip_value) && entry.dtype == DType::kFloat16) {
      refuse("float16");
    }
    if (c10::overflows<c10::BFloat16, double>(clip_value) && entry.dtype == DType::kBFloat16) {
      refuse("bfloat16");
    }
    if (c10::overflows<float, double>(clip_value) && entry.dtype != DType::kFloat64) {
      refuse("float32");
    }
  }
}

inline double coefficient_on_host(const Factor& factor) {
  if (!factor.max_norm) return factor.by.on_host();
  const double norm = factor.total_norm.on_host(), limit = factor.max_norm->on_host();
  if (factor.is_float64) return clip_coefficient<double>(norm, limit);
  return clip_coefficient<float>(static_cast<float>(norm), static_cast<float>(limit));
}

inline void set_on_cpu(const Factor& factor, size_t part, PartFactor* result) {
  result->on_cpu.inv_scale = factor.inv_scale.on_host();
  result->on_cpu.is_wide = factor.is_float64;
  if (factor.each.empty()) {
    result->on_cpu.coef = coefficient_on_host(factor);
    return;
  }
  const at::Tensor on_host = accelerator::move(factor.each[part], at::kCPU, at::kDouble);
  const double* const values = on_host.const_data_ptr<double>();
  result->each.assign(values, values + on_host.numel());
  result->on_cpu.each = result->each.data();
}

inline void set_on_gpu(const Factor& factor, size_t i, const Part& part, FoundInf* found_inf,
                       PartFactor* result) {
  const at::ScalarType type = factor.is_float64 ? at::kDouble : at::kFloat;
  CudaCoefs& coefs = result->on_gpu;
  coefs.is_float64 = factor.is_float64;
  if (factor.inv_scale.is_on_gpu() || factor.inv_scale.value != 1) {
    coefs.inv_scale =
        static_cast<const float*>(factor.inv_scale.on(part.device, at::kFloat, &result->held));
  }
  coefs.found_inf = found_inf->on_gpu(i);
  if (!factor.each.empty()) {
    result->held.push_back(accelerator::move(factor.each[i], part.device, type));
    coefs.per_tensor = result->held.back().const_data_ptr();
  } else if (factor.max_norm && (factor.total_norm.is_on_gpu() || factor.max_norm->is_on_gpu())) {
    coefs.total_norm = factor.total_norm.on(part.device, type, &result->held);
    coefs.value = factor.max_norm->value;
    if (factor.max_norm->is_on_gpu()) {
      coefs.max_norm_tensor = factor.max_norm->on(part.device, type, &result->held);
    }
  } else if (!factor.max_norm && factor.by.is_on_gpu()) {
    coefs.clip_coef = factor.by.on(part.device, type, &result->held);
  } else {
    coefs.value = coefficient_on_host(factor);
  }
}

inline PartFactors factors_of(const Parts& parts, const Factor& factor, FoundInf* found_inf) {
  PartFactors factors(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].is_gpu()) {
      set_on_gpu(factor, i, parts[i], found_inf, &factors[i]);
    } else {
      set_on_cpu(factor, i, &factors[i]);
    }
  }
  return factors;
}

// Multiplies in place, or into the parts' targets.
inline void scale_parts(const Gradients& gradients, const Parts& parts, const Factor& factor,
                        FoundInf* found_inf) {
  const PartFactors factors = factors_of(parts, factor, found_inf);
  if (parts[0].targets.empty()) gradients.bump_versions();
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    if (part.is_gpu()) {
      launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
        return launchers.scale(part.on_gpu, factors[i].on_gpu, device, stream);
      });
    } else if (!part.targets.empty()) {
      scale_entries_into<AtenPool>(part.on_cpu.list, part.targets.data(), factors[i].on_cpu);
    } else if (!found_inf->stops(i)) {
      scale_entries<AtenPool>(part.on_cpu.list, factors[i].on_cpu);
    }
  }
}

inline void clamp_parts(const Gradients& gradients, const Parts& parts, double clip_value,
                        const Scalar& inv_scale, FoundInf* found_inf) {
  const PartFactors factors = factors_of(parts, {.inv_scale = inv_scale}, found_inf);
  gradients.bump_versions();
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    if (part.is_gpu()) {
      const CudaCoefs& coefs = factors[i].on_gpu;
      const CudaClamp clamp{clip_value, coefs.inv_scale, coefs.found_inf};
      launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
        return launchers.clamp(part.on_gpu, clamp, device, stream);
      });
    } else if (!found_inf->stops(i)) {
      clamp_entries<AtenPool>(part.on_cpu.list, clip_value, factors[i].on_cpu.inv_scale);
    }
  }
}

}  // namespace fastclip
