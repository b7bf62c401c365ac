// A team of threads that runs one job at a time; the calling thread is member 0.
//
// A job consists of phases.  A phase is one call of for_each: it hands its items out to the members
// and ends with a barrier.
//
// Invariant: every member calls the same phases, with the same numbers of items, in the same order.
// So between two barriers all members are in one phase, and one counter of items serves every
// phase: the member that arrives last at a barrier sets it back while the others wait.  What a
// member wrote in a phase, all members may read after it.
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
#elif defined(__aarch64__)
  asm volatile("isb");  // `yield` does nothing on most processors
#endif
}

inline constexpr bool kLastPhase = true;

class Pool {
 public:
  explicit Pool(int size) : size_(size < 1 ? 1 : size) {
    try {
      for (int i = 1; i < size_; ++i) threads_.emplace_back([this, i] { work(i); });
    } catch (...) {  // the system has no more threads
      join();
      throw;
    }
  }

  ~Pool() { join(); }

  int size() const { return size_; }

  // Runs body(member) on every member and returns when all are done.
  template <class Body>
  void run(Body body) {
    job_ = [](void* context, int member) { (*static_cast<Body*>(context))(member); };
    context_ = &body;
    start();
    body(0);
    barrier();
  }

  // Calls body(item) for the items 0..n-1, each on one member, in ascending order on each member.
  // Returns when all are done.  The last phase of a job may leave the wait to the end of the job
  // (kLastPhase); a phase after that would miss items.
  template <class Body>
  void for_each(int n, Body body, bool is_last = false) {
    for (int item = take(); item < n; item = take()) body(item);
    if (!is_last) barrier();
  }

  // Like for_each, but calls body(item, next).  The member gets item `next` after this one, or none
  // if `next` is n or more.
  template <class Body>
  void for_each_with_next(int n, Body body) {
    for (int item = take(); item < n;) {
      const int next = take();
      body(item, next);
      item = next;
    }
    barrier();
  }

 private:
  static constexpr int kBarrierSpins = 2000;
  static constexpr int kIdleSpins = 500;

  using Job = void (*)(void* context, int member);

  int take() { return next_item_.fetch_add(1, std::memory_order_relaxed); }

  void barrier() {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_item_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < kBarrierSpins) relax();
      else sched_yield();
    }
  }

  void join() {
    job_ = nullptr;
    start();
    for (std::thread& t : threads_) t.join();
  }

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
  std::atomic<int> next_item_{0};               // in the cache line that arrivals write anyway
  alignas(64) std::atomic<uint32_t> phase_{0};  // number of barriers passed
  std::vector<std::thread> threads_;
};

}  // namespace sc
