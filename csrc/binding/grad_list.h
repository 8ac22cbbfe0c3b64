// The bound list: the gradients of some sources, read at each operation, and the operations.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "changes.h"
#include "packing.h"
#include "targets.h"
#include "walk/collector.h"

namespace fastclip {

using Multiplier = std::variant<double, at::Tensor, std::vector<at::Tensor>>;

// The arguments of a clip: see ClipRequest in fastclip/backends/request.py.
struct ClipRequest {
  MaxNorm max_norm;
  double norm_type;
  bool error_if_nonfinite;
  std::optional<at::Tensor> inv_scale;
  std::optional<at::Tensor> found_inf;
  bool writes;
  std::optional<at::ScalarType> dtype;
};

// Thrown as Python's _C.NonFiniteError: what was found, and the gradient of each source. Nothing
// has been written.
struct NonFinite {
  Remains found;
  std::vector<at::Tensor> read;
};

class GradList {
 public:
  GradList(py::list sources, int kind, int kernels)
      : sources_(std::move(sources)),
        kind_(static_cast<Kind>(kind)),
        kernels_(static_cast<Kernels>(kernels)) {}

  // Returns a list whose sources are the gradients themselves. Each of its operations still walks
  // them, because a tensor may be given other memory, another dtype or another device.
  std::unique_ptr<GradList> hold(bool takes_norm) const {
    std::vector<at::Tensor> read;
    Gradients gradients = walk(takes_norm, &read);
    gradients.own();
    const Kind kind = kind_ == Kind::kReadOnly ? Kind::kReadOnly : Kind::kTensors;
    auto held = held_list(read, kind, kernels_);
    if (kernels_ != Kernels::kNative) held->packing_.emplace(std::move(gradients));
    return held;
  }

  // Returns a list of gradients that have been read; one is undefined where a source has none.
  static std::unique_ptr<GradList> held_list(const std::vector<at::Tensor>& read, Kind kind,
                                             Kernels kernels) {
    py::list tensors;
    for (const at::Tensor& tensor : read) {
      tensors.append(tensor.defined() ? py::cast(tensor) : py::none());
    }
    auto held = std::make_unique<GradList>(std::move(tensors), static_cast<int>(kind),
                                           static_cast<int>(kernels));
    held->is_held_ = true;
    return held;
  }

  // Throws NonFinite where the request asks for an error.
  void clip(const ClipRequest& request, CudaMode mode, Remains* found) {
    check_norm_type(request.norm_type);
    if (request.writes) check_writes();
    Gradients gradients = walk(/*takes_norm=*/true);
    const NormOptions options =
        options_of(gradients, request.norm_type, request.dtype, request.error_if_nonfinite);
    const FinishArguments finish{max_norm_of(request.max_norm, gradients),
                                 copy_if_held(gradients, inv_scale_of(request.inv_scale))};
    FoundInf found_inf(request.found_inf);
    found->set_list(options, gradients);
    found->parts = split_by_device(&gradients);
    if (found->parts.empty()) return;
    {
      const AtWork at_work(&gradients, found->parts, options.norm_type);
      check_not_capturing(options, found->parts);
      prepare(&found->parts, /*has_sums=*/true);
      found_inf.spread(found->parts);
      clip_parts(gradients, finish, request.writes, mode, &found_inf, found);
    }
    note(found_inf, /*has_changed=*/request.writes);
    found->forget_entries();
    if (found->is_refused) throw NonFinite{std::move(*found), gradients.by_source()};
  }

  // Returns the arguments of Python's Sums.
  auto reduce(double norm_type, std::optional<at::ScalarType> dtype,
              const std::optional<at::Tensor>& flag) {
    check_norm_type(norm_type);
    Gradients gradients = walk(/*takes_norm=*/true);
    FoundInf found_inf(flag);
    Remains found;
    found.set_list(options_of(gradients, norm_type, dtype, false), gradients);
    found.parts = split_by_device(&gradients);
    if (!found.parts.empty()) {
      const AtWork at_work(&gradients, found.parts, norm_type);
      prepare(&found.parts, /*has_sums=*/true);
      found_inf.spread(found.parts);
      NormOfParts(&found, &found_inf).reduce();
    }
    note(found_inf, /*has_changed=*/false);
    return found.sums();
  }

  // Multiplies in place; returns whether there are gradients.
  bool scale(const Multiplier& by, const std::optional<at::Tensor>& inv_scale,
             const std::optional<at::Tensor>& found_inf) {
    return scale_by({.by = &by}, inv_scale, found_inf);
  }

  // Multiplies in place by the coefficient of a norm; returns whether there are gradients.
  bool scale_by_norm(const MaxNorm& max_norm, const at::Tensor& total_norm,
                     const std::optional<at::Tensor>& inv_scale,
                     const std::optional<at::Tensor>& found_inf) {
    if ((!is_gpu_tensor(total_norm) && !is_plain_cpu_tensor(total_norm)) || total_norm.dim() != 0 ||
        !is_float(total_norm)) {
      throw Unsupported(ReasonKind::kCall,
                        "total_norm must be a plain 0-dim floating-point tensor");
    }
    return scale_by({.max_norm = &max_norm, .total_norm = &total_norm}, inv_scale, found_inf);
  }

  // Writes targets[i] = gradients[i] * factor, for the distinct gradients in order.
  void scale_into(const std::vector<at::Tensor>& targets, const Multiplier& by,
                  const std::optional<at::Tensor>& inv_scale,
                  const std::optional<at::Tensor>& flag) {
    Gradients gradients = walk(/*takes_norm=*/false);
    Parts parts = split_by_device(&gradients, addresses_of(targets, gradients));
    const Factor factor = factor_of({.by = &by}, inv_scale, gradients, parts);
    change(&gradients, &parts, flag, [&](FoundInf* found_inf) {
      for (const at::Tensor& target : targets) target.unsafeGetTensorImpl()->bump_version();
      scale_parts(gradients, parts, factor, found_inf);
    });
  }

  // Clamps in place; returns whether there are gradients.
  bool clamp(double clip_value, const std::optional<at::Tensor>& inv_scale,
             const std::optional<at::Tensor>& flag) {
    check_writes();
    Gradients gradients = walk(/*takes_norm=*/false);
    check_clip_value(gradients, clip_value);
    const Scalar scalar = copy_if_held(gradients, inv_scale_of(inv_scale));
    Parts parts = split_by_device(&gradients);
    return change(&gradients, &parts, flag, [&](FoundInf* found_inf) {
      clamp_parts(gradients, parts, clip_value, scalar, found_inf);
    });
  }

  // Returns the packing, which only a held list for Triton's kernels has.
  const Packing& packing() const {
    TORCH_CHECK(packing_, "GradList: only a held list for Triton's kernels is packed");
    return *packing_;
  }

  const py::list& sources() const { return sources_; }
  void clear() { sources_ = py::list(); }

 private:
  // What scale() was given: a multiplier, or a norm and its limit.
  struct Given {
    const Multiplier* by = nullptr;
    const MaxNorm* max_norm = nullptr;
    const at::Tensor* total_norm = nullptr;
  };

  // `read`, unless null, receives the gradient of each source, undefined where there is none. A
  // `.grad` may be a property that runs Python code, so the list is indexed afresh at each step.
  Gradients walk(bool takes_norm, std::vector<at::Tensor>* read = nullptr) const {
    PyObject* const list = sources_.ptr();
    const Use use{kind_ != Kind::kReadOnly, takes_norm};
    Collector collector(static_cast<size_t>(PyList_GET_SIZE(list)), use, kernels_, read);
    const auto object_at = [&](size_t i) -> PyObject* {
      const auto index = static_cast<Py_ssize_t>(i);
      return index < PyList_GET_SIZE(list) ? PyList_GET_ITEM(list, index) : nullptr;
    };
    const bool are_parameters = kind_ == Kind::kParameters;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
      PyObject* const object = PyList_GET_ITEM(list, i);
      if (are_parameters) collector.look_ahead(static_cast<size_t>(i), object_at);
      if (THPVariable_CheckTypeExact(Py_TYPE(object))) {
        are_parameters ? collector.add_parameter(THPVariable_Unpack(object))
                       : collector.add_tensor(object);
        continue;
      }
      if (is_held_ && object == Py_None) {
        collector.skip();
        continue;
      }
      // The object's own Python code may drop it from the list.
      const auto kept = py::reinterpret_borrow<py::object>(object);
      are_parameters ? collector.add_parameter(object) : collector.add_tensor(object);
    }
    return collector.finish();
  }

  static NormOptions options_of(const Gradients& gradients, double norm_type,
                                std::optional<at::ScalarType> dtype, bool error_if_nonfinite) {
    const bool is_float64 = dtype ? *dtype == at::kDouble : gradients.has_float64;
    return {norm_type, is_float64, error_if_nonfinite};
  }

  // Nothing can be read back while a graph is captured, because it runs later.
  static void check_not_capturing(const NormOptions& options, const Parts& parts) {
    TORCH_CHECK(!options.error_if_nonfinite || !is_capturing(parts),
                "fastclip: error_if_nonfinite must be False while a CUDA graph is captured",
                " (the norm would have to be read back)");
  }

  void check_writes() const {
    TORCH_CHECK_VALUE(kind_ != Kind::kReadOnly,
                      "fastclip: a list that is read only is not written");
  }

  // Takes the norm and rescales. Waits for the norm only if error_if_nonfinite asks for it.
  static void clip_parts(const Gradients& gradients, const FinishArguments& finish, bool writes,
                         CudaMode mode, FoundInf* found_inf, Remains* found) {
    NormOfParts norm(found, found_inf);
    const bool is_on_one_gpu = found->parts.size() == 1 && found->parts[0].is_gpu();
    if (is_on_one_gpu && writes) {
      norm.clip(finish, mode);
      found_inf->merge(found->parts);
    } else {
      norm.finish(finish);
    }
    const Finished& finished = found->finished;
    found->is_refused =
        found->options.error_if_nonfinite && !std::isfinite(finished.total_norm.item<double>());
    if (!writes || found->is_refused) return;
    if (is_on_one_gpu) return gradients.bump_versions();
    Factor factor;
    factor.by = finished.clip_coef;
    factor.inv_scale = finish.inv_scale;
    factor.is_float64 = found->options.is_float64;
    scale_parts(gradients, found->parts, factor, found_inf);
  }

  bool scale_by(const Given& given, const std::optional<at::Tensor>& inv_scale,
                const std::optional<at::Tensor>& flag) {
    check_writes();
    Gradients gradients = walk(/*takes_norm=*/false);
    Parts parts = split_by_device(&gradients);
    const Factor factor = factor_of(given, inv_scale, gradients, parts);
    return change(&gradients, &parts, flag,
                  [&](FoundInf* found_inf) { scale_parts(gradients, parts, factor, found_inf); });
  }

  static Factor factor_of(const Given& given, const std::optional<at::Tensor>& inv_scale,
                          const Gradients& gradients, const Parts& parts) {
    Factor factor;
    factor.inv_scale = copy_if_held(gradients, inv_scale_of(inv_scale));
    if (parts.empty()) return factor;
    if (given.total_norm != nullptr) {
      const Scalar norm = scalar_of(*given.total_norm);
      factor.max_norm = max_norm_of(*given.max_norm, gradients);
      if (norm.is_on_gpu() && !gradients.is_on_gpu) {
        throw Unsupported(ReasonKind::kCall,
                          "total_norm is on a GPU and the gradients are on the CPU");
      }
      factor.total_norm = copy_if_held(gradients, norm);
      factor.is_float64 = given.total_norm->scalar_type() == at::kDouble;
    } else if (const double* const number = std::get_if<double>(given.by)) {
      factor.by = *number;
      factor.is_float64 = true;
    } else if (const at::Tensor* const tensor = std::get_if<at::Tensor>(given.by)) {
      check_multiplier(*tensor, 1);
      TORCH_CHECK_VALUE(tensor->dim() == 0, "fastclip: a tensor to multiply by must be 0-dim (got ",
                        tensor->dim(), " dimensions)");
      factor.by = copy_if_held(gradients, scalar_of(*tensor));
      factor.is_float64 = tensor->scalar_type() == at::kDouble;
    } else {
      factor.each = std::get<std::vector<at::Tensor>>(*given.by);
      check_multipliers(factor.each, parts);
      for (at::Tensor& each : factor.each) {
        if (is_gpu_tensor(each)) each = copy_if_held(gradients, each).tensor;
      }
      factor.is_float64 = factor.each[0].scalar_type() == at::kDouble;
    }
    return factor;
  }

  // Calls write(found_inf) once the parts are ready and found_inf is up to date. Returns whether
  // there are gradients.
  template <typename Write>
  bool change(Gradients* gradients, Parts* parts, const std::optional<at::Tensor>& flag,
              Write write) {
    FoundInf found_inf(flag);
    if (parts->empty()) return false;
    // reduce() may have looked at the elements of a held list already.
    const bool is_checked = checked_.defined() && checked_.is_same(found_inf.tensor());
    const bool looks = found_inf.is_given() && !is_checked;
    note(found_inf, /*has_changed=*/(*parts)[0].targets.empty());
    const AtWork at_work(gradients, *parts);
    prepare(parts, /*has_sums=*/looks);
    found_inf.spread(*parts);
    if (looks) find_inf(*parts, &found_inf);
    write(&found_inf);
    return true;
  }

  // Remembers which found_inf the gradients of a held list were checked for since they last
  // changed.
  void note(const FoundInf& found_inf, bool has_changed) {
    if (!is_held_) return;
    if (has_changed) {
      checked_.reset();
    } else if (found_inf.is_given()) {
      checked_ = found_inf.tensor();
    }
  }

  py::list sources_;
  Kind kind_;
  Kernels kernels_;
  bool is_held_ = false;  // the sources are gradients, None where there was none
  at::Tensor checked_;    // the found_inf that the held gradients were checked for
  std::optional<Packing> packing_;
};

}  // namespace fastclip
