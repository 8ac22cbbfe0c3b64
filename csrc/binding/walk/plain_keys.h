// The dispatch keys of ordinary tensors.
#pragma once

#include <c10/core/DispatchKeySet.h>

namespace fastclip {

// Any other key (Python, Conjugate, Negative, ZeroTensor, functorch, sparse, meta, inference, ...)
// asks for handling that reading raw memory would skip. TensorImpl combines the keys in the same
// way.
inline c10::DispatchKeySet plain_keys(c10::BackendComponent backend) {
  return c10::DispatchKeySet(backend) | c10::DispatchKeySet(c10::DispatchKey::Dense) |
         c10::getAutocastRelatedKeySetFromBackend(backend) |
         c10::getAutogradRelatedKeySetFromBackend(backend);
}

inline c10::DispatchKeySet plain_cpu_keys() {
  static const c10::DispatchKeySet keys = plain_keys(c10::BackendComponent::CPUBit);
  return keys;
}

}  // namespace fastclip
