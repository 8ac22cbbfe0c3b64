// Why the extension cannot run a call, each reason with a kind: Python acts on kinds, never on the
// words.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fastclip {

// The numbers of ReasonKind in fastclip/backends/base.py, which says what each stands for.
enum class ReasonKind : int { kCall = 0, kTensors = 1, kNotBuilt = 2, kDevice = 3 };

struct Reason {
  ReasonKind kind;
  std::string text;

  bool operator==(const Reason& other) const = default;
};

// Thrown as Python's _C.UnsupportedError: another backend may still run the call.
struct Unsupported {
  std::vector<Reason> reasons;

  explicit Unsupported(std::vector<Reason> all) : reasons(std::move(all)) {}
  Unsupported(ReasonKind kind, std::string text) : reasons{{kind, std::move(text)}} {}
};

}  // namespace fastclip
