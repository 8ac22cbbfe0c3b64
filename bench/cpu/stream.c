// Streaming reads and an in-place update: what this machine's memory can do, and no more.
//
// Every function takes `words` 8-byte words at `data` and runs on `threads` threads. The result of
// a read is returned, so that the compiler cannot drop the loop.

#include <stddef.h>
#include <stdint.h>

enum {
  kLanes = 32,          // 256 bytes of independent accumulators hide the latency of the OR
  kStreams = 4,         // pages that a thread reads at a time, each a hardware prefetcher's stream
  kPrefetchWords = 64,  // 512 bytes ahead in each stream
  kLineWords = 8        // one cache line
};

static uint64_t or_lanes(const uint64_t* lanes) {
  uint64_t all = 0;
  for (int lane = 0; lane < kLanes; ++lane) all |= lanes[lane];
  return all;
}

// One stream per thread, front to back.
uint64_t read_in_order(const uint64_t* data, size_t words, int threads) {
  uint64_t all = 0;
  const int64_t blocks = (int64_t)(words / kLanes);
#pragma omp parallel num_threads(threads) reduction(| : all)
  {
    uint64_t lanes[kLanes] = {0};
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      const uint64_t* from = data + block * kLanes;
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] |= from[lane];
    }
    all |= or_lanes(lanes);
  }
  for (size_t i = (size_t)blocks * kLanes; i < words; ++i) all |= data[i];
  return all;
}

// Four streams per thread, a quarter of the buffer apart, their lines asked for by hand.
uint64_t read_prefetched(const uint64_t* data, size_t words, int threads) {
  uint64_t all = 0;
  const size_t stride = words / kStreams / kLanes * kLanes;
  const int64_t blocks = (int64_t)(stride / kLanes);
#pragma omp parallel num_threads(threads) reduction(| : all)
  {
    uint64_t lanes[kLanes] = {0};
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      for (int stream = 0; stream < kStreams; ++stream) {
        const uint64_t* from = data + stream * stride + block * kLanes;
        for (int line = 0; line < kLanes; line += kLineWords) {
          __builtin_prefetch(from + kPrefetchWords + line);
        }
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] |= from[lane];
      }
    }
    all |= or_lanes(lanes);
  }
  for (size_t i = stride * kStreams; i < words; ++i) all |= data[i];
  return all;
}

// Read and write every line once: the floor of scaling a gradient in place.
void update(float* data, size_t words, float factor, int threads) {
  const int64_t count = (int64_t)words * 2;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) data[i] *= factor;
}
