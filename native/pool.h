// A few threads that wait for work without sleeping while there is some, and give the cores back when there is none.
//
// A token of a small model is hundreds of steps of a few microseconds, so a step must begin and end in a fraction of
// one: threads spin at a barrier. Whoever spins for long gives way (sched_yield), so that more threads than cores, or a
// container with a share of a core, get slower and not stuck; between calls the workers sleep after SPIN_S.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace zeropoint {

// The cores this process may use: its affinity, and the quota of its control group where that is less.
int usable_cores();

class Pool {
   public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return size_; }

    // Run body(thread) for every thread, 0 being the caller; return when all have ended. One call at a time.
    template <class F>
    void run(const F& body) {
        run_erased([](const void* f, int thread) { (*static_cast<const F*>(f))(thread); }, &body);
    }

    // Wait, inside `run`, until every thread is here.
    void barrier();

   private:
    using Call = void (*)(const void*, int);
    void run_erased(Call call, const void* body);
    void work(int thread);

    const int size_;
    Call call_ = nullptr;
    const void* body_ = nullptr;
    alignas(64) std::atomic<unsigned> round_{0};     // goes up when there is work
    alignas(64) std::atomic<int> arrived_{0};        // at the barrier
    alignas(64) std::atomic<unsigned> passed_{0};    // barriers
    std::atomic<int> asleep_{0};
    std::atomic<bool> ending_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

}  // namespace zeropoint
