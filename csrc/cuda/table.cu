// Writes a table that is too long for a kernel's arguments to device memory, carried in the
// arguments of as many small kernels as it takes: nothing on the host outlives the call.
#include "launch_kernel.cuh"

namespace fastclip::device {
namespace {

// Where the table lies; DeviceTable reads it.
struct TableWriter {
  uint64_t* addresses;
  int64_t* counts;
  int32_t* first_slots;
};

template <typename Table>
__global__ void __launch_bounds__(kBlockSize)
    write_table_kernel(const __grid_constant__ Table part, const int size,
                       const TableWriter writer) {
  const int i = static_cast<int>(blockIdx.x * kBlockSize + threadIdx.x);
  if (i >= size) return;
  writer.addresses[i] = part.addresses[i];
  writer.counts[i] = part.counts[i];
  writer.first_slots[i] = part.first_slots[i];
}

template <typename Table>
cudaError_t launch_parts(const CudaList& list, cudaStream_t stream) {
  const DeviceTable table = device_table(list);
  const int total = table_size(list);
  for (int first = 0; first < total; first += Table::kTensors) {
    const int size = min(total - first, Table::kTensors);
    const TableWriter writer{const_cast<uint64_t*>(table.addresses) + first,
                             const_cast<int64_t*>(table.counts) + first,
                             const_cast<int32_t*>(table.first_slots) + first};
    const Grid grid{(size + kBlockSize - 1) / kBlockSize, false};
    const cudaError_t status = launch_grid(&write_table_kernel<Table>, grid, stream,
                                           pack_table<Table>(list, first, size), size, writer);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_write_table(const CudaList& list, cudaStream_t stream) {
  return takes_long_arguments() ? launch_parts<LongTable>(list, stream)
                                : launch_parts<ShortTable>(list, stream);
}

cudaError_t check_code() {
  cudaFuncAttributes attributes;
  return take_error(cudaFuncGetAttributes(
      &attributes, reinterpret_cast<const void*>(&write_table_kernel<ShortTable>)));
}

}  // namespace fastclip::device
