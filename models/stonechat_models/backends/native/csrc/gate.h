// A number that grows by one at a time, and that threads wait for.
//
// A wait begins with pauses, goes on with sched_yield, so that other threads can use the core, and
// ends asleep.
#pragma once
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sc {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // `yield` does nothing on most processors
#endif
}

class Gate {
 public:
  // How long a wait lasts before it yields, and before it sleeps.
  struct Patience {
    std::chrono::microseconds pause, awake;
  };

  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  int sleepers() const { return sleepers_.load(std::memory_order_relaxed); }

  // Adds one, and wakes the threads that sleep.
  void open() {
    // Sequentially consistent: this sees a sleeper, or the sleeper sees the new value.
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }

  // Waits until the value is not `seen`.
  void wait(uint32_t seen, const Patience& patience) {
    using Clock = std::chrono::steady_clock;
    const bool may_pause = patience.pause.count() > 0;
    for (int i = 0; i < kPauses && may_pause; ++i) {  // long enough for most waits
      if (value() != seen) return;
      relax();
    }
    const Clock::time_point start = Clock::now();
    for (Clock::duration waited{}; waited < patience.awake; waited = Clock::now() - start) {
      if (value() != seen) return;
      if (waited < patience.pause) relax();
      else sched_yield();
    }
    sleep(seen);
  }

 private:
  static constexpr int kPauses = 20;

  void sleep(uint32_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  alignas(64) std::atomic<uint32_t> value_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace sc
