// The grid of a cooperative launch, as far as kernels here use it.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

class grid_group {
 public:
  bool is_valid() const { return emulator::detail::is_cooperative(); }
  void sync(emulator::detail::Place place = emulator::detail::Place::here()) const {
    emulator::detail::meet_grid(emulator::detail::Ordering::kAcquireRelease, place);
  }
};

inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
