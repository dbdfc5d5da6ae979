// As much of CUDA as kernels.cu uses, on one processor core: g++ -x c++ compiles the same file, and
// its logic can be tested without a GPU. Blocks run one after the other; the threads of a block are
// fibers, switched only where CUDA synchronises them, so every run is alike.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };

struct dim3
{
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    unsigned x, y, z;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };

struct cudaLaunchConfig_t
{
    dim3 gridDim, blockDim;
    cudaStream_t stream = nullptr;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

constexpr size_t kStackBytes = 16 * 1024;
constexpr size_t kLanes = 32;

enum class State { kRunning, kAtWarpBarrier, kAtBlockBarrier, kEnded };

struct Fiber
{
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    dim3 index;
    int value = 0;  // what it shows to the others at a barrier
    State state = State::kRunning;
};

// One warp runs until it waits for the others, then the next: as far apart as CUDA lets them drift.
struct Block
{
    std::vector<Fiber> fibers;
    ucontext_t scheduler;
    size_t current = 0;
    std::function<void()> body;

    void wait(State barrier)
    {
        fibers[current].state = barrier;
        swapcontext(&fibers[current].context, &scheduler);
    }

    static void enter();

    State run_warp(size_t first)
    {
        State state = State::kAtWarpBarrier;
        while (state == State::kAtWarpBarrier) {
            size_t const end = std::min(first + kLanes, fibers.size());
            for (current = first; current < end; ++current) {
                threadIdx = fibers[current].index;
                swapcontext(&scheduler, &fibers[current].context);
                state = current == first ? fibers[current].state : state;
                if (fibers[current].state != state) {
                    std::abort();  // some lanes wait at a barrier that others never reach
                }
            }
        }
        return state;
    }

    void run(dim3 shape)
    {
        fibers.resize(static_cast<size_t>(shape.x) * shape.y);
        for (size_t i = 0; i < fibers.size(); ++i) {
            fibers[i].state = State::kRunning;
            fibers[i].index = dim3(i % shape.x, i / shape.x);
            getcontext(&fibers[i].context);
            fibers[i].context.uc_stack.ss_sp = fibers[i].stack.get();
            fibers[i].context.uc_stack.ss_size = kStackBytes;
            fibers[i].context.uc_link = &scheduler;
            makecontext(&fibers[i].context, enter, 0);
        }
        for (State state = State::kRunning; state != State::kEnded;) {
            state = run_warp(0);
            for (size_t first = kLanes; first < fibers.size(); first += kLanes) {
                if (run_warp(first) != state) {
                    std::abort();  // so do some warps
                }
            }
        }
    }
};

inline Block block;

inline void Block::enter()
{
    block.body();
    block.fibers[block.current].state = State::kEnded;
}

// Shows `value` to the threads behind the same barrier.
inline void exchange(int value, State barrier)
{
    block.fibers[block.current].value = value;
    block.wait(barrier);
}

}  // namespace emulation

inline void __syncthreads()
{
    emulation::block.wait(emulation::State::kAtBlockBarrier);
}

inline int __syncthreads_count(int predicate)
{
    emulation::exchange(predicate != 0, emulation::State::kAtBlockBarrier);
    int count = 0;
    for (auto const& fiber : emulation::block.fibers) {
        count += fiber.value;
    }
    emulation::block.wait(emulation::State::kAtBlockBarrier);
    return count;
}

inline int __shfl_up_sync(unsigned, int value, unsigned delta)
{
    emulation::exchange(value, emulation::State::kAtWarpBarrier);
    size_t const thread = emulation::block.current;
    size_t const from = thread % emulation::kLanes >= delta ? thread - delta : thread;
    int const received = emulation::block.fibers[from].value;
    emulation::block.wait(emulation::State::kAtWarpBarrier);
    return received;
}

inline int atomicMax(int* address, int value)
{
    int const old = *address;
    *address = value > old ? value : old;
    return old;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(cudaLaunchConfig_t const* config, void (*kernel)(Parameters...),
                               Arguments... arguments)
{
    unsigned const threads = config->blockDim.x * config->blockDim.y;
    if (config->gridDim.x == 0 || threads == 0 || threads > 1024) {
        std::abort();
    }
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    emulation::block.body = [=] { kernel(arguments...); };
    for (unsigned i = 0; i < gridDim.x; ++i) {
        blockIdx = dim3(i);
        emulation::block.run(blockDim);
    }
    return cudaSuccess;
}

inline cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t)
{
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
