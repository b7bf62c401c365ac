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
// A waiting member pauses for a short time, then gives up its core with sched_yield, then sleeps
// (gate.h).  So other threads can run when cores are shared, and an idle pool takes no core.
#pragma once
#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "amx.h"
#include "gate.h"

namespace sc {

// Processors that this process may run on.
inline int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return int(std::thread::hardware_concurrency());
}

inline constexpr bool kLastPhase = true;

class Pool {
 public:
  explicit Pool(int size)
      : size_(std::max(1, size)),
        groups_(size_ > kMany ? (size_ + kGroup - 1) / kGroup : 0),
        arrived_in_(new Count[size_t(groups_) + 1]),
        first_taken_(groups_ ? size_ : 0),
        next_item_(first_taken_) {
    if (usable_cpus() < size_) in_phase_.pause = between_jobs_.pause = {};
    try {
      for (int i = 1; i < size_; ++i) threads_.emplace_back([this, i] { work(i); });
    } catch (...) {  // the system has no more threads
      join();
      throw;
    }
  }

  ~Pool() { join(); }

  int size() const { return size_; }

  // Members that sleep: between jobs, and at the end of a phase.
  int idle_sleepers() const { return jobs_.sleepers(); }
  int phase_sleepers() const { return phases_.sleepers(); }

  // Runs body(member) on every member and returns when all are done.
  template <class Body>
  void run(Body body) {
    job_ = [](void* context, int member) { (*static_cast<Body*>(context))(member); };
    context_ = &body;
    if (size_ > 1) jobs_.open();
    body(0);
    release_tiles();
    barrier();
  }

  // Calls body(item) for the items 0..n-1, each on one member, in ascending order on each member.
  // Returns when all are done.  The last phase of a job may leave the wait to the end of the job
  // (kLastPhase); a phase after that would miss items.
  template <class Body>
  void for_each(int n, Body body, bool is_last = false) {
    for (int item = first(); item < n; item = take()) body(item);
    if (!is_last) barrier();
  }

  // Like for_each, but calls body(item, next).  The member gets item `next` after this one, or none
  // if `next` is n or more.
  template <class Body>
  void for_each_with_next(int n, Body body) {
    for (int item = first(); item < n;) {
      const int next = take();
      body(item, next);
      item = next;
    }
    barrier();
  }

 private:
  using Job = void (*)(void* context, int member);
  using Microseconds = std::chrono::microseconds;
  struct alignas(64) Count {
    std::atomic<int> n{0};
  };

  static constexpr int kGroup = 8;  // members that arrive at one counter
  static constexpr int kMany = 16;  // members: up to here, all arrive at one counter

  // With many members the first item of each has its number, so that they need not all take it from
  // one counter at the same time.
  int first() { return groups_ ? member_ : take(); }
  int take() { return next_item_.fetch_add(1, std::memory_order_relaxed); }

  // Counts an arrival at a barrier, and returns whether it is the last one.  Many members arrive in
  // groups, so that few of them write to one cache line.
  bool arrive() {
    if (groups_ == 0) return is_last_of(arrived_, size_);
    const int group = member_ / kGroup;
    return is_last_of(arrived_in_[size_t(group)], std::min(kGroup, size_ - group * kGroup)) &&
           is_last_of(arrived_, groups_);
  }
  static bool is_last_of(Count& arrived, int n) {
    if (arrived.n.fetch_add(1, std::memory_order_acq_rel) + 1 < n) return false;
    arrived.n.store(0, std::memory_order_relaxed);
    return true;
  }

  void barrier() {
    const uint32_t phase = phases_.value();
    if (!arrive()) return phases_.wait(phase, in_phase_);
    next_item_.store(first_taken_, std::memory_order_relaxed);
    phases_.open();
  }

  void join() {
    job_ = nullptr;
    jobs_.open();
    for (std::thread& t : threads_) t.join();
  }

  void work(int member) {
    member_ = member;
    for (uint32_t seen = 0;; ++seen) {
      jobs_.wait(seen, between_jobs_);
      if (job_ == nullptr) return;
      job_(context_, member);
      release_tiles();
      barrier();
    }
  }

  static inline thread_local int member_ = 0;  // of the pool whose thread this is

  const int size_, groups_;  // no groups: few members
  // Who yields at once gives a core away for milliseconds, over and over, while others want it.
  Gate::Patience in_phase_{Microseconds(20), Microseconds(20000)};
  Gate::Patience between_jobs_{Microseconds(1), Microseconds(500)};
  Job job_ = nullptr;
  void* context_ = nullptr;
  Gate jobs_, phases_;
  Count arrived_;
  std::unique_ptr<Count[]> arrived_in_;  // of each group
  const int first_taken_;
  alignas(64) std::atomic<int> next_item_;
  std::vector<std::thread> threads_;
};

}  // namespace sc
