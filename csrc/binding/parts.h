// The gradients of one call by device: each part is planned, given memory and launched on its own.
#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <string>
#include <vector>

#include "../cuda_launchers.h"
#include "accelerator.h"
#include "collector.h"
#include "engine.h"

namespace fastclip {

// The gradients on one device, in the order of the list.
struct Part {
  explicit Part(c10::Device where) : device(where) {}

  c10::Device device;
  std::vector<int32_t> positions;    // of its entries among all
  std::vector<TensorEntry> entries;  // parallel to `positions`
  std::vector<char*> targets;        // the same, or empty
  CpuList on_cpu;
  std::vector<double> combined;  // of the CPU's: one value per entry, before the root
  CudaList on_gpu{};
  void* stream = nullptr;
  at::Tensor memory;  // of the GPU's: the table, the partials, the sums
  double* partials = nullptr;
  double* sums = nullptr;

  bool is_gpu() const { return device.type() != c10::DeviceType::CPU; }
  // What to call as a device's number.
  int index() const { return device.index(); }

  bool is_capturing() const {
    if (!is_gpu()) return false;
    const accelerator::OnDevice on_device(device);
    return cuda_launchers()->is_capturing(index(), accelerator::current_stream(device));
  }

  // One combined value per entry, before the root.
  at::Tensor sums_tensor() const {
    const int64_t begin = reinterpret_cast<char*>(sums) - static_cast<char*>(memory.data_ptr());
    const auto size = static_cast<int64_t>(entries.size() * sizeof(double));
    return memory.narrow(0, begin, size).view(at::kDouble);
  }
};

// An operation of the binding, for the errors of its launches.
struct Operation {
  const char* name;

  // Calls body(launchers, device's number, stream) with the part's device current, and throws if
  // the status that it returns is an error.
  template <typename Body>
  void launch(const Part& part, Body body) const {
    const CudaLaunchers& launchers = *cuda_launchers();
    const accelerator::OnDevice on_device(part.device);
    const int status = body(launchers, part.index(), part.stream);
    TORCH_CHECK(status == 0, name, ": a launch on device ", part.device,
                " failed: ", launchers.name(status), " (", launchers.reason(status), "); ",
                launchers.advice(status));
  }
};

// Why the kernels cannot run on a device, or nothing. Asked once: a device that can run them stays.
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

// Plans a GPU's part and allocates what it needs.
inline void prepare_gpu(Part* part, bool has_sums) {
  const CudaLaunchers& launchers = *cuda_launchers();
  const accelerator::OnDevice on_device(part->device);
  if (const std::string reason = why_device_cannot(part->device); !reason.empty()) {
    throw Unsupported{{reason}};
  }
  const auto size = static_cast<int64_t>(part->entries.size());
  char* const* const targets = part->targets.empty() ? nullptr : part->targets.data();
  part->on_gpu = launchers.plan(part->entries.data(), size, targets);
  part->stream = accelerator::current_stream(part->device);
  constexpr int64_t kAlignment = sizeof(double);
  const int64_t table = (part->on_gpu.table_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const int64_t partials = has_sums ? part->on_gpu.groups * kAlignment : 0;
  const int64_t sums = has_sums ? size * kAlignment : 0;
  if (table + partials + sums == 0) return;
  part->memory = accelerator::empty({table + partials + sums}, at::kByte, part->device);
  char* const data = static_cast<char*>(part->memory.mutable_data_ptr());
  part->on_gpu.table = data;
  part->partials = reinterpret_cast<double*>(data + table);
  part->sums = reinterpret_cast<double*>(data + table + partials);
}

// Splits the list and allocates what its kernels write; nothing is launched.
inline std::vector<Part> parts_of(const Gradients& gradients, bool has_sums,
                                  const std::vector<char*>& targets = {}) {
  std::vector<Part> parts;
  for (size_t i = 0; i < gradients.entries.size(); ++i) {
    const c10::Device device = gradients.device_of(i);
    size_t at = 0;
    while (at < parts.size() && parts[at].device != device) ++at;
    if (at == parts.size()) parts.emplace_back(device);
    parts[at].positions.push_back(static_cast<int32_t>(i));
    parts[at].entries.push_back(gradients.entries[i]);
    if (!targets.empty()) parts[at].targets.push_back(targets[i]);
  }
  for (Part& part : parts) {
    if (part.is_gpu()) {
      prepare_gpu(&part, has_sums);
    } else {
      part.on_cpu = pack_for_cpu(&part.entries);
    }
  }
  return parts;
}

inline void write_tables(const Operation& operation, const std::vector<Part>& parts) {
  for (const Part& part : parts) {
    if (part.on_gpu.table_bytes == 0) continue;
    operation.launch(part, [&](const CudaLaunchers& launchers, int device, void* stream) {
      return launchers.write_table(part.on_gpu, device, stream);
    });
  }
}

// Parts that are ready for their launches.
inline std::vector<Part> split_by_device(const Operation& operation, const Gradients& gradients,
                                         bool has_sums, const std::vector<char*>& targets = {}) {
  std::vector<Part> parts = parts_of(gradients, has_sums, targets);
  write_tables(operation, parts);
  return parts;
}

}  // namespace fastclip
