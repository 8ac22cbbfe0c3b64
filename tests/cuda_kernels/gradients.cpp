#include "gradients.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "numbers.h"

namespace fastclip::kernel_tests {

Memory::Memory(Run& run, const std::string& name, size_t bytes, Place place)
    : run_(run),
      name_(name),
      data_(emulator::allocate(name, bytes, {place.is_read_only, place.device}, place.offset)) {}

Memory::~Memory() {
  run_.expect_true(emulator::free(data_), name_ + ": memory beside it was written");
}

Numbers::Numbers(Run& run, const std::vector<double>& values, bool is_float64)
    : memory_(run, "numbers", values.size() * (is_float64 ? 8 : 4), {run.device(), 0, true}) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (is_float64) {
      memory_.as<double>()[i] = values[i];
    } else {
      memory_.as<float>()[i] = static_cast<float>(values[i]);
    }
  }
}

double ordinary_value(Random& random, int, int64_t) {
  const double magnitude = std::ldexp(1 + random.uniform(), static_cast<int>(random.below(10)) - 8);
  return random.below(2) != 0 ? magnitude : -magnitude;
}

Gradients::Gradients(Run& run, const std::vector<TensorSpec>& specs, GradientOptions options)
    : list(), run_(run), specs_(specs) {
  allocate(options);
  fill(options.values);
  list = cuda().plan(entries_.data(), size(), options.targets.empty() ? nullptr : targets_.data());
  if (list.table_bytes > 0) write_table(options.stream);
}

void Gradients::allocate(const GradientOptions& options) {
  const auto own = [&](const char* kind, size_t i, size_t offset, bool is_read_only) {
    const auto bytes = static_cast<size_t>(specs_[i].count * element_size(specs_[i].dtype));
    return bytes == 0 ? nullptr
                      : std::make_unique<Memory>(run_, kind + std::to_string(i), bytes,
                                                 Place{run_.device(), offset, is_read_only});
  };
  for (size_t i = 0; i < specs_.size(); ++i) {
    memory_.push_back(own("tensor ", i, specs_[i].offset, options.is_read_only));
    entries_.push_back({data_at(static_cast<int>(i), false), specs_[i].count, -1, specs_[i].dtype});
    if (options.targets.empty()) continue;
    target_memory_.push_back(own("target ", i, options.targets[i].offset, false));
    targets_.push_back(data_at(static_cast<int>(i), true));
  }
}

void Gradients::fill(const Values& values) {
  Random random(1);
  for (int tensor = 0; tensor < size(); ++tensor) {
    const auto [dtype, count, offset] = spec(tensor);
    std::vector<char> data(static_cast<size_t>(bytes_of(tensor)));
    for (int64_t i = 0; i < count; ++i) {
      store_bits(&data[static_cast<size_t>(i * element_size(dtype))], dtype,
                 encode(dtype, values(random, tensor, i)));
    }
    before_.push_back(std::move(data));
  }
  restore();
}

void Gradients::restore() {
  for (int tensor = 0; tensor < size(); ++tensor) {
    const auto& data = before_[static_cast<size_t>(tensor)];
    if (!data.empty()) std::memcpy(data_at(tensor, false), data.data(), data.size());
  }
}

void Gradients::write_table(cudaStream_t stream) {
  table_ = std::make_unique<Memory>(run_, "table", static_cast<size_t>(list.table_bytes),
                                    Place{run_.device()});
  list.table = table_->as<char>();
  run_.expect_success("write_table", cuda().write_table(list, run_.device(), stream));
}

char* Gradients::data_at(int tensor, bool is_target) const {
  const auto& memory = (is_target ? target_memory_ : memory_)[static_cast<size_t>(tensor)];
  return memory == nullptr ? nullptr : memory->as<char>();
}

double Gradients::decode_at(DType dtype, uint64_t bits) { return decode(dtype, bits); }

uint64_t Gradients::before(int tensor, int64_t index) const {
  const DType dtype = spec(tensor).dtype;
  const auto at = static_cast<size_t>(index * element_size(dtype));
  return load_bits(&before_[static_cast<size_t>(tensor)][at], dtype);
}

void Gradients::set(int tensor, int64_t index, double value) {
  const DType dtype = spec(tensor).dtype;
  const int64_t at = index * element_size(dtype);
  store_bits(&before_[static_cast<size_t>(tensor)][static_cast<size_t>(at)], dtype,
             encode(dtype, value));
  store_bits(data_at(tensor, false) + at, dtype, encode(dtype, value));
}

emulator::Traffic Gradients::traffic_of(const Owned& memory) {
  emulator::Traffic all;
  for (const auto& owned : memory) {
    if (owned == nullptr) continue;
    const emulator::Traffic one = emulator::traffic(owned->as<char>());
    all.read += one.read;
    all.written += one.written;
    all.unique_read += one.unique_read;
    all.unique_written += one.unique_written;
  }
  return all;
}

void Gradients::expect_each(const std::string& what, const Wanted& wanted) const {
  for (int tensor = 0; tensor < size(); ++tensor) {
    const auto [dtype, count, offset] = spec(tensor);
    const char* const data = data_at(tensor, !target_memory_.empty());
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t got = load_bits(data + i * element_size(dtype), dtype);
      const uint64_t right = wanted(tensor, dtype, before(tensor, i));
      if (is_equal(dtype, got, right)) continue;
      const std::string element = "element " + std::to_string(i) + " of tensor " +
                                  std::to_string(tensor) + " (" + std::to_string(count) +
                                  " elements)";
      return run_.expect(what + ", " + element, decode(dtype, got), decode(dtype, right));
    }
  }
}

void Gradients::expect_unchanged(const std::string& what) const {
  for (int tensor = 0; tensor < size(); ++tensor) {
    const auto& data = before_[static_cast<size_t>(tensor)];
    if (data.empty() || std::memcmp(data_at(tensor, false), data.data(), data.size()) == 0)
      continue;
    run_.fail(what + ": tensor " + std::to_string(tensor) + " was changed");
  }
}

void Gradients::expect_multiplied(const std::string& what, double coef) const {
  expect_each(what, [&](int, DType dtype, uint64_t bits) { return multiplied(dtype, bits, coef); });
}

int64_t Gradients::bytes() const {
  int64_t bytes = 0;
  for (int tensor = 0; tensor < size(); ++tensor) bytes += bytes_of(tensor);
  return bytes;
}

uint64_t Gradients::digest() const {
  uint64_t hash = 1469598103934665603u;
  for (int tensor = 0; tensor < size(); ++tensor) {
    const char* const data = data_at(tensor, false);
    for (int64_t i = 0; i < bytes_of(tensor); ++i) {
      hash = (hash ^ static_cast<unsigned char>(data[i])) * 1099511628211u;
    }
  }
  return hash;
}

}  // namespace fastclip::kernel_tests
