#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/cpu/scratch.h"
#include "program/plan.h"

namespace sparseprune {
namespace {

constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds below which one thread is faster
constexpr int kSpins = 4000;              // before a waiting thread offers its core to others

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Threads go through the works in order. A task belongs to whoever claims it first; every thread
// begins with its own share, so that it finds in its cache what it wrote a work before. Any number
// of threads finishes the plan, even one.
class Execution {
 public:
  Execution(const Plan& plan, const Call& call) : plan_(plan), call_(call) {
    first_.reserve(plan.works.size() + 1);
    int64_t total = 0;
    for (const Work& work : plan.works) first_.push_back(total), total += work.tasks;
    claimed_ = std::make_unique<std::atomic<bool>[]>(total);
    ended_ = std::make_unique<std::atomic<int64_t>[]>(plan.works.size());
  }

  void run(int64_t thread, int64_t threads) {
    for (size_t w = 0; w < plan_.works.size(); ++w) {
      if (w) wait(ended_[w - 1], plan_.works[w - 1].tasks);
      const int64_t tasks = plan_.works[w].tasks, start = tasks * thread / threads;
      for (int64_t i = 0; i < tasks && ended_[w].load(std::memory_order_relaxed) < tasks; ++i)
        claim(w, (start + i) % tasks);
    }
  }

  void rethrow() {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void claim(size_t w, int64_t task) {
    std::atomic<bool>& flag = claimed_[first_[w] + task];
    if (flag.load(std::memory_order_relaxed) || flag.exchange(true)) return;
    try {
      if (!failed_.load(std::memory_order_relaxed)) plan_.works[w].task(call_, task);
    } catch (...) {  // the others must not wait for ever
      const std::lock_guard<std::mutex> lock(mutex_);
      error_ = std::current_exception();
      failed_ = true;
    }
    ended_[w].fetch_add(1, std::memory_order_release);
  }

  static void wait(const std::atomic<int64_t>& ended, int64_t tasks) {
    for (int spins = 0; ended.load(std::memory_order_acquire) < tasks; ++spins)
      if (spins < kSpins)
        relax();
      else
        std::this_thread::yield();
  }

  const Plan& plan_;
  const Call& call_;
  std::vector<int64_t> first_;
  std::unique_ptr<std::atomic<bool>[]> claimed_;
  std::unique_ptr<std::atomic<int64_t>[]> ended_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

void run_plan(const Plan& plan, Call& call, const Threads& threads) {
  static thread_local Scratch memory;
  call.arena = memory.take(plan.arena);
  if (plan.multiply_adds < kSerialWork || threads.count == 1) {
    for (const Work& work : plan.works)
      for (int64_t i = 0; i < work.tasks; ++i) work.task(call, i);
    return;
  }
  Execution execution(plan, call);
  threads.run(threads.count, [&](int64_t thread) { execution.run(thread, threads.count); });
  execution.rethrow();
}

}  // namespace sparseprune
