// The threads of one call: a fixed team that works through one list of tasks after another. Tasks are cut by the
// shape of the data alone and write to places of their own, so that results do not depend on the team's size.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "../../../ops/csrc/denormals.h"

namespace ppsr2q {
namespace runtime {

class Team {
public:
    // threads >= 1, the caller's own included. std::system_error when the system gives no more threads.
    explicit Team(int threads) {
        try {
            for (int i = 1; i < threads; i++) {
                workers_.emplace_back([this, i] { serve(i); });
            }
        } catch (...) {
            dismiss();
            throw;
        }
    }
    ~Team() { dismiss(); }
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // body(task, thread) for every task in [0, tasks), denormals flushed; returns when all are done. body must not throw.
    template <class Body>
    void run(std::int64_t tasks, const Body& body) {
        std::atomic<std::int64_t> next(0);
        auto work = [&](int thread) {
            const FlushDenormals flush;
            for (std::int64_t task = next++; task < tasks; task = next++) {
                body(task, thread);
            }
        };
        using Work = decltype(work);
        if (workers_.empty() || tasks < 2) {
            work(0);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            context_ = &work;
            call_ = [](void* context, int thread) { (*static_cast<Work*>(context))(thread); };
            busy_ = static_cast<int>(workers_.size());
            round_++;
        }
        started_.notify_all();
        work(0);
        std::unique_lock<std::mutex> lock(mutex_);
        finished_.wait(lock, [this] { return busy_ == 0; });
    }

private:
    void serve(int thread) {
        std::uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            started_.wait(lock, [&] { return round_ != seen || leaving_; });
            if (leaving_) {
                return;
            }
            seen = round_;
            lock.unlock();
            call_(context_, thread);
            lock.lock();
            if (--busy_ == 0) {
                finished_.notify_one();
            }
        }
    }

    void dismiss() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            leaving_ = true;
        }
        started_.notify_all();
        for (std::thread& worker : workers_) {
            worker.join();
        }
        workers_.clear();
    }

    std::mutex mutex_;
    std::condition_variable started_;
    std::condition_variable finished_;
    std::vector<std::thread> workers_;
    void (*call_)(void*, int) = nullptr;
    void* context_ = nullptr;
    std::uint64_t round_ = 0;
    int busy_ = 0;
    bool leaving_ = false;
};

}  // namespace runtime
}  // namespace ppsr2q
