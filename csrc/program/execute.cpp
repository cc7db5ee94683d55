#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/cpu/scratch.h"
#include "program/stages.h"

namespace sparseprune {
namespace {

constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds below which one thread is faster
constexpr int kSpins = 4000;              // before a waiting thread offers its core to others

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Where the time of a thread goes. Without `times` it is off.
class Clock {
 public:
  explicit Clock(double* times) : times_(times) { start(); }

  void start() {
    if (times_) last_ = std::chrono::steady_clock::now();
  }
  // What went by since was this work.
  void lap(const Work& work) {
    if (!times_) return;
    const auto before = last_;
    start();
    times_[work.step] += std::chrono::duration<double, std::milli>(last_ - before).count();
  }

 private:
  double* times_;
  std::chrono::steady_clock::time_point last_;
};

// The call as a stage sees it that begins with this item of the batch.
Call bind(const Stages& stages, const Stage& stage, const Call& call, int64_t item) {
  Call own{{}, {}, call.weights};
  const auto at = [&](auto& tensors, const Port& port) {
    const int64_t buffer = port.tensor - static_cast<int64_t>(tensors.size());
    return (buffer < 0 ? tensors[port.tensor] : call.arena + stages.buffers[buffer]) +
           item * port.item;
  };
  for (const Port& port : stage.inputs) own.inputs.push_back(at(call.inputs, port));
  for (const Port& port : stage.outputs) own.outputs.push_back(at(call.outputs, port));
  return own;
}

// The works of a call; the pieces of a batch are the tasks of one.
class alignas(64) Jobs {
 public:
  Jobs(const Stages& stages, const Call& call, double* times)
      : stages_(stages), call_(call), times_(times) {
    calls_.reserve(stages.stages.size());
    size_t works = 0;
    for (const Stage& stage : stages.stages) works += stage.pieces ? 1 : stage.plan->works.size();
    jobs_.reserve(works);
    for (const Stage& stage : stages.stages) {
      if (stage.pieces) {
        jobs_.push_back({stage.pieces, nullptr, &stage, nullptr});
        continue;
      }
      calls_.push_back(bind(stages, stage, call, stage.first));
      calls_.back().arena = call.arena + stages.values;
      for (const Work& work : stage.plan->works)
        jobs_.push_back({work.tasks, &work, &stage, &calls_.back()});
    }
  }

  size_t count() const { return jobs_.size(); }
  int64_t tasks(size_t job) const { return jobs_[job].tasks; }

  void run(size_t job, int64_t task, int64_t threads) {
    const Job& j = jobs_[job];
    if (j.work) return j.work->task(*j.call, task);
    piece(*j.stage, task, threads);
  }
  // All tasks of a job have.
  void ended(size_t job, Clock& clock) const {
    if (!jobs_[job].work) return clock.start();
    clock.lap(*jobs_[job].work);
  }

 private:
  struct Job {
    int64_t tasks;
    const Work* work;  // null: pieces
    const Stage* stage;
    const Call* call;
  };

  void piece(const Stage& stage, int64_t piece, int64_t threads) {
    static thread_local Scratch memory;
    Call own = bind(stages_, stage, call_, stage.first + piece * stage.items);
    own.arena = memory.take(stage.plan->arena);
    std::vector<double> laps(times_ ? stages_.steps.size() : 0);
    Clock clock(times_ ? laps.data() : nullptr);
    for (const Work& work : stage.plan->works) {
      for (int64_t i = 0; i < work.tasks; ++i) work.task(own, i);
      clock.lap(work);
    }
    if (!times_) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t s = 0; s < laps.size(); ++s) times_[s] += laps[s] / static_cast<double>(threads);
  }

  const Stages& stages_;
  const Call& call_;
  std::vector<Call> calls_;
  std::vector<Job> jobs_;
  double* times_;
  std::mutex mutex_;  // of times_
};

// Threads go through the works in order. A task belongs to whoever claims it first; every thread
// begins with its own share, so that it finds in its cache what it wrote a work before. Any number
// of threads finishes the call, even one.
class Execution {
 public:
  explicit Execution(Jobs& jobs) : jobs_(jobs) {
    first_.reserve(jobs.count());
    int64_t total = 0;
    for (size_t j = 0; j < jobs.count(); ++j) first_.push_back(total), total += jobs.tasks(j);
    claimed_ = std::make_unique<std::atomic<bool>[]>(total);
    ended_ = std::make_unique<std::atomic<int64_t>[]>(jobs.count());
  }

  void run(int64_t thread, int64_t threads, Clock clock) {
    for (size_t j = 0; j < jobs_.count(); ++j) {
      const int64_t tasks = jobs_.tasks(j), start = tasks * thread / threads;
      for (int64_t i = 0; i < tasks && ended_[j].load(std::memory_order_relaxed) < tasks; ++i)
        claim(j, (start + i) % tasks, threads);
      wait(ended_[j], tasks);
      jobs_.ended(j, clock);
    }
  }

  void rethrow() {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void claim(size_t j, int64_t task, int64_t threads) {
    std::atomic<bool>& flag = claimed_[first_[j] + task];
    if (flag.load(std::memory_order_relaxed) || flag.exchange(true)) return;
    try {
      if (!failed_.load(std::memory_order_relaxed)) jobs_.run(j, task, threads);
    } catch (...) {  // the others must not wait for ever
      const std::lock_guard<std::mutex> lock(mutex_);
      error_ = std::current_exception();
      failed_ = true;
    }
    ended_[j].fetch_add(1, std::memory_order_release);
  }

  static void wait(const std::atomic<int64_t>& ended, int64_t tasks) {
    for (int spins = 0; ended.load(std::memory_order_acquire) < tasks; ++spins)
      if (spins < kSpins)
        relax();
      else
        std::this_thread::yield();
  }

  Jobs& jobs_;
  std::vector<int64_t> first_;
  std::unique_ptr<std::atomic<bool>[]> claimed_;
  std::unique_ptr<std::atomic<int64_t>[]> ended_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

void run_stages(const Stages& stages, Call& call, const Threads& threads, double* times) {
  static thread_local Scratch memory;
  call.arena = memory.take(stages.arena);
  Jobs jobs(stages, call, times);
  if (stages.multiply_adds < kSerialWork || threads.count == 1) {
    Clock clock(times);
    for (size_t j = 0; j < jobs.count(); ++j) {
      for (int64_t i = 0; i < jobs.tasks(j); ++i) jobs.run(j, i, 1);
      jobs.ended(j, clock);
    }
    return;
  }
  Execution execution(jobs);
  threads.run(threads.count, [&](int64_t thread) {
    execution.run(thread, threads.count, Clock(thread == 0 ? times : nullptr));
  });
  execution.rethrow();
}

}  // namespace sparseprune
