// What a kernel and the runtime below it (fibers.cpp) know of each other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "vectors.hpp"

extern uint3 threadIdx, blockIdx;  // of the thread that runs
extern dim3 blockDim, gridDim;

namespace study {

constexpr unsigned WARP = 32;

// `size` bytes under way to shared memory, in the thread's `group`-th group of copies.
struct Copy {
    void* dst;
    uint64_t bytes[2];
    int group, size = 16;
};

struct Thread {
    unsigned rank, warp, lane;  // rank: in the block, x fastest
    unsigned lanes;             // the mask of those that its warp has
    std::deque<Copy> copies;
    int groups;  // closed so far
    // Of the product of its warpgroup that is under way: what d will hold, and what it has read.
    std::vector<float> product;
    std::vector<std::pair<const void*, uint16_t>> operands;
    bool fenced;  // since it last waited for others, so that a product may read what they stored
};
extern Thread* self;  // the thread that runs

// An operation, and where the source calls it.
struct Call {
    const char* operation;
    const char* file;
    int line;
};

// Wait until all threads of the block are in the same operation; how many gave true.
int barrier(Call call, bool predicate);

// Wait until all lanes of `mask` are in the same operation, each with a value of `size` bytes, at
// most 64. Returns the table of their values, by lane, which holds until this lane meets others
// again; lanes that are not in the mask have 0xFF bytes. `combine` may work on the table first.
// Only a meeting without values orders memory, as CUDA has it.
void* meet(Call call, unsigned mask, const void* value, size_t size, void (*combine)(void* table));

// Arrive at the barrier of the cluster; wait there until all threads of its blocks have arrived.
// The barrier orders the memory of those that arrived so.
void cluster_arrive(Call call, bool orders);
void cluster_wait(Call call);

// In the shared memory of the cluster's block `rank`, the place of an address in this block's.
void* remote(Call call, void* address, unsigned rank);

// The barriers of mbarrier.cuh. An arrival may have its phase need `bytes` more.
void mbarrier_init(Call call, unsigned long long* at, unsigned arrivals);
void fence_mbarrier_init();
void mbarrier_arrive(Call call, unsigned long long* at, long long bytes = 0);
void mbarrier_wait(Call call, unsigned long long* at, unsigned parity);

// Send bytes to `dst`, in the shared memory of the cluster's block `rank` or of this one, where a
// wait at the barrier `at` finds them; both are the addresses in this block's.
constexpr unsigned OWN = ~0u;
void send(Call call, unsigned long long* at, unsigned rank, void* dst, std::vector<char> bytes);

// Order memory with every other thread that calls this.
void fence();

// Let the other threads run.
void yield();

// End the launch: an error of the thread that runs.
[[noreturn]] void fail(Call call, const std::string& reason);

// The block's dynamic shared memory.
void* dynamic_shared();

// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace study

// Defined beside the kernel, by STUDY_KERNEL.
extern "C" {
void study_call(void** args);
const char* study_parameters();  // of each parameter its kind and, as a char, its size
void* study_shared();            // an address in the static shared memory
}
