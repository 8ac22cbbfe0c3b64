// How clip is launched, and what happens where a launch, a device or a driver refuses.
#include <algorithm>

#include "cases.h"
#include "lists.h"
#include "norms.h"

namespace fastclip::kernel_tests {
namespace {

// The launches since the last call: how many, and how many of them cooperative.
void expect_launches(Run& run, const std::string& what, size_t all, size_t cooperative) {
  const auto& launches = emulator::launches();
  run.expect(what + ", launches", launches.size(), all);
  const auto count = std::count_if(launches.begin(), launches.end(),
                                   [](const auto& launch) { return launch.is_cooperative; });
  run.expect(what + ", cooperative launches", static_cast<size_t>(count), cooperative);
  emulator::clear_launches();
}

Request clipping(CudaMode mode) {
  Request request;
  request.max_norm = 0.75;
  request.mode = mode;
  return request;
}

void expect_form(Run& run, Gradients& gradients, CudaMode mode, const std::string& what) {
  const bool is_fused = mode == CudaMode::kFused;
  const Request request = clipping(mode);
  const Outcome outcome = clip(run, gradients.list, request);
  expect_launches(run, what, is_fused ? 1 : 2, is_fused ? 1 : 0);
  expect_clipped(run, what, gradients, request, outcome);
  gradients.restore();
}

// clip returns `wanted` and has done nothing.
void expect_refusal(Run& run, Gradients& gradients, CudaMode mode, cudaError_t wanted) {
  const Workspace workspace(run, gradients.list, clipping(mode));
  run.expect_status("clip", call_clip(run, gradients.list, workspace), wanted);
  gradients.expect_unchanged("after a refusal");
  run.expect("total_norm after a refusal", workspace.outcome().total_norm, kNan);
  emulator::clear_launches();
}

}  // namespace

void cooperative_refused(Run& run) {
  Gradients gradients(run, mixed_list());
  for (const auto mode : {CudaMode::kSplit, CudaMode::kFused}) {
    expect_form(run, gradients, mode, "a device that can");
  }
  emulator::machine().has_cooperative_launch = false;
  expect_form(run, gradients, CudaMode::kSplit, "a device that cannot");
  expect_refusal(run, gradients, CudaMode::kFused, cudaErrorNotSupported);
  emulator::machine().has_cooperative_launch = true;
  for (const auto error : {cudaErrorCooperativeLaunchTooLarge, cudaErrorLaunchOutOfResources}) {
    emulator::machine().cooperative_error = error;
    expect_form(run, gradients, CudaMode::kSplit, cuda().name(error));
    expect_refusal(run, gradients, CudaMode::kFused, error);
  }
  emulator::machine().cooperative_error = cudaSuccess;
  // On the default stream it is an error to ask while another stream is captured.
  emulator::machine().capture_error = cudaErrorStreamCaptureImplicit;
  run.expect_true(cuda().is_capturing(0, nullptr), "a doubt counts as no capture");
  emulator::machine().capture_error = cudaSuccess;
}

void capture_and_replay(Run& run) {
  run.select(1);
  const cudaStream_t stream = emulator::make_stream(1);
  run.expect_true(!cuda().is_capturing(1, stream), "the stream captures before its capture");
  emulator::begin_capture(stream);
  run.expect_true(cuda().is_capturing(1, stream), "the stream does not capture");
  const bool is_long = run.seed() % 2 != 0, is_fused = run.seed() / 2 % 2 != 0;
  Gradients gradients(run, is_long ? tiny_list(1650) : mixed_list(),
                      {ordinary_value, false, {}, stream});
  Request request = clipping(is_fused ? CudaMode::kFused : CudaMode::kSplit);
  request.stream = stream;
  const Workspace workspace(run, gradients.list, request);
  run.expect_success("clip", call_clip(run, gradients.list, workspace));
  gradients.expect_unchanged("captured");
  expect_launches(run, "captured", (is_fused ? 1 : 2) + (is_long ? 2 : 0), is_fused ? 1 : 0);
  // A graph lives longer than the list on the host.
  auto* const entries = const_cast<TensorEntry*>(gradients.list.entries);
  std::fill(entries, entries + gradients.size(), TensorEntry{});
  const emulator::Graph graph = emulator::end_capture(stream);
  for (int round = 0; round < 2; ++round) {
    run.expect_success("replay", emulator::replay(graph));
    expect_clipped(run, "replayed", gradients, request, workspace.outcome());
    gradients.restore();
    gradients.set(0, 0, 100 + round);
  }
  gradients.set(0, 0, 1);
  emulator::set_capture_status(stream, cudaStreamCaptureStatusInvalidated);
  run.expect_true(cuda().is_capturing(1, stream), "a capture that broke is none");
}

// Code cannot be loaded in a capture, so the same call must come before it. The launchers ask once
// for each device, so every list takes another one.
void loaded_before_capture(Run& run) {
  static int device = kDevices - 1;
  emulator::machine().loads_in_capture = false;
  for (const int which : {0, 1, 2, 3}) {
    const bool is_long = which % 2 != 0, is_fused = which / 2 != 0;
    const size_t launches = (is_fused ? 1 : 2) + (is_long ? 2 : 0);
    emulator::machine().devices = ++device + 1;
    run.select(device);
    const cudaStream_t stream = emulator::make_stream(device);
    Request request = clipping(is_fused ? CudaMode::kFused : CudaMode::kSplit);
    request.stream = stream;
    for (const bool captures : {false, true}) {
      emulator::clear_launches();
      if (captures) emulator::begin_capture(stream);
      const Gradients gradients(run, is_long ? tiny_list(1650) : mixed_list(),
                                {ordinary_value, false, {}, stream});
      const Workspace workspace(run, gradients.list, request);
      run.expect_success("clip", call_clip(run, gradients.list, workspace));
      expect_launches(run, captures ? "captured" : "before", launches, is_fused ? 1 : 0);
    }
    run.expect<size_t>("launches captured", emulator::end_capture(stream).launches, launches);
  }
}

void launch_failures(Run& run) {
  Gradients gradients(run, mixed_list());
  for (const auto mode : {CudaMode::kFused, CudaMode::kSplit}) {
    for (int n = 1; n <= (mode == CudaMode::kSplit ? 2 : 1); ++n) {
      emulator::fail_launch(n, cudaErrorIllegalAddress);
      expect_refusal(run, gradients, mode, cudaErrorIllegalAddress);
    }
  }
  const Workspace workspace(run, gradients.list, clipping(CudaMode::kSplit));
  const auto expect_failure = [&](const char* what, auto call) {
    emulator::fail_launch(1, cudaErrorUnknown);
    run.expect_status(what, call(), cudaErrorUnknown);
    gradients.expect_unchanged(what);
  };
  const CudaSums sums = workspace.sums();
  expect_failure("reduce", [&] { return cuda().reduce(gradients.list, sums, 0, nullptr); });
  expect_failure("finish", [&] {
    return cuda().finish(gradients.list, sums, workspace.result(), 0, nullptr);
  });
  expect_failure("scale", [&] { return cuda().scale(gradients.list, {}, 0, nullptr); });
  expect_failure("clamp", [&] { return cuda().clamp(gradients.list, {0}, 0, nullptr); });
  emulator::machine().driver_version = 12000;
  const Gradients longer(run, tiny_list(500));
  for (int n = 1; n <= 3; ++n) {
    emulator::clear_launches();
    emulator::fail_launch(n, cudaErrorUnknown);
    run.expect_status("write_table", cuda().write_table(longer.list, 0, nullptr), cudaErrorUnknown);
    run.expect("launches up to the failure", emulator::launches().size(), static_cast<size_t>(n));
  }
}

void other_device(Run& run) {
  const auto expect_current = [&](int wanted) {
    int current = -1;
    run.expect_status("cudaGetDevice", cudaGetDevice(&current), cudaSuccess);
    run.expect("the current device", current, wanted);
  };
  for (int current = 0; current < kDevices; ++current) {
    run.expect_success("cudaSetDevice", cudaSetDevice(current));
    run.select((current + 1) % kDevices);
    emulator::clear_launches();
    Gradients gradients(run, run.seed() % 2 != 0 ? tiny_list(1650) : mixed_list());
    const CudaMode mode = current % 2 != 0 ? CudaMode::kFused : CudaMode::kSplit;
    Request request = clipping(mode);
    request.stream = emulator::make_stream(run.device());
    expect_clipped(run, "on another device", gradients, request,
                   clip(run, gradients.list, request));
    run.expect_success("clamp", cuda().clamp(gradients.list, {0}, run.device(), request.stream));
    run.expect_success("check", cuda().check(run.device()));
    run.expect_true(!cuda().is_capturing(run.device(), request.stream), "it captures");
    expect_current(current);
    for (const auto& launch : emulator::launches()) {
      run.expect("a launch's device", launch.device, run.device());
    }
    gradients.restore();
    emulator::fail_launch(1, cudaErrorUnknown);
    expect_refusal(run, gradients, mode, cudaErrorUnknown);
    expect_current(current);
    run.expect_status("check", cuda().check(kDevices), cudaErrorInvalidDevice);
    expect_current(current);
  }
}

void machine_errors(Run& run) {
  Gradients gradients(run, mixed_list());
  for (const auto error : {cudaErrorNoDevice, cudaErrorInsufficientDriver}) {
    emulator::machine().device_error = error;
    run.expect_status("check", cuda().check(0), error);
    for (const auto mode : {CudaMode::kFused, CudaMode::kSplit}) {
      expect_refusal(run, gradients, mode, error);
    }
    run.expect_true(cuda().is_capturing(0, nullptr), "a doubt about capture counts as no");
    run.expect_status("is_capturing", cudaSuccess, cudaSuccess);
    emulator::machine().device_error = cudaSuccess;
  }
  emulator::machine().code_error = cudaErrorNoKernelImageForDevice;
  run.expect_status("check", cuda().check(0), cudaErrorNoKernelImageForDevice);
  expect_refusal(run, gradients, CudaMode::kSplit, cudaErrorNoKernelImageForDevice);
  emulator::machine().code_error = cudaSuccess;
  run.expect_success("check", cuda().check(0));
  emulator::machine().driver_version = 12040;
  run.expect("driver_version", cuda().driver_version(), 12040);
  run.expect("runtime_version", cuda().runtime_version(), CUDART_VERSION);
  run.expect<std::string>("name", cuda().name(cudaErrorNoDevice), "cudaErrorNoDevice");
  run.expect_true(
      std::string(cuda().advice(cudaErrorNoKernelImageForDevice)).find("TORCH_CUDA_ARCH_LIST") !=
          std::string::npos,
      "advice for a device without code");
}

// A block for every group, as many as the device holds.
void grid_sizes(Run& run) {
  for (int device = 0; device < kDevices; ++device) {
    run.select(device);
    for (const NamedList& named : awkward_lists()) {
      Gradients gradients(run, named.specs);
      const int64_t resident = kMultiprocessors[device] * 2;
      const int64_t groups = gradients.list.groups;
      for (const auto mode : {CudaMode::kFused, CudaMode::kSplit}) {
        emulator::clear_launches();
        clip(run, gradients.list, clipping(mode));
        for (const auto& launch : emulator::launches()) {
          run.expect<int64_t>(named.name + ", blocks", launch.grid.x, std::min(resident, groups));
          run.expect(named.name + ", threads", launch.block.x, 256u);
        }
        gradients.restore();
      }
    }
  }
}

}  // namespace fastclip::kernel_tests
