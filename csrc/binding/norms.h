// The norm of a list over its parts: sums, total, total_norm and clip_coef. Nothing here waits for
// a device, except for what goes between a GPU and a part of the list on the CPU.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "scalar.h"

namespace fastclip {

// The value is rounded here, because torch refuses a double that float32 would round to inf.
inline at::Tensor scalar_tensor(double value, bool is_float64) {
  return at::scalar_tensor(is_float64 ? value : static_cast<float>(value),
                           at::device(at::kCPU).dtype(is_float64 ? at::kDouble : at::kFloat));
}

inline void check_norm_type(double norm_type) {
  if (PNorm::supports(norm_type)) return;
  throw Unsupported(ReasonKind::kCall,
                    "norm_type " + std::to_string(norm_type) + " (supported: above 0, and inf)");
}

struct NormOptions {
  double norm_type;
  bool is_float64;  // the dtype of total_norm and of clip_coef; else float32
  bool error_if_nonfinite = false;

  at::ScalarType dtype() const { return is_float64 ? at::kDouble : at::kFloat; }
  PNorm norm() const { return {norm_type, is_float64}; }
};

// What total_norm and clip_coef depend on besides the sums.
struct FinishArguments {
  Scalar max_norm;
  Scalar inv_scale = 1;
};

// The results of a norm. If the first part is on a GPU, each of them is a tensor there.
struct Finished {
  at::Tensor total_norm;
  Scalar clip_coef;  // this and `total` may be left in the memory of a part (Remains)
  Scalar total;      // before the root, in float64
};

using Totals = c10::SmallVector<Scalar, 1>;  // one for each part

// Where a kernel puts its results besides total_norm: unless null, each has room for a double.
struct ResultMemory {
  double* total;
  void* clip_coef;
};

inline void launch_finish(const Part& part, const CudaList& list, const CudaSums& sums,
                          const CudaResult& result) {
  launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
    return launchers.finish(list, sums, result, device, stream);
  });
}

// Returns the arguments of a part's second step: what it reads, which `held` keeps alive, and where
// its results go.
inline CudaResult result_on(const Part& part, const NormOptions& options,
                            const FinishArguments& finish, const ResultMemory& memory,
                            at::Tensor* total_norm, std::vector<at::Tensor>* held) {
  CudaResult result{};
  result.is_float64 = options.is_float64;
  *total_norm = accelerator::empty({}, options.dtype(), part.device);
  result.total_norm = total_norm->mutable_data_ptr();
  result.total = memory.total;
  result.clip_coef = memory.clip_coef;
  result.max_norm = finish.max_norm.value;
  if (finish.max_norm.is_on_gpu()) {
    result.max_norm_tensor = finish.max_norm.on(part.device, options.dtype(), held);
  }
  if (finish.inv_scale.is_on_gpu() || finish.inv_scale.value != 1) {
    result.inv_scale =
        static_cast<const float*>(finish.inv_scale.on(part.device, at::kFloat, held));
  }
  return result;
}

inline Finished finish_on_host(const Totals& totals, const NormOptions& options,
                               const FinishArguments& finish) {
  double total = 0;
  for (const Scalar& part : totals) total = options.norm().combine(total, part.on_host());
  const CpuNorm norm = finish_on_cpu(total, options.norm(), finish.max_norm.on_host(),
                                     finish.inv_scale.on_host(), options.is_float64);
  return {scalar_tensor(norm.total_norm, options.is_float64), norm.clip_coef, total};
}

// Returns the totals as one tensor on a GPU. A single total that is there already is not copied.
inline at::Tensor on_one_device(const Totals& totals, c10::Device device) {
  if (totals.size() == 1 && totals[0].is_on_gpu()) {
    return accelerator::move(totals[0].tensor, device, at::kDouble);
  }
  const auto size = static_cast<int64_t>(totals.size());
  at::Tensor all = accelerator::empty({size}, at::kDouble, device);
  for (int64_t i = 0; i < size; ++i) {
    if (totals[i].is_on_gpu()) {
      all.select(0, i).copy_(totals[i].tensor);
    } else {
      all.select(0, i).fill_(totals[i].value);
    }
  }
  return all;
}

// Combines the totals of parts, which are in the order of the list, on `device`, that of the first
// part.
inline Finished finish_totals(const Totals& totals, c10::Device device, const NormOptions& options,
                              const FinishArguments& finish) {
  if (device.is_cpu()) return finish_on_host(totals, options, finish);
  Part part(device);
  part.stream = accelerator::current_stream(device);
  const auto size = static_cast<int32_t>(totals.size());
  const at::Tensor partials = on_one_device(totals, device);
  at::Tensor results = accelerator::empty({2}, at::kDouble, device);
  auto* const memory = results.mutable_data_ptr<double>();
  CudaList none{};
  none.groups = size;
  auto* const read = const_cast<double*>(partials.const_data_ptr<double>());
  const CudaSums sums{options.norm_type, read, nullptr, nullptr, options.is_float64};
  std::vector<at::Tensor> held;
  Finished finished;
  const CudaResult result =
      result_on(part, options, finish, {memory, memory + 1}, &finished.total_norm, &held);
  launch_finish(part, none, sums, result);
  finished.total = results.select(0, 0);
  finished.clip_coef = results.narrow(0, 1, 1).view(options.dtype()).select(0, 0);
  return finished;
}

// Returns the total that a part's kernel has written.
inline at::Tensor total_in(const Part& part) {
  return part.view(part.total, 1, at::kDouble).select(0, 0);
}

// What a reduction leaves behind. It outlives the list.
class Remains {
 public:
  void set_list(const NormOptions& the_options, const Gradients& gradients) {
    options = the_options;
    entries_ = gradients.size();
    if (!gradients.is_in_order()) entry_of_source_ = gradients.entry_of_source;
  }

  NormOptions options{};
  Parts parts;
  Finished finished;
  bool is_refused = false;  // the norm is not finite, and an error was asked for
  // Whether total and clip_coef are still in the first part's memory only: making tensors of them
  // takes 3 us.
  bool is_in_memory = false;

  // Returns the arguments of Python's Sums. Uses are recorded because the caller's stream may not
  // be the clip's.
  auto sums() const {
    std::vector<at::Tensor> sums;
    std::vector<std::optional<at::Tensor>> norms;
    for (const Part& part : parts) {
      if (part.is_gpu()) {
        accelerator::record_use(part.memory, part.device);
        sums.push_back(part.view(part.sums, part.size, at::kDouble));
        norms.emplace_back();
      } else {
        sums.push_back(at::tensor(part.sums_on_cpu, at::device(at::kCPU).dtype(at::kDouble)));
        norms.emplace_back(norms_on_cpu(part));
      }
    }
    const Scalar total = is_in_memory ? total_in(parts[0]) : finished.total;
    if (total.is_on_gpu()) accelerator::record_use(total.tensor, parts[0].device);
    return std::make_tuple(std::move(sums),
                           total.is_on_gpu() ? total.tensor : scalar_tensor(total.value, true),
                           places(), options.norm_type, options.dtype(), std::move(norms));
  }

  // Returns, for a list on the CPU, the norm of each gradient and places(): parameter_norms needs
  // no more, and sums() would make more tensors.
  std::optional<std::pair<at::Tensor, std::optional<at::Tensor>>> norms() const {
    if (parts.size() != 1 || parts[0].is_gpu()) return std::nullopt;
    return std::make_pair(norms_on_cpu(parts[0]), places());
  }

  std::optional<at::Tensor> total_norm() const {
    if (!finished.total_norm.defined()) return std::nullopt;
    return finished.total_norm;
  }

  at::Tensor clip_coef() const {
    TORCH_CHECK(finished.total_norm.defined(), "fastclip: clip_coef: there were no gradients");
    const Part& first = parts[0];
    if (is_in_memory) {
      accelerator::record_use(first.memory, first.device);
      return first.view(first.clip_coef, 1, options.dtype()).select(0, 0);
    }
    const Scalar& coef = finished.clip_coef;
    if (coef.is_on_gpu()) accelerator::record_use(coef.tensor, first.device);
    return coef.is_on_gpu() ? coef.tensor : scalar_tensor(coef.value, options.is_float64);
  }

  bool is_capturing() const { return fastclip::is_capturing(parts); }

  // Drops the pointers to entries: they belong to the list, which may be freed, and what follows
  // needs none of them.
  void forget_entries() {
    for (Part& part : parts) {
      part.entries = nullptr;
      part.copied = {};
      part.on_cpu = {};
    }
  }

 private:
  // These norms are rounded as total_norm is, not by torch: its square root may differ in the last
  // bit, and its conversion may flush denormals.
  at::Tensor norms_on_cpu(const Part& part) const {
    const KeepDenormals keep_denormals;
    at::Tensor norms = at::empty({part.size}, at::device(at::kCPU).dtype(options.dtype()));
    if (options.is_float64) {
      options.norm().roots(part.sums_on_cpu, norms.mutable_data_ptr<double>());
    } else {
      options.norm().roots(part.sums_on_cpu, norms.mutable_data_ptr<float>());
    }
    return norms;
  }

  // Returns, for each source, the position of its gradient when those of all parts are laid end to
  // end.
  std::optional<at::Tensor> places() const {
    const bool is_split = parts.size() > 1;
    if (!is_split && !entry_of_source_) return std::nullopt;
    std::vector<int64_t> place_of_entry(is_split ? entries_ : 0);
    int64_t place = 0;
    for (const Part& part : parts) {
      for (const int32_t entry : part.positions) place_of_entry[entry] = place++;
    }
    const int64_t size =
        entry_of_source_ ? static_cast<int64_t>(entry_of_source_->size()) : entries_;
    at::Tensor places = at::empty({size}, at::device(at::kCPU).dtype(at::kLong));
    auto* const values = places.mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < size; ++i) {
      const int64_t entry = entry_of_source_ ? (*entry_of_source_)[i] : i;
      values[i] = entry >= 0 && is_split ? place_of_entry[entry] : entry;
    }
    return places;
  }

  int64_t entries_ = 0;
  std::optional<std::vector<int32_t>> entry_of_source_;  // none where it is 0, 1, 2, ...
};

// Sets found_inf if an element of a part is inf or NaN. The parts must be prepared with sums.
inline void find_inf(const Parts& parts, FoundInf* found_inf) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    if (!part.is_gpu()) {
      reduce_entries<AtenPool>(part.on_cpu.list, PNorm(INFINITY, false), found_inf->on_cpu(i));
      continue;
    }
    const CudaSums maxima{INFINITY, part.partials, nullptr, found_inf->on_gpu(i), false};
    launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
      return launchers.reduce(part.on_gpu, maxima, device, stream);
    });
  }
  found_inf->merge(parts);
}

// The norm over all parts of a list. The parts must be prepared with sums.
class NormOfParts {
 public:
  // `found` must hold the parts; it receives the results.
  NormOfParts(Remains* found, FoundInf* found_inf) : found_(*found), found_inf_(*found_inf) {}

  // Takes the norm and rescales in place, for a list on one GPU.
  void clip(const FinishArguments& finish, CudaMode mode) {
    const Part& part = found_.parts[0];
    std::vector<at::Tensor> held;
    CudaResult result = result_on(part, found_.options, finish, {part.total, part.clip_coef},
                                  &found_.finished.total_norm, &held);
    result.error_if_nonfinite = found_.options.error_if_nonfinite;
    launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
      return launchers.clip(part.on_gpu, sums_of(0), result, mode, device, stream);
    });
    found_.is_in_memory = true;
  }

  // Takes the sums and the totals, then the norm and the coefficient.
  void finish(const FinishArguments& finish) {
    const Totals totals = reduce_parts();
    const Part& part = found_.parts[0];
    if (!totals.empty()) {
      found_.finished = finish_totals(totals, part.device, found_.options, finish);
      return;
    }
    std::vector<at::Tensor> held;
    const CudaResult result = result_on(part, found_.options, finish, {part.total, part.clip_coef},
                                        &found_.finished.total_norm, &held);
    launch_finish(part, part.on_gpu, sums_of(0), result);
    found_.is_in_memory = true;
  }

  // Takes the sums and their total, without the root.
  void reduce() {
    const Totals totals = reduce_parts();
    const Part& part = found_.parts[0];
    if (totals.empty()) {
      CudaResult result{};
      result.total = part.total;
      launch_finish(part, part.on_gpu, sums_of(0), result);
      found_.is_in_memory = true;
    } else if (totals.size() == 1) {
      found_.finished.total = totals[0];
    } else {
      found_.finished.total = finish_totals(totals, part.device, found_.options, {}).total;
    }
  }

 private:
  // Returns one total for each part; none for a list on one GPU, whose partials the next kernel
  // combines.
  Totals reduce_parts() {
    const NormOptions& options = found_.options;
    const bool has_one_part = found_.parts.size() == 1;
    Totals totals;
    for (size_t i = 0; i < found_.parts.size(); ++i) {
      Part& part = found_.parts[i];
      if (!part.is_gpu()) {
        part.sums_on_cpu =
            reduce_entries<AtenPool>(part.on_cpu.list, options.norm(), found_inf_.on_cpu(i));
        totals.emplace_back(options.norm().combine(part.sums_on_cpu));
        continue;
      }
      launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
        return launchers.reduce(part.on_gpu, sums_of(i), device, stream);
      });
      if (has_one_part) break;
      CudaResult result{};
      result.total = part.total;
      launch_finish(part, part.on_gpu, sums_of(i), result);
      totals.emplace_back(total_in(part));
    }
    found_inf_.merge(found_.parts);
    return totals;
  }

  CudaSums sums_of(size_t i) {
    const Part& part = found_.parts[i];
    return {found_.options.norm_type, part.partials, part.sums, found_inf_.on_gpu(i),
            found_.options.is_float64};
  }

  Remains& found_;
  FoundInf& found_inf_;
};

}  // namespace fastclip
