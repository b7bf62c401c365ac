// A team of threads that runs one job at a time; the calling thread is member 0.
//
// A waiting thread spins for a limited time only.  Then an idle worker sleeps on a condition
// variable, and a member at a barrier gives up its core with sched_yield.  So other threads of the
// process (Python's event loop) can run when cores are shared.
#pragma once
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sc {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

class Pool {
 public:
  using Job = void (*)(void* context, int member);

  explicit Pool(int size) : size_(size < 1 ? 1 : size) {
    for (int i = 1; i < size_; ++i) threads_.emplace_back([this, i] { work(i); });
  }

  ~Pool() {
    job_ = nullptr;
    start();
    for (std::thread& t : threads_) t.join();
  }

  int size() const { return size_; }

  // Runs job(context, member) on every member and returns when all are done.
  void run(Job job, void* context) {
    job_ = job;
    context_ = context;
    start();
    job(context, 0);
    barrier();
  }

  // Every member must call it the same number of times within a job.
  void barrier() {
    if (size_ == 1) return;
    uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < kBarrierSpins) relax();
      else sched_yield();
    }
  }

 private:
  static constexpr int kBarrierSpins = 2000;
  static constexpr int kIdleSpins = 500;

  void start() {
    if (size_ == 1) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void work(int member) {
    for (uint32_t seen = 0;;) {
      for (int spins = 0; spins < kIdleSpins && epoch_.load(std::memory_order_acquire) == seen;
           ++spins) {
        relax();
      }
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
      }
      ++seen;
      if (job_ == nullptr) return;
      job_(context_, member);
      barrier();
    }
  }

  const int size_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  std::atomic<uint32_t> epoch_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::vector<std::thread> threads_;
};

// Hands out items 0..n-1 of each phase of a job.  Members call next() until it returns false.
class WorkQueue {
 public:
  void reset(int phases) {
    if (size_t(phases) > counters_.size()) counters_ = std::vector<Counter>(size_t(phases));
    for (Counter& c : counters_) c.next.store(0, std::memory_order_relaxed);
  }
  bool next(int phase, int n, int* item) {
    *item = counters_[size_t(phase)].next.fetch_add(1, std::memory_order_relaxed);
    return *item < n;
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int> next{0};
    Counter() = default;
    Counter(const Counter&) {}
  };
  std::vector<Counter> counters_;
};

}  // namespace sc
