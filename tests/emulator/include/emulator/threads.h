// Barriers, shuffles, votes, fences.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace emulator::detail {

template <typename T>
uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "not a type that lanes can exchange");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(Meeting meeting, uint32_t mask, T value, int source, Place place) {
  return from_bits<T>(meet_shuffle(meeting, mask, to_bits(value), source, place));
}

}  // namespace emulator::detail

inline void __syncthreads(emulator::detail::Place place = emulator::detail::Place::here()) {
  emulator::detail::meet_block(emulator::detail::Meeting::kSyncThreads, false, place);
}

inline int __syncthreads_or(int predicate,
                            emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::meet_block(emulator::detail::Meeting::kSyncThreadsOr, predicate != 0,
                                      place) > 0;
}

inline int __syncthreads_and(int predicate,
                             emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::meet_block(emulator::detail::Meeting::kSyncThreadsAnd, predicate == 0,
                                      place) == 0;
}

inline int __syncthreads_count(int predicate,
                               emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::meet_block(emulator::detail::Meeting::kSyncThreadsCount, predicate != 0,
                                      place);
}

inline void __syncwarp(unsigned mask = 0xffffffff,
                       emulator::detail::Place place = emulator::detail::Place::here()) {
  emulator::detail::meet_warp(mask, place);
}

// A lane whose source lies outside of its own `width` lanes gets its own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              emulator::detail::Place place = emulator::detail::Place::here()) {
  const int first = emulator::detail::lane() & ~(width - 1);
  return emulator::detail::shuffle(emulator::detail::Meeting::kShuffle, mask, value,
                                   first + (source & (width - 1)), place);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32,
                  emulator::detail::Place place = emulator::detail::Place::here()) {
  const int lane = emulator::detail::lane();
  const int source = lane ^ distance;
  const bool is_own = source >= (lane & ~(width - 1)) + width;
  return emulator::detail::shuffle(emulator::detail::Meeting::kShuffleXor, mask, value,
                                   is_own ? lane : source, place);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 emulator::detail::Place place = emulator::detail::Place::here()) {
  const int lane = emulator::detail::lane();
  const int source = lane - static_cast<int>(distance);
  return emulator::detail::shuffle(emulator::detail::Meeting::kShuffleUp, mask, value,
                                   source < (lane & ~(width - 1)) ? lane : source, place);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   emulator::detail::Place place = emulator::detail::Place::here()) {
  const int lane = emulator::detail::lane();
  const int source = lane + static_cast<int>(distance);
  return emulator::detail::shuffle(emulator::detail::Meeting::kShuffleDown, mask, value,
                                   source > (lane | (width - 1)) ? lane : source, place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::meet_vote(emulator::detail::Meeting::kBallot, mask, predicate != 0,
                                     place);
}

inline int __any_sync(unsigned mask, int predicate,
                      emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::meet_vote(emulator::detail::Meeting::kAny, mask, predicate != 0,
                                     place) != 0;
}

inline int __all_sync(unsigned mask, int predicate,
                      emulator::detail::Place place = emulator::detail::Place::here()) {
  return emulator::detail::meet_vote(emulator::detail::Meeting::kAll, mask, predicate == 0,
                                     place) == 0;
}

inline void __threadfence() { emulator::detail::fence(); }
inline void __threadfence_block() { emulator::detail::fence(); }
inline void __threadfence_system() { emulator::detail::fence(); }

// Every wait in a loop needs it: the thread that is waited for runs meanwhile.
inline void __nanosleep(unsigned, emulator::detail::Place place = emulator::detail::Place::here()) {
  emulator::detail::sleep(place);
}

[[noreturn]] inline void __trap(emulator::detail::Place place = emulator::detail::Place::here()) {
  emulator::detail::trap(place);
}
