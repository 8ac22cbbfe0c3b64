// What one GPU gives to the two passes of a clip, without a clip around them: a read that sums, an
// update in place, and both in one cooperative launch, in many forms and from 16 MB to 2 GB.
//
//     ./ceilings
//
// README.md beside this file says how to build it. Needs sm_90 or later (bulk copies) and 5 GB of
// the GPU's memory.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

#include "measuring.cuh"
#include "passes.cuh"

__global__ void empty() {}

__global__ void empty_sync() { cooperative_groups::this_grid().sync(); }

__global__ void fill(float* p, int64_t n) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i < n; i += (int64_t)gridDim.x * blockDim.x) {
    const uint32_t hash = (uint32_t)i * 2654435761u;
    p[i] = (hash >> 8) * (1.f / 16777216.f) - 0.5f;
  }
}

constexpr int64_t kDataBytes = int64_t{4} << 30;
constexpr int kBytes = 16;
constexpr int kVectorsPerKb = 1024 / kBytes;

static uint4* data;

template <class Kernel, class... Arguments>
void launch_cooperative(Kernel kernel, int grid, int block, Arguments... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.attrs = &attribute;
  config.numAttrs = 1;
  CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Prints a row whose GB/s count so many passes over the bytes.
template <class... Values>
void row(int64_t bytes, double passes, double ms, const char* format, Values... values) {
  char name[128];
  std::snprintf(name, sizeof(name), format, values...);
  std::printf("%-44s %8.1f MB %9.1f us %8.1f GB/s\n", name, bytes / 1e6, ms * 1e3,
              passes * bytes / ms / 1e6);
}

#define READ_GRID(L, H, B, T)                                               \
  row(bytes, 1, m.milliseconds([&] {                                        \
    read_grid<L, H><<<m.multiprocessors * B, T>>>(data, bytes / 16, m.out); \
  }),                                                                       \
      "grid L%d %s b%d t%d", L, #H, B, T)

#define READ_CHUNKS(L, H, B, T, KB)                                                      \
  row(bytes, 1, m.milliseconds([&] {                                                     \
    read_chunks<L, H>                                                                    \
        <<<m.multiprocessors * B, T>>>(data, bytes / kBytes, m.out, KB * kVectorsPerKb); \
  }),                                                                                    \
      "chunk %dKB L%d %s b%d t%d", KB, L, #H, B, T)

#define READ_SPAN(L, H, B, T)                                               \
  row(bytes, 1, m.milliseconds([&] {                                        \
    read_span<L, H><<<m.multiprocessors * B, T>>>(data, bytes / 16, m.out); \
  }),                                                                       \
      "span L%d %s b%d t%d", L, #H, B, T)

template <int kStages>
void read_bulk_row(const Measuring& m, int64_t bytes, int kb, int blocks, int threads) {
  const int shared = 128 + kStages * kb * 1024;
  CHECK(cudaFuncSetAttribute(read_bulk<kStages>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             shared));
  const double ms = m.milliseconds([&] {
    read_bulk<kStages><<<m.multiprocessors * blocks, threads, shared>>>((const char*)data, bytes,
                                                                        m.out, kb * 1024);
  });
  row(bytes, 1, ms, "bulk S%d %dKB b%d t%d", kStages, kb, blocks, threads);
}

static void read_rows(const Measuring& m, int64_t bytes) {
  READ_GRID(4, CG, 4, 256);
  READ_GRID(8, CG, 4, 256);
  READ_GRID(4, CG, 8, 256);
  READ_GRID(8, CG, 2, 512);
  READ_GRID(4, CG, 2, 1024);
  READ_GRID(8, CG, 8, 256);
  READ_GRID(16, CG, 2, 256);
  READ_GRID(4, NC, 8, 256);
  READ_GRID(4, CS, 8, 256);
  READ_GRID(4, NOALLOC256, 8, 256);
  READ_GRID(4, EVICT_FIRST, 8, 256);
  READ_GRID(8, NOALLOC256, 4, 256);
  READ_CHUNKS(4, CG, 4, 256, 64);
  READ_CHUNKS(4, CG, 4, 256, 256);
  READ_CHUNKS(4, CG, 8, 256, 64);
  READ_CHUNKS(8, CG, 4, 256, 64);
  READ_CHUNKS(4, CG, 4, 256, 1024);
  READ_CHUNKS(8, CG, 2, 512, 64);
  READ_CHUNKS(4, NOALLOC256, 8, 256, 64);
  READ_SPAN(4, CG, 4, 256);
  READ_SPAN(4, CG, 8, 256);
  READ_SPAN(8, CG, 4, 256);
  read_bulk_row<4>(m, bytes, 16, 1, 256);
  read_bulk_row<4>(m, bytes, 16, 2, 256);
  read_bulk_row<4>(m, bytes, 32, 1, 512);
  read_bulk_row<8>(m, bytes, 8, 2, 256);
  read_bulk_row<3>(m, bytes, 16, 4, 256);
}

template <int kLoads>
void update_grid_row(const Measuring& m, int64_t bytes, int blocks) {
  const double ms = m.milliseconds([&] {
    update_grid<kLoads><<<m.multiprocessors * blocks, 256>>>(data, bytes / kBytes, 0.999f);
  });
  row(bytes, 2, ms, "update grid L%d b%d", kLoads, blocks);
}

static void update_chunks_row(const Measuring& m, int64_t bytes, int blocks) {
  const double ms = m.milliseconds([&] {
    update_chunks<4>
        <<<m.multiprocessors * blocks, 256>>>(data, bytes / kBytes, 0.999f, 64 * kVectorsPerKb);
  });
  row(bytes, 2, ms, "update chunk 64KB L4 b%d", blocks);
}

template <int kLoads, Way kWay>
double fused_milliseconds(const Measuring& m, int64_t bytes, int blocks, int kb, int clip,
                          int kept_mb = 0) {
  const int64_t kept = (int64_t)kept_mb * 1024 * kVectorsPerKb;
  return m.milliseconds([&] {
    launch_cooperative(fused<kLoads, kWay>, m.multiprocessors * blocks, 256, data, bytes / kBytes,
                       m.out, kb * kVectorsPerKb, kept, clip);
  });
}

static void fused_rows(const Measuring& m, int64_t bytes, int clip, int kb) {
  const double passes = clip ? 3 : 1;
  row(bytes, passes, fused_milliseconds<4, PLAIN>(m, bytes, 4, kb, clip),
      "fused cg L4 b4 %dKB clip%d", kb, clip);
  row(bytes, passes, fused_milliseconds<4, PLAIN>(m, bytes, 8, kb, clip),
      "fused cg L4 b8 %dKB clip%d", kb, clip);
  row(bytes, passes, fused_milliseconds<8, PLAIN>(m, bytes, 4, kb, clip),
      "fused cg L8 b4 %dKB clip%d", kb, clip);
  row(bytes, passes, fused_milliseconds<4, STREAMING>(m, bytes, 4, kb, clip),
      "fused cg+stcs L4 b4 %dKB clip%d", kb, clip);
  for (const int kept_mb : {16, 24, 32, 40})
    row(bytes, passes, fused_milliseconds<4, HINTS>(m, bytes, 4, kb, clip, kept_mb),
        "fused evict keep %dMB L4 b4 %dKB clip%d", kept_mb, kb, clip);
}

static void launch_rows(const Measuring& m) {
  const auto sync_us = [&](int grid, int block) {
    return m.milliseconds([&] { launch_cooperative(empty_sync, grid, block); }, 21) * 1e3;
  };
  std::printf("empty launch %.2f us; empty cooperative with grid sync: ",
              m.milliseconds([&] { empty<<<528, 256>>>(); }, 21) * 1e3);
  const int n = m.multiprocessors;
  std::printf("%dx256 %.2f us, %dx256 %.2f, %dx1024 %.2f, %dx512 %.2f\n", 4 * n,
              sync_us(4 * n, 256), n, sync_us(n, 256), n, sync_us(n, 1024), 2 * n,
              sync_us(2 * n, 512));
}

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s SMs %d L2 %d MiB\n", device.name, device.multiProcessorCount,
              device.l2CacheSize >> 20);
  const Measuring m(40000);  // the host launches one kernel meanwhile
  CHECK(cudaMalloc(&data, kDataBytes));
  fill<<<m.multiprocessors * 8, 256>>>((float*)data, kDataBytes / 4);
  CHECK(cudaDeviceSynchronize());
  constexpr int64_t kHalf = kDataBytes / 2;
  const double copy_ms = m.milliseconds([&] {
    CHECK(cudaMemcpyAsync(data, (char*)data + kHalf, kHalf, cudaMemcpyDeviceToDevice, 0));
  });
  std::printf("copy 2 GiB d2d: %.1f GB/s (read + write)\n", 2.0 * kHalf / copy_ms / 1e6);
  launch_rows(m);
  for (const int64_t mb : {16, 64, 249, 498, 2048}) {
    const int64_t bytes = mb * 1000000 / 65536 * 65536;
    std::printf("-- read, %lld MB\n", (long long)mb);
    read_rows(m, bytes);
    std::printf("-- update in place, %lld MB\n", (long long)mb);
    update_grid_row<4>(m, bytes, 8);
    update_grid_row<4>(m, bytes, 4);
    update_grid_row<8>(m, bytes, 4);
    update_chunks_row(m, bytes, 4);
    update_chunks_row(m, bytes, 8);
    std::printf("-- fused, %lld MB (GB/s counts 1 pass unclipped, 3 clipped)\n", (long long)mb);
    for (int clip = 0; clip < 2; clip++)
      for (const int kb : {64, 256}) fused_rows(m, bytes, clip, kb);
  }
  return 0;
}
