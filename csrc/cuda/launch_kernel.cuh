// The one place that launches kernels, and the choice of their template arguments.
#pragma once

#include <cmath>
#include <type_traits>

#include "launchers.h"
#include "norm.cuh"
#include "table.cuh"

namespace fastclip::device {

static_assert(sizeof(Shape) + sizeof(CudaSums) + sizeof(CudaResult) <= kArguments);

constexpr int kMinBlocks = 4;  // on a multiprocessor; with kLoads that makes 64 KiB in flight

struct Grid {
  int blocks;  // 0, for launch_for: as many as the list has work for
  bool is_cooperative;
};
constexpr Grid kOrdinary{0, false};
constexpr Grid kCooperative{0, true};

template <typename... Parameters, typename... Arguments>
cudaError_t launch_grid(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
                        const Arguments&... arguments) {
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(kBlockSize);
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = grid.is_cooperative ? 1 : 0;
  return take_error(cudaLaunchKernelEx(&config, kernel, arguments...));
}

inline Shape shape_of(const CudaList& list) {
  return {list.size, list.chunk_size, list.groups, list.targets != nullptr};
}

inline int32_t table_size(const CudaList& list) {
  return list.targets != nullptr ? 2 * list.size : list.size;
}

// Entries `first` to `first + size` of the table: tensors, then targets, of which only the address
// counts.
template <typename Table>
Table pack_table(const CudaList& list, int first, int size) {
  Table table;
  for (int i = 0; i < size; ++i) {
    const bool is_target = first + i >= list.size;
    const int index = is_target ? first + i - list.size : first + i;
    const TensorEntry& entry = list.entries[index];
    table.addresses[i] = reinterpret_cast<uint64_t>(is_target ? list.targets[index] : entry.data);
    table.counts[i] = pack_count(entry.count, entry.dtype);
    table.first_slots[i] = static_cast<int32_t>(entry.first_unit);
  }
  return table;
}

inline DeviceTable device_table(const CudaList& list) {
  const int64_t size = table_size(list);
  char* const counts = list.table + size * static_cast<int64_t>(sizeof(uint64_t));
  char* const first_slots = counts + size * static_cast<int64_t>(sizeof(int64_t));
  return {reinterpret_cast<uint64_t*>(list.table), reinterpret_cast<int64_t*>(counts),
          reinterpret_cast<int32_t*>(first_slots)};
}

// Calls launch(table) with the variant that the list calls for.
template <typename Launch>
cudaError_t with_table(const CudaList& list, Launch launch) {
  if (list.table_bytes > 0) return launch(device_table(list));
  const int size = table_size(list);
  if (size <= ShortTable::kTensors) return launch(pack_table<ShortTable>(list, 0, size));
  return launch(pack_table<LongTable>(list, 0, size));
}

// Stands for a type in the arguments of a function.
template <typename T>
struct Type {
  using Is = T;
};
template <typename Stand>
using TypeOf = typename Stand::Is;

// Calls body(Type<Sum>{}) with what computes the norm.
template <typename Body>
cudaError_t with_sum(const CudaSums& sums, Body body) {
  if (sums.norm_type == 2) return sums.is_wide ? body(Type<SumSqWide>{}) : body(Type<SumSq>{});
  if (sums.norm_type == 1) return body(Type<AbsSum>{});
  if (std::isinf(sums.norm_type)) return body(Type<AbsMax>{});
  return body(Type<PowerSum>{});
}

// Launches kernel_of(Type<Table>{}) on the table that the list calls for, its shape and the
// arguments.
template <typename KernelOf, typename... Arguments>
cudaError_t launch_for(const CudaList& list, Grid grid, cudaStream_t stream, KernelOf kernel_of,
                       const Arguments&... arguments) {
  return with_table(list, [&](const auto& table) {
    const auto kernel = kernel_of(Type<std::decay_t<decltype(table)>>{});
    if (grid.blocks == 0) {
      const cudaError_t status =
          grid_size(reinterpret_cast<const void*>(kernel), list.groups, &grid.blocks);
      if (status != cudaSuccess) return status;
    }
    return launch_grid(kernel, grid, stream, table, shape_of(list), arguments...);
  });
}

// Does the same for a kernel that computes a norm, kernel_of(Type<Sum>{}, Type<Table>{}), which
// takes `sums` before the other arguments.
template <typename KernelOf, typename... Arguments>
cudaError_t launch_for(const CudaList& list, const CudaSums& sums, const Grid& grid,
                       cudaStream_t stream, KernelOf kernel_of, const Arguments&... arguments) {
  return with_sum(sums, [&](auto sum) {
    const auto kernel_of_table = [&](auto table) { return kernel_of(sum, table); };
    return launch_for(list, grid, stream, kernel_of_table, sums, arguments...);
  });
}

}  // namespace fastclip::device
