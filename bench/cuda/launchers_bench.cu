// fastclip's fused launcher on lists of gradients, without torch: device time of a clip that clips
// nothing, of one that clips, and of the launches that write a long table. Built from two trees it
// compares two versions of the kernels.
//
//     ./launchers_bench lists.txt [launches]
//
// README.md beside this file says how to build it. A second argument adds the times of empty
// kernels with short and long arguments. In the environment: TABLE=1 times clips whose table is in
// memory already, 2 reads it in pinned memory, 3 copies it from there, 0 (default) writes it as a
// clip does. PLAIN=1 makes each call once and times nothing, for compute-sanitizer. Needs 3 GB of
// the GPU's memory.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "gpu_work.h"
#include "launchers.h"
#include "measuring.cuh"

using namespace fastclip;
using namespace fastclip::device;

enum TableMode { WRITTEN, THERE_ALREADY, READ_PINNED, COPIED_PINNED };

template <int kBytes>
struct Arguments {
  char bytes[kBytes];
};

template <int kBytes>
__global__ void empty(const __grid_constant__ Arguments<kBytes> arguments, float* out) {
  if (arguments.bytes[threadIdx.x % kBytes] == 77) *out = 1;
}

// Uniform in [-0.005, 0.005).
__device__ float value_at(int64_t i) {
  const uint32_t hash = (uint32_t)i * 2654435761u;
  return ((hash >> 8) * (1.f / 16777216.f) - 0.5f) * 0.01f;
}

__global__ void fill_float32(float* p, int64_t n) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i < n; i += (int64_t)gridDim.x * blockDim.x) p[i] = value_at(i);
}

__global__ void fill_bfloat16(unsigned short* p, int64_t n) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i < n; i += (int64_t)gridDim.x * blockDim.x) p[i] = __float_as_uint(value_at(i)) >> 16;
}

constexpr int64_t kCapacity = int64_t{2200} << 20;
constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kAlignment = 512;  // as torch's allocator gives it

// Memory for any list, and what a call needs beside it.
struct Memory {
  char* data;
  char* table;
  char* pinned;
  char* pinned_on_device;
  double* partials;
  float* total_norm;
};

static Memory allocate() {
  Memory memory;
  CHECK(cudaMalloc(&memory.data, kCapacity));
  CHECK(cudaMalloc(&memory.table, kMiB));
  CHECK(cudaHostAlloc(&memory.pinned, kMiB, cudaHostAllocMapped));
  CHECK(cudaHostGetDevicePointer(&memory.pinned_on_device, memory.pinned, 0));
  CHECK(cudaMalloc(&memory.partials, kMiB));
  CHECK(cudaMalloc(&memory.total_norm, sizeof(float)));
  return memory;
}

struct Line {
  std::string name;
  std::vector<int64_t> counts;
};

static std::vector<Line> read_lines(const char* path) {
  std::ifstream file(path);
  if (!file) {
    std::printf("FAIL cannot read %s\n", path);
    std::exit(1);
  }
  std::vector<Line> lines;
  for (std::string text; std::getline(file, text);) {
    std::istringstream words(text);
    Line line;
    size_t size = 0;
    words >> line.name >> size;
    line.counts.resize(size);
    for (int64_t& count : line.counts) words >> count;
    lines.push_back(line);
  }
  return lines;
}

// Lays the tensors out one after another; returns the bytes from the first to the end of the last.
static int64_t place(const Line& line, DType dtype, const Memory& memory,
                     std::vector<TensorEntry>* entries) {
  int64_t at = 0;
  for (const int64_t count : line.counts) {
    TensorEntry entry{};
    entry.data = memory.data + at;
    entry.count = count;
    entry.dtype = dtype;
    entries->push_back(entry);
    at += (count * element_size(dtype) + kAlignment - 1) / kAlignment * kAlignment;
  }
  return at;
}

static void fill(const Measuring& m, DType dtype, char* data, int64_t bytes) {
  const int blocks = m.multiprocessors * 8;
  if (dtype == DType::kFloat32)
    fill_float32<<<blocks, 256>>>(reinterpret_cast<float*>(data), bytes / 4);
  else
    fill_bfloat16<<<blocks, 256>>>(reinterpret_cast<unsigned short*>(data), bytes / 2);
  CHECK(cudaDeviceSynchronize());
}

// Writes the table's rows into pinned memory, in the order that the kernels read.
static void write_pinned(const std::vector<TensorEntry>& entries, char* pinned) {
  const size_t n = entries.size();
  uint64_t* addresses = reinterpret_cast<uint64_t*>(pinned);
  int64_t* counts = reinterpret_cast<int64_t*>(pinned + 8 * n);
  int32_t* slots = reinterpret_cast<int32_t*>(pinned + 16 * n);
  for (size_t i = 0; i < n; ++i) {
    addresses[i] = reinterpret_cast<uint64_t>(entries[i].data);
    counts[i] = pack_count(entries[i].count, entries[i].dtype);
    slots[i] = static_cast<int32_t>(entries[i].first_unit);
  }
}

// A list whose calls are timed.
class Bench {
 public:
  Bench(const Measuring& m, const Memory& memory, TableMode mode, bool is_plain)
      : m_(m), memory_(memory), mode_(mode), is_plain_(is_plain) {}

  void run(const Line& line, DType dtype) {
    std::vector<TensorEntry> entries;
    const int64_t bytes = place(line, dtype, memory_, &entries);
    const int size = static_cast<int>(entries.size());
    if (bytes > kCapacity || size * int64_t{kTableRowBytes} > kMiB) {
      std::printf("%-18s too big\n", line.name.c_str());
      return;
    }
    fill(m_, dtype, memory_.data, bytes);
    list_ = plan_list(entries.data(), size, nullptr);
    list_.table = memory_.table;
    if (list_.table_bytes > 0) prepare_table(entries);
    sums_ = CudaSums{};
    sums_.norm_type = 2;
    sums_.partials = memory_.partials;
    print(line, dtype, bytes);
  }

 private:
  void prepare_table(const std::vector<TensorEntry>& entries) {
    write_pinned(entries, memory_.pinned);
    CHECK(launch_write_table(list_, 0));
    CHECK(cudaDeviceSynchronize());
    if (mode_ == READ_PINNED) list_.table = memory_.pinned_on_device;
  }

  void clip(float max_norm) {
    CudaResult result{};
    result.total_norm = memory_.total_norm;
    result.max_norm = max_norm;
    if (list_.table_bytes > 0 && mode_ == WRITTEN) CHECK(launch_write_table(list_, 0));
    if (list_.table_bytes > 0 && mode_ == COPIED_PINNED)
      CHECK(cudaMemcpyAsync(memory_.table, memory_.pinned, list_.table_bytes,
                            cudaMemcpyHostToDevice, 0));
    CHECK(launch_fused(list_, sums_, result, 0));
  }

  template <class Call>
  double microseconds(Call call, int repetitions) const {
    if (!is_plain_) return m_.milliseconds(call, repetitions) * 1e3;
    call();
    CHECK(cudaDeviceSynchronize());
    return 0;
  }

  void print(const Line& line, DType dtype, int64_t bytes) {
    const bool is_large = bytes > 500000000;
    clip(1e9f);
    CHECK(cudaDeviceSynchronize());
    float norm;
    CHECK(cudaMemcpy(&norm, memory_.total_norm, sizeof(norm), cudaMemcpyDeviceToHost));
    const double not_clipped = microseconds([&] { clip(1e9f); }, is_large ? 9 : 21);
    double table = 0;
    if (list_.table_bytes > 0)
      table = microseconds([&] { CHECK(launch_write_table(list_, 0)); }, 11);
    // Each call clips a little more than the one before, so that every one writes.
    float max_norm = norm;
    const double clipped = microseconds([&] { clip(max_norm *= 0.9999f); }, is_large ? 7 : 15);
    int64_t total = 0;
    for (const int64_t count : line.counts) total += count * element_size(dtype);
    std::printf(
        "%-18s %s n %5zu %8.1f MB groups %5d chunk %7d  no %7.1f us  clip %7.1f us  table %5.1f us "
        "norm %.7g tmode %d\n",
        line.name.c_str(), dtype == DType::kFloat32 ? "fp32" : "bf16", line.counts.size(),
        total / 1e6, list_.groups, list_.chunk_size, not_clipped, clipped, table, norm, mode_);
    std::fflush(stdout);
  }

  const Measuring& m_;
  const Memory& memory_;
  TableMode mode_;
  bool is_plain_;
  CudaList list_{};
  CudaSums sums_{};
};

template <int kBytes>
double launch_microseconds(const Measuring& m) {
  const Arguments<kBytes> arguments{};
  return m.milliseconds([&] { empty<kBytes><<<528, 256>>>(arguments, m.out); }, 21) * 1e3;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    std::printf("usage: %s lists.txt [launches]\n", argv[0]);
    return 2;
  }
  const Measuring m(120000);  // the host writes a table of 10,000 tensors and launches meanwhile
  if (argc > 2)
    std::printf("empty launches: 8 B %.2f, 4000 B %.2f, 32000 B %.2f us\n",
                launch_microseconds<8>(m), launch_microseconds<4000>(m),
                launch_microseconds<32000>(m));
  const char* mode = std::getenv("TABLE");
  const Memory memory = allocate();
  Bench bench(m, memory, static_cast<TableMode>(mode ? std::atoi(mode) : 0),
              std::getenv("PLAIN") != nullptr);
  for (const Line& line : read_lines(argv[1]))
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) bench.run(line, dtype);
  return 0;
}
