#include "pool.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace zeropoint {

namespace {

constexpr int SPINS_BEFORE_YIELD = 4096;      // about 50 microseconds
constexpr int YIELDS_BEFORE_SLEEP = 64;

// "max 100000" or "150000 100000": how many cores, rounded up; 0 if there is no limit.
int quota_of(const char* file) {
    std::FILE* f = std::fopen(file, "r");
    if (!f) return 0;
    char quota[32];
    long period = 0;
    const bool read = std::fscanf(f, "%31s %ld", quota, &period) == 2;
    std::fclose(f);
    const long allowed = read && std::strcmp(quota, "max") != 0 ? std::atol(quota) : 0;
    return allowed > 0 && period > 0 ? int((allowed + period - 1) / period) : 0;
}

}  // namespace

int usable_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : int(std::thread::hardware_concurrency());
    const int quota = quota_of("/sys/fs/cgroup/cpu.max");
    if (quota) cores = std::min(cores, quota);
    return std::max(1, cores);
}

Pool::Pool(int threads) : size_(std::max(1, threads)) {
    for (int i = 1; i < size_; i++) threads_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
    {
        std::lock_guard lock(mutex_);
        ending_ = true;
        round_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
}

void Pool::barrier() {
    if (size_ == 1) return;
    const unsigned before = passed_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        passed_.store(before + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; passed_.load(std::memory_order_acquire) == before; spins++)
        if (spins < SPINS_BEFORE_YIELD) _mm_pause();
        else sched_yield();
}

void Pool::run_erased(Call call, const void* body) {
    if (size_ == 1) return call(body, 0);
    call_ = call;
    body_ = body;
    round_.fetch_add(1);
    if (asleep_.load()) {
        std::lock_guard lock(mutex_);
        wake_.notify_all();
    }
    call(body, 0);
    barrier();
}

void Pool::work(int thread) {
    unsigned done = 0;
    for (;;) {
        for (int waits = 0; round_.load() == done; waits++) {
            if (waits < SPINS_BEFORE_YIELD) {
                _mm_pause();
            } else if (waits < SPINS_BEFORE_YIELD + YIELDS_BEFORE_SLEEP) {
                sched_yield();
            } else {
                std::unique_lock lock(mutex_);
                asleep_.fetch_add(1);
                wake_.wait(lock, [&] { return round_.load() != done; });
                asleep_.fetch_sub(1);
            }
        }
        done++;
        if (ending_) return;
        call_(body_, thread);
        barrier();
    }
}

}  // namespace zeropoint
