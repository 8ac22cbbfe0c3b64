// Loads and stores with a cache operator, and atomics. The access itself is made here, in the
// caller's code, where a sanitizer sees it.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace emulator::detail {

template <size_t kBytes>
struct Word;
template <>
struct Word<1> {
  typedef uint8_t Type __attribute__((may_alias));
};
template <>
struct Word<2> {
  typedef uint16_t Type __attribute__((may_alias));
};
template <>
struct Word<4> {
  typedef uint32_t Type __attribute__((may_alias));
};
template <>
struct Word<8> {
  typedef uint64_t Type __attribute__((may_alias));
};
template <>
struct Word<16> {
  typedef unsigned __int128 Type __attribute__((may_alias));
};

inline void check(const volatile void* address, size_t bytes, Access access, Place place) {
  if (is_watching || reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    observe(address, bytes, bytes, access, place);
  }
}

template <typename T>
T load(const T* address, Place place) {
  check(address, sizeof(T), Access::kRead, place);
  using Bits = typename Word<sizeof(T)>::Type;
  const Bits bits = *reinterpret_cast<const Bits*>(address);
  T value;
  __builtin_memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

template <typename T>
void store(T* address, T value, Place place) {
  check(address, sizeof(T), Access::kWrite, place);
  using Bits = typename Word<sizeof(T)>::Type;
  Bits bits;
  __builtin_memcpy(&bits, static_cast<const void*>(&value), sizeof(T));
  *reinterpret_cast<Bits*>(address) = bits;
}

// Replaces the value at `address` by change(value) and returns what was there.
template <typename T, typename Change>
T atomic(T* address, Place place, Change change) {
  check(address, sizeof(T), Access::kAtomic, place);
  using Bits = typename Word<sizeof(T)>::Type;
  auto* const target = reinterpret_cast<Bits*>(address);
  before_atomic(address);
  Bits seen = __atomic_load_n(target, __ATOMIC_RELAXED), changed;
  T value;
  do {
    __builtin_memcpy(&value, &seen, sizeof(T));
    const T result = change(value);
    __builtin_memcpy(&changed, &result, sizeof(T));
  } while (!__atomic_compare_exchange_n(target, &seen, changed, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
  after_atomic(address);
  return value;
}

template <typename T, typename... Types>
constexpr bool kIsOneOf = (std::is_same_v<T, Types> || ...);

// nvcc has atomics only for these types; `unsigned long` is not among them.
template <typename T>
constexpr bool kIsWord = kIsOneOf<T, int, unsigned, unsigned long long>;

template <typename T>
struct Same {
  using Type = T;
};

}  // namespace emulator::detail

template <typename T>
T __ldcg(const T* address, emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::load(address, place);
}
template <typename T>
T __ldca(const T* address, emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::load(address, place);
}
template <typename T>
T __ldcs(const T* address, emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::load(address, place);
}
template <typename T>
void __stcg(T* address, typename emulator::detail::Same<T>::Type value,
            emulator::detail::Place place = emulator::detail::Place::here()) {
  emulator::detail::store(address, value, place);
}
template <typename T>
void __stcs(T* address, typename emulator::detail::Same<T>::Type value,
            emulator::detail::Place place = emulator::detail::Place::here()) {
  emulator::detail::store(address, value, place);
}
// This load is not coherent: it is wrong for memory that the launch writes, and kernels here write
// what they read.
template <typename T>
T __ldg(const T* address) = delete;

template <typename T>
T atomicExch(T* address, typename emulator::detail::Same<T>::Type value,
             emulator::detail::Place place = emulator::detail::Place::here()) {
  static_assert(emulator::detail::kIsWord<T> || std::is_same_v<T, float>);
  return emulator::detail::atomic(address, place, [&](T) { return value; });
}
template <typename T>
T atomicAdd(T* address, typename emulator::detail::Same<T>::Type value,
            emulator::detail::Place place = emulator::detail::Place::here()) {
  static_assert(emulator::detail::kIsWord<T> || std::is_floating_point_v<T>);
  return emulator::detail::atomic(address, place,
                                  [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicCAS(T* address, typename emulator::detail::Same<T>::Type expected,
            typename emulator::detail::Same<T>::Type value,
            emulator::detail::Place place = emulator::detail::Place::here()) {
  static_assert(emulator::detail::kIsWord<T> || std::is_same_v<T, unsigned short>);
  return emulator::detail::atomic(address, place,
                                  [&](T old) { return old == expected ? value : old; });
}
template <typename T>
T atomicMax(T* address, typename emulator::detail::Same<T>::Type value,
            emulator::detail::Place place = emulator::detail::Place::here()) {
  static_assert(emulator::detail::kIsWord<T> || std::is_same_v<T, long long>);
  return emulator::detail::atomic(address, place, [&](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicOr(T* address, typename emulator::detail::Same<T>::Type value,
           emulator::detail::Place place = emulator::detail::Place::here()) {
  static_assert(emulator::detail::kIsWord<T>);
  return emulator::detail::atomic(address, place, [&](T old) { return old | value; });
}
