// Spreads the blocks of a launch over a few OS threads that live as long as the process.
#include "fibers.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdlib.h>
#include <thread>

namespace emu {
namespace {

// A launch on its way: whoever takes part fetches the next block until there is none.
struct Job {
    const Launch& launch;
    uint64_t blocks;
    std::atomic<uint64_t> next{0};
    unsigned helpers = 0;  // guarded by the pool's mutex
};

void run_blocks(Machine& machine, Job& job) {
    const dim3 grid = job.launch.grid;
    for (uint64_t i; (i = job.next.fetch_add(1)) < job.blocks;) {
        const uint64_t row = i / grid.x;
        machine.run(job.launch, dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(row % grid.y),
                                     static_cast<unsigned>(row / grid.y)));
    }
}

class Pool {
public:
    Pool() {
        unsigned threads = std::thread::hardware_concurrency();
        if (const char* given = getenv("UCAG_EMU_THREADS")) threads = static_cast<unsigned>(atoi(given));
        for (helpers_ = 0; helpers_ + 1 < threads; helpers_++) std::thread([this] { help(); }).detach();
    }

    void run(const Launch& launch) {
        const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
        Job job{launch, blocks};
        // Waking a thread takes as long as running a few hundred fibers.
        const bool small = blocks == 1 || blocks * launch.block.x * launch.block.y * launch.block.z < 1024;
        const bool shared = !small && helpers_ > 0;
        std::unique_ptr<Machine> machine = take();
        if (shared) {
            std::lock_guard<std::mutex> lock(mutex_);
            jobs_.push_back(&job);
            work_.notify_all();
        }
        run_blocks(*machine, job);
        std::unique_lock<std::mutex> lock(mutex_);
        if (shared) {
            remove(&job);
            idle_.wait(lock, [&] { return job.helpers == 0; });
        }
        machines_.push_back(std::move(machine));
    }

private:
    void help() {
        Machine machine;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            work_.wait(lock, [&] { return !jobs_.empty(); });
            Job* job = jobs_.front();
            job->helpers++;
            lock.unlock();
            run_blocks(machine, *job);
            lock.lock();
            remove(job);
            if (--job->helpers == 0) idle_.notify_all();
        }
    }

    void remove(Job* job) {
        for (size_t i = 0; i < jobs_.size(); i++) {
            if (jobs_[i] == job) return void(jobs_.erase(jobs_.begin() + static_cast<std::ptrdiff_t>(i)));
        }
    }

    std::unique_ptr<Machine> take() {
        std::lock_guard<std::mutex> lock(mutex_);
        if (machines_.empty()) return std::make_unique<Machine>();
        std::unique_ptr<Machine> machine = std::move(machines_.back());
        machines_.pop_back();
        return machine;
    }

    std::mutex mutex_;
    std::condition_variable work_, idle_;
    std::vector<Job*> jobs_;
    std::vector<std::unique_ptr<Machine>> machines_;  // of calling threads, of which tests have many
    unsigned helpers_ = 0;
};

}  // namespace

void launch(const Launch& launch) {
    static Pool* pool = new Pool;  // never destroyed: its threads run until the process ends
    pool->run(launch);
}

}  // namespace emu
