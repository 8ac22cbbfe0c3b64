// The gradients of a list by device: each part is planned, given memory and launched by itself. A
// list that lies wholly on the CPU is one part.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>

#include <atomic>
#include <string>
#include <vector>

#include "../cpu_engine.h"
#include "../cuda_launchers.h"
#include "accelerator.h"
#include "gradients.h"
#include "walk/reasons.h"

namespace fastclip {

// ATen's threads, for the CPU kernels.
struct AtenPool {
  static int64_t threads() { return at::get_num_threads(); }

  template <typename Work>
  static void run(int64_t threads, const Work& work) {
    at::parallel_for(0, threads, 1, work);
  }
};

// The gradients on one device, in the order of the list.
struct Part {
  explicit Part(c10::Device where) : device(where) {}

  c10::Device device;
  TensorEntry* entries = nullptr;  // of the whole list where that has one part, else of `copied`
  int64_t size = 0;
  std::vector<TensorEntry> copied;
  std::vector<int32_t> positions;  // of these entries in the list; empty if it is the only part
  std::vector<char*> targets;      // one for each entry, or empty
  CpuList on_cpu;
  std::vector<double> sums_on_cpu;  // one for each entry, before the root
  CudaList on_gpu{};
  void* stream = nullptr;
  at::Tensor memory;  // on a GPU: the table, the partials, the sums, the total, the coefficient
  double* partials = nullptr;
  double* sums = nullptr;
  double* total = nullptr;
  void* clip_coef = nullptr;

  bool is_gpu() const { return device.type() != c10::DeviceType::CPU; }
  // The device's number, as the launchers take it.
  int index() const { return device.index(); }

  bool is_capturing() const {
    if (!is_gpu()) return false;
    const accelerator::OnDevice on_device(device);
    return cuda_launchers()->is_capturing(index(), accelerator::current_stream(device));
  }

  // Returns a view of `memory` from an address on.
  at::Tensor view(const void* begin, int64_t count, at::ScalarType type) const {
    const int64_t offset = static_cast<const char*>(begin) - static_cast<char*>(memory.data_ptr());
    return memory.narrow(0, offset, count * c10::elementSize(type)).view(type);
  }
};

// Nearly all lists have one part.
using Parts = c10::SmallVector<Part, 1>;

// Calls body(launchers, device's number, stream) with the part's device current. Throws if body
// returns an error.
template <typename Body>
void launch(const Part& part, Body body) {
  const CudaLaunchers& launchers = *cuda_launchers();
  const accelerator::OnDevice on_device(part.device);
  const int status = body(launchers, part.index(), part.stream);
  TORCH_CHECK(status == 0, "fastclip: a launch on device ", part.device,
              " failed: ", launchers.name(status), " (", launchers.reason(status), "); ",
              launchers.advice(status));
}

// Returns why the kernels cannot run on a device; empty if they can. A device that can run them is
// not checked again.
inline std::string why_device_cannot(c10::Device device) {
  constexpr int kDevices = 64;
  static std::atomic<bool> is_checked[kDevices];
  const int index = device.index();
  if (index < kDevices && is_checked[index].load(std::memory_order_relaxed)) return {};
  const CudaLaunchers& launchers = *cuda_launchers();
  const int status = launchers.check(index);
  if (status != 0) {
    const auto release = [](int version) {
      if (version == 0) return std::string("none");
      return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
    };
    return std::string("the CUDA kernels cannot run on device ") + device.str() + ": " +
           launchers.name(status) + " (" + launchers.reason(status) +
           "; driver: " + release(launchers.driver_version()) + ", kernels: CUDA " +
           release(launchers.runtime_version()) + "); " + launchers.advice(status);
  }
  if (index < kDevices) is_checked[index].store(true, std::memory_order_relaxed);
  return {};
}

// Splits a list by device; nothing is allocated on a GPU yet. The list's entries must not move
// afterwards.
inline Parts split_by_device(Gradients* gradients, const std::vector<char*>& targets = {}) {
  Parts parts;
  const auto size = static_cast<size_t>(gradients->size());
  if (size == 0) return parts;
  const c10::Device first = gradients->is_on_gpu ? gradients->device_of(0) : at::kCPU;
  bool is_on_one_device = true;
  for (size_t i = 1; gradients->is_on_gpu && is_on_one_device && i < size; ++i) {
    is_on_one_device = gradients->device_of(i) == first;
  }
  if (is_on_one_device) {
    Part& part = parts.emplace_back(first);
    part.entries = gradients->entries.data();
    part.size = gradients->size();
    part.targets = targets;
  } else {
    for (size_t i = 0; i < size; ++i) {
      const c10::Device device = gradients->device_of(i);
      size_t at = 0;
      while (at < parts.size() && parts[at].device != device) ++at;
      if (at == parts.size()) parts.emplace_back(device);
      parts[at].positions.push_back(static_cast<int32_t>(i));
      parts[at].copied.push_back(gradients->entries[i]);
      if (!targets.empty()) parts[at].targets.push_back(targets[i]);
    }
    for (Part& part : parts) {
      part.entries = part.copied.data();
      part.size = static_cast<int64_t>(part.copied.size());
    }
  }
  for (Part& part : parts) {
    if (!part.is_gpu()) part.on_cpu = pack_for_cpu(part.entries, part.size);
  }
  return parts;
}

// Plans a GPU's part and allocates what it needs; nothing is launched.
inline void prepare_gpu(Part* part, bool has_sums) {
  const CudaLaunchers& launchers = *cuda_launchers();
  const accelerator::OnDevice on_device(part->device);
  if (std::string reason = why_device_cannot(part->device); !reason.empty()) {
    throw Unsupported(ReasonKind::kDevice, std::move(reason));
  }
  char* const* const targets = part->targets.empty() ? nullptr : part->targets.data();
  part->on_gpu = launchers.plan(part->entries, part->size, targets);
  part->stream = accelerator::current_stream(part->device);
  constexpr int64_t kAlignment = sizeof(double);
  const int64_t table = (part->on_gpu.table_bytes + kAlignment - 1) / kAlignment;
  const int64_t doubles = has_sums ? part->on_gpu.groups + part->size + 2 : 0;
  if (table + doubles == 0) return;
  part->memory = accelerator::empty({(table + doubles) * kAlignment}, at::kByte, part->device);
  auto* const data = static_cast<double*>(part->memory.mutable_data_ptr());
  part->on_gpu.table = reinterpret_cast<char*>(data);
  part->partials = data + table;
  part->sums = part->partials + part->on_gpu.groups;
  part->total = part->sums + part->size;
  part->clip_coef = part->total + 1;
}

// Makes parts ready for their launches. Everything that can fail is done for all of them first.
inline void prepare(Parts* parts, bool has_sums) {
  for (Part& part : *parts) {
    if (part.is_gpu()) prepare_gpu(&part, has_sums);
  }
  for (const Part& part : *parts) {
    if (part.on_gpu.table_bytes == 0) continue;
    launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
      return launchers.write_table(part.on_gpu, device, stream);
    });
  }
}

inline bool is_capturing(const Parts& parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [](const Part& part) { return part.is_capturing(); });
}

// Lives while kernels work on the parts of a list. It keeps denormals. Where the work is for a GPU,
// for more than one thread or for a slow norm, it also owns the gradients and releases the GIL.
// Elsewhere neither pays: the references would cost a list of small gradients a tenth of its time,
// and getting the GIL back may take milliseconds.
class AtWork {
 public:
  AtWork(Gradients* gradients, const Parts& parts, double norm_type = 2)
      : without_gil_(owned(gradients, parts, norm_type)) {}

 private:
  static const Gradients& owned(Gradients* gradients, const Parts& parts, double norm_type) {
    const bool is_long = std::any_of(parts.begin(), parts.end(), [](const Part& part) {
      return part.is_gpu() || part.on_cpu.list.span_count > 1;
    });
    if (is_long || !PNorm::streams(norm_type)) gradients->own();
    return *gradients;
  }

  KeepDenormals keep_denormals_;
  WithoutGil without_gil_;
};

}  // namespace fastclip
