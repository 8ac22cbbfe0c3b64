// Launches that keep the types of a kernel's arguments. The toolkit's untyped ones are declared but
// not defined: a program that calls them does not link.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"

namespace emulator::detail {

template <typename... Parameters>
struct TypedCall {
  void (*kernel)(Parameters...);
  std::tuple<std::remove_cv_t<Parameters>...> arguments;

  static void run(const void* call) {
    const auto& typed = *static_cast<const TypedCall*>(call);
    std::apply(typed.kernel, typed.arguments);
  }
};

// Where the last parameter ends when they follow one another, each at its alignment.
template <typename... Parameters>
constexpr size_t parameter_bytes() {
  size_t end = 0;
  ((end = (end + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) +
          sizeof(Parameters)),
   ...);
  return end;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_typed(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                         Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "a kernel's arguments are copied as bytes");
  using Typed = TypedCall<Parameters...>;
  const auto call = std::make_shared<const Typed>(Typed{kernel, {Parameters(arguments)...}});
  return launch(config, {reinterpret_cast<const void*>(kernel), call, &Typed::run,
                         parameter_bytes<Parameters...>()});
}

template <typename... Parameters, size_t... kIndex>
cudaError_t launch_pointers(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                            void** arguments, std::index_sequence<kIndex...>) {
  return launch_typed(config, kernel, *static_cast<Parameters*>(arguments[kIndex])...);
}

}  // namespace emulator::detail

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulator::detail::launch_typed(config, kernel, std::forward<Arguments>(arguments)...);
}

template <typename... Parameters>
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                                void** arguments) {
  return emulator::detail::launch_pointers(config, kernel, arguments,
                                           std::index_sequence_for<Parameters...>());
}

template <typename... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes = 0, cudaStream_t stream = nullptr) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}
