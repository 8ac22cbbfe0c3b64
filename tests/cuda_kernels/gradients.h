// Lists of gradients in the emulator's device memory, with what they held before a call.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "run.h"

namespace fastclip::kernel_tests {

struct Place {
  int device = 0;
  size_t offset = 0;  // bytes past a 256-byte boundary
  bool is_read_only = false;
};

// Device memory filled with NaN. When it is freed, the zones around it must be intact.
class Memory {
 public:
  Memory(Run& run, const std::string& name, size_t bytes, Place place);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Run& run_;
  std::string name_;
  void* data_;
};

// Float32 or float64 numbers in device memory that kernels may only read.
class Numbers {
 public:
  Numbers(Run& run, const std::vector<double>& values, bool is_float64);

  const void* data() const { return memory_.as<void>(); }

 private:
  Memory memory_;
};

struct TensorSpec {
  DType dtype;
  int64_t count;
  size_t offset = 0;  // bytes past a 256-byte boundary; a multiple of the element's size
};

// The value of element `index` of tensor `tensor`.
using Values = std::function<double(Random& random, int tensor, int64_t index)>;

// Either sign, magnitudes from 2^-8 to 4: nothing that is special in any dtype.
double ordinary_value(Random& random, int tensor, int64_t index);

struct GradientOptions {
  Values values = ordinary_value;
  bool is_read_only = false;
  // One for each tensor, for results out of place; only offsets count.
  std::vector<TensorSpec> targets = {};
  cudaStream_t stream = nullptr;  // of write_table
};

// On the run's device, planned, with their table written.
class Gradients {
 public:
  Gradients(Run& run, const std::vector<TensorSpec>& specs, GradientOptions options = {});

  CudaList list;

  int size() const { return static_cast<int>(specs_.size()); }
  const TensorSpec& spec(int tensor) const { return specs_[static_cast<size_t>(tensor)]; }
  int64_t bytes() const;  // of all tensors
  int64_t bytes_of(int tensor) const {
    return spec(tensor).count * element_size(spec(tensor).dtype);
  }

  // The bits that the call is given.
  uint64_t before(int tensor, int64_t index) const;
  double value(int tensor, int64_t index) const {
    return decode_at(spec(tensor).dtype, before(tensor, index));
  }
  void set(int tensor, int64_t index, double value);
  // Restores what the last call changed.
  void restore();

  // The counts of the emulator, for all tensors; those of targets are separate.
  emulator::Traffic traffic() const { return traffic_of(memory_); }
  emulator::Traffic traffic(int tensor) const {
    return emulator::traffic(memory_[static_cast<size_t>(tensor)]->as<void>());
  }
  emulator::Traffic target_traffic() const { return traffic_of(target_memory_); }

  void expect_unchanged(const std::string& what) const;
  // Expects that every element, in the targets if there are any, is what `wanted` makes of the
  // element before the call.
  using Wanted = std::function<uint64_t(int tensor, DType dtype, uint64_t before)>;
  void expect_each(const std::string& what, const Wanted& wanted) const;
  void expect_multiplied(const std::string& what, double coef) const;
  // Returns a hash of all bits of all tensors.
  uint64_t digest() const;

 private:
  using Owned = std::vector<std::unique_ptr<Memory>>;

  static double decode_at(DType dtype, uint64_t bits);
  static emulator::Traffic traffic_of(const Owned& memory);
  void allocate(const GradientOptions& options);
  void fill(const Values& values);
  void write_table(cudaStream_t stream);
  char* data_at(int tensor, bool is_target) const;

  Run& run_;
  std::vector<TensorSpec> specs_;
  Owned memory_;         // null where a tensor is empty
  Owned target_memory_;  // as memory_
  std::unique_ptr<Memory> table_;
  std::vector<TensorEntry> entries_;
  std::vector<char*> targets_;
  std::vector<std::vector<char>> before_;
};
}  // namespace fastclip::kernel_tests
