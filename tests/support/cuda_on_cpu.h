// Just enough CUDA for the CPU to run kernels.cuh unchanged.
//
// A thread is a fiber that runs until it reaches a barrier. Between two barriers the fibers of a
// block run one after the other, upwards or downwards, as the caller chooses: a kernel without a
// race gives the same result both ways. A barrier that only some threads reach ends the program.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
using std::min;

inline unsigned atomicAdd(unsigned* address, unsigned value) {
    unsigned const old = *address;
    *address += value;
    return old;
}

namespace cpu {

constexpr std::size_t kStackBytes = 64 * 1024;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(kStackBytes);
    bool done = false;
};

inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline std::function<void()> const* kernel = nullptr;

inline void run_fiber() {
    (*kernel)();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

// Runs all threads of one block to their next barrier. Returns false once all have ended.
inline bool advance(std::vector<Fiber>& fibers, bool downwards) {
    std::size_t num_done = 0;
    for (std::size_t i = 0; i < fibers.size(); ++i) {
        threadIdx.x = static_cast<unsigned>(downwards ? fibers.size() - 1 - i : i);
        current = &fibers[threadIdx.x];
        swapcontext(&scheduler, &current->context);
        num_done += current->done;
    }
    if (num_done != 0 && num_done != fibers.size()) {
        std::fputs("a barrier was reached by some threads only\n", stderr);
        std::abort();
    }
    return num_done == 0;
}

inline void launch(dim3 grid, unsigned threads, bool downwards,
                   std::function<void()> const& body) {
    gridDim = grid;
    blockDim = {threads, 1, 1};
    kernel = &body;
    std::vector<Fiber> fibers(threads);
    for (unsigned block = 0; block < grid.x * grid.y; ++block) {
        blockIdx = {block % grid.x, block / grid.x, 0};
        for (Fiber& fiber : fibers) {
            fiber.done = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = &scheduler;
            makecontext(&fiber.context, run_fiber, 0);
        }
        while (advance(fibers, downwards)) {
        }
    }
}

}  // namespace cpu

// threadIdx is the scheduler's while other fibers run, so each fiber restores its own.
inline void __syncthreads() {
    dim3 const own = threadIdx;
    swapcontext(&cpu::current->context, &cpu::scheduler);
    threadIdx = own;
}
