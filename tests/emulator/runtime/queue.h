// Who runs next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../emulator.h"

namespace emulator::runtime {

// splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  size_t below(size_t limit) {
    return static_cast<size_t>(static_cast<unsigned __int128>(bits()) * limit >> 64);
  }

 private:
  uint64_t state_;
};

// T has a member `int64_t priority`. All memory is allocated by reset(): what a fiber allocates and
// another one moves would be a race for ThreadSanitizer, which intercepts malloc and memmove.
template <typename T>
class Queue {
 public:
  // An item is in the queue once at most, so that `items` of them are as many as it ever holds.
  void reset(Schedule schedule, uint64_t seed, size_t items) {
    schedule_ = schedule;
    random_ = Random(seed);
    lowest_ = 0;
    first_ = size_ = 0;
    if (items_.size() < items) items_.resize(items);
  }
  bool is_empty() const { return size_ == 0; }
  Random& random() { return random_; }

  void push_new(T* item) {
    if (schedule_ == Schedule::kPriorities) item->priority = draw();
    insert(item);
  }
  void push(T* item) {
    constexpr int kRedraw = 8;  // once in this many turns
    if (schedule_ == Schedule::kPriorities && random_.below(kRedraw) == 0) item->priority = draw();
    insert(item);
  }
  // A sleeping thread comes after all others: otherwise only the random schedule would reach those.
  void push_last(T* item) {
    item->priority = --lowest_;
    if (schedule_ != Schedule::kLifo) return insert(item);
    first_ = (first_ + items_.size() - 1) % items_.size();
    ++size_;
    at(0) = item;
  }

  T* pop() {
    if (schedule_ == Schedule::kFifo) return pop_front();
    if (schedule_ == Schedule::kRandom) std::swap(at(random_.below(size_)), at(size_ - 1));
    if (schedule_ == Schedule::kPriorities) {
      std::pop_heap(items_.data(), items_.data() + size_, is_later);
    }
    return at(--size_);
  }

 private:
  static bool is_later(const T* a, const T* b) { return a->priority < b->priority; }
  int64_t draw() { return static_cast<int64_t>(random_.bits() >> 1); }

  // A ring: the heap of priorities always begins at its first slot.
  T*& at(size_t index) {
    const size_t slot = first_ + index;
    return items_[slot < items_.size() ? slot : slot - items_.size()];
  }
  void insert(T* item) {
    at(size_++) = item;
    if (schedule_ != Schedule::kPriorities) return;
    std::push_heap(items_.data(), items_.data() + size_, is_later);
  }
  T* pop_front() {
    T* const item = at(0);
    first_ = (first_ + 1) % items_.size();
    --size_;
    return item;
  }

  Schedule schedule_ = Schedule::kFifo;
  Random random_;
  int64_t lowest_ = 0;
  std::vector<T*> items_;
  size_t first_ = 0;
  size_t size_ = 0;
};

}  // namespace emulator::runtime
