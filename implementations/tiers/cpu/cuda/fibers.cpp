// The threads of a CUDA block as fibres of one OS thread, one block after another, the blocks of a
// cluster together.
//
// A thread runs until it must wait for others; then, of those that are ready, the first in an order
// of blocks, warps and lanes that stays the same: a warp runs as far ahead of the later ones as
// barriers let it. The order is that of the indices, or by STUDY_THREAD_SEED the reverse (1) or a
// random one. So of two warps or two lanes between which a barrier is missing, each runs ahead of
// the other in one of the first two orders.
#include "fibers.hpp"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "switch.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace study {

Thread* self;

namespace {

constexpr size_t STACK = 256 << 10, PAGE = 4096;
constexpr size_t MAX_VALUE = 64;                  // bytes that a lane hands to others
constexpr size_t MAX_WARPS = 32, MAX_BLOCKS = 8;  // of a block, of a cluster

struct Fiber : Thread, Context {
    struct Block* block = nullptr;
    uint3 index{};
    unsigned place = 0;  // in the order of the block's threads
    Call call{};         // where it waits
    bool ended = false;
    unsigned arrivals = 0, waits = 0;  // at the barrier of its cluster
};

// Where threads wait for each other: those in one operation and, of a warp, with one mask.
struct Meeting {
    std::string operation;
    unsigned mask;
    size_t expected;
    std::vector<Fiber*> waiting;
    unsigned round = 0;
    int count[2];  // two of each: some may still read the last round's while others are in the next
    alignas(16) unsigned char values[2][WARP * MAX_VALUE];
};

// What comes in a phase of a barrier. It takes its place when a thread of the block has waited.
struct Sent {
    unsigned phase;
    void* dst;
    std::vector<char> bytes;
};

// A barrier of mbarrier.cuh, of which its place in shared memory holds the number.
struct Phases {
    struct Block& owner;
    unsigned expected, missing;  // arrivals of a phase; those that the one under way still needs
    long long bytes = 0;         // that it needs: fewer than 0 where some came before their arrival
    unsigned ended = 0;          // phases
    std::vector<Fiber*> waiting{};
    std::vector<Sent> sent{};
    bool fenced = false;  // whether others than threads of the block may know it
    int token = 0;

    void end_if_complete();
};

// The order by STUDY_THREAD_SEED: which block of a cluster comes first, which second, ...; and of a
// block the ranks of its threads by their places, whole warps, and the places by the ranks.
struct Order {
    std::array<unsigned, MAX_BLOCKS> blocks;
    std::array<unsigned, MAX_WARPS * WARP> ranks, places;

    Order() {
        const char* given = getenv("STUDY_THREAD_SEED");
        const int seed = given ? atoi(given) : 0;
        std::mt19937 draw(seed);
        auto arrange = [&](auto& order) {
            std::iota(order.begin(), order.end(), 0u);
            if (seed == 1)
                std::reverse(order.begin(), order.end());
            else if (seed)
                std::shuffle(order.begin(), order.end(), draw);
        };
        std::array<unsigned, MAX_WARPS> warps;
        std::array<unsigned, WARP> lanes;
        arrange(blocks), arrange(warps), arrange(lanes);
        for (unsigned place = 0; place < ranks.size(); ++place) {
            ranks[place] = warps[place / WARP] * WARP + lanes[place % WARP];
            places[ranks[place]] = place;
        }
    }
};

// The threads of a block that are ready, by their places: a bit each.
class Ready {
  public:
    void insert(unsigned place) {
        warps[place / WARP] |= 1u << place % WARP;
        first = std::min(first, place / WARP);
    }
    // The first place, which is taken out; -1 where there is none.
    int take() {
        while (first < MAX_WARPS && warps[first] == 0) ++first;
        if (first == MAX_WARPS) return -1;
        const int lane = std::countr_zero(warps[first]);
        warps[first] &= warps[first] - 1;
        return first * WARP + lane;
    }

  private:
    std::array<uint32_t, MAX_WARPS> warps{};
    unsigned first = MAX_WARPS;  // all warps before it have none
};

struct Block {
    uint3 index;
    struct Cluster& cluster;
    std::vector<Fiber> fibers;
    void* dynamic = nullptr;      // shared memory
    std::vector<char> statics{};  // the static part of it, while another block of the cluster runs
    Ready ready{};
    std::vector<Fiber*> yielded{};  // they go on when no other can
    std::deque<Meeting> barriers{};
    std::deque<Phases> phases{};
    std::vector<std::deque<Meeting>> warps{};

    void make_ready(std::vector<Fiber*>& waiting) {
        for (Fiber* fiber : waiting) ready.insert(fiber->place);
        waiting.clear();
    }
    bool ended() const {
        return std::all_of(fibers.begin(), fibers.end(), [](auto& fiber) { return fiber.ended; });
    }
};
Block* block;  // the one that runs

void Phases::end_if_complete() {
    if (missing || bytes) return;
    ++ended;
    missing = expected;
    owner.make_ready(waiting);
}

// Blocks that run together; most are alone.
struct Cluster {
    void** args;
    struct Shared& shared;
    const Order& order;
    std::deque<Block> blocks{};
    Fiber host{};
    std::string error{};
    unsigned rounds = 0, arrived = 0;  // of its barrier: how often all came, how many have since
    std::vector<Fiber*> waiting{};
    int token[2];  // one for each of two rounds that follow each other
};

Fiber& running() {
    return static_cast<Fiber&>(*self);
}

// --- words --------------------------------------------------------------------------------------

std::string text(uint3 i) {
    return format("(%u, %u, %u)", i.x, i.y, i.z);
}

std::string name(uint3 thread) {
    return "thread " + text(thread) + " of block " + text(blockIdx);
}

std::string place(Call call) {
    const char* slash = strrchr(call.file, '/');
    return format("%s:%d", slash ? slash + 1 : call.file, call.line);
}

// Rising numbers as "threads 0-30, 63".
std::string threads(const std::vector<unsigned>& ranks) {
    std::string result;
    for (size_t i = 0, j; i < ranks.size(); i = j) {
        for (j = i + 1; j < ranks.size() && ranks[j] == ranks[j - 1] + 1;) ++j;
        result += format(i ? ", %u" : "threads %u", ranks[i]);
        if (j - i > 1) result += format("-%u", ranks[j - 1]);
    }
    return result;
}

// "threads 0-30 wait in __syncwarp at sum.cu:12; threads 31 have ended"
std::string whereabouts(const Block& block) {
    std::map<std::string, std::vector<unsigned>> waiting;
    std::vector<unsigned> ended;
    for (const Fiber& fiber : block.fibers) {
        if (fiber.ended)
            ended.push_back(fiber.rank);
        else
            waiting[fiber.call.operation + (" at " + place(fiber.call))].push_back(fiber.rank);
    }
    std::string result;
    for (const auto& [where, ranks] : waiting)
        result += threads(ranks) + " wait in " + where + "; ";
    return ended.empty() ? result.substr(0, result.size() - 2)
                         : result + threads(ended) + " have ended";
}

// A parameter from its kind and size.
std::string parameter(const char* described) {
    const char* kind = *described == 'p'   ? "a pointer"
                       : *described == 'i' ? "an integer"
                       : *described == 'f' ? "a float"
                                           : "a struct";
    return format("%s of %d bytes", kind, described[1]);
}

// --- threads ------------------------------------------------------------------------------------

// Shared memory, full of NaN when a block begins.
struct Shared {
    size_t dynamic_bytes, static_bytes = 0;
    char* statics = nullptr;

    explicit Shared(size_t dynamic_bytes) : dynamic_bytes(dynamic_bytes) {
        auto look = [](dl_phdr_info* library, size_t, void* shared) -> int {
            return static_cast<Shared*>(shared)->find_statics(*library);
        };
        study_shared();  // the first use makes the segment
        dl_iterate_phdr(look, this);
        if constexpr (TSAN) __tsan_java_init(uintptr_t(statics), static_bytes);
    }

    // Whether `library` is this one. If so, the static part is its thread-local segment.
    bool find_statics(const dl_phdr_info& library) {
        char* segment = static_cast<char*>(library.dlpi_tls_data);
        const size_t anchor = static_cast<char*>(study_shared()) - segment;
        for (int i = 0; segment && i < library.dlpi_phnum; ++i) {
            const auto& header = library.dlpi_phdr[i];
            if (header.p_type == PT_TLS && anchor < header.p_memsz)
                statics = segment, static_bytes = (header.p_memsz + 7) / 8 * 8;
        }
        return statics;
    }

    // What a block finds when it begins.
    void create(Block& block) const {
        if (posix_memalign(&block.dynamic, 1024, dynamic_bytes)) abort();
        memset(block.dynamic, 0xFF, dynamic_bytes);
        block.statics.assign(static_bytes, char(0xFF));
    }

    // The static part holds what one block left there and from now on what the next one has.
    // Blocks are not ordered, so TSan must not take this for what the last one used.
    void exchange(Block& last, Block& next) const {
        Unseen unseen;
        last.statics.assign(statics, statics + static_bytes);
        if constexpr (TSAN) {  // only what it offers to Java can declare a place to be new
            __tsan_java_free(uintptr_t(statics), static_bytes);
            __tsan_java_alloc(uintptr_t(statics), static_bytes);
        }
        std::copy(next.statics.begin(), next.statics.end(), statics);
    }
};

// The first thread that is ready; the host where none is.
Fiber* next() {
    Cluster& cluster = block->cluster;
    for (bool again : {false, true}) {
        for (unsigned rank : cluster.order.blocks) {
            if (rank >= cluster.blocks.size()) continue;
            Block& from = cluster.blocks[rank];
            if (again) from.make_ready(from.yielded);
            const int place = from.ready.take();
            if (place >= 0) return &from.fibers[cluster.order.ranks[place]];
        }
    }
    return &cluster.host;
}

// Go on with the next thread.
void leave() {
    Fiber *from = &running(), *to = next();
    if (to == from) return;
    if (to->block && to->block != block) {
        block->cluster.shared.exchange(*block, *to->block);
        block = to->block;
        blockIdx = block->index;
    }
    self = to;
    threadIdx = to->index;
    switch_context(*from, *to, from->ended);
}

// What each fibre runs.
void run_thread() {
    arrive(running());
    study_call(block->cluster.args);
    running().ended = true;
    leave();
}

Meeting& find(std::deque<Meeting>& meetings, Call call, unsigned mask, size_t expected) {
    for (Meeting& meeting : meetings)
        if (meeting.mask == mask && meeting.operation == call.operation) return meeting;
    Meeting& meeting = meetings.emplace_back();
    meeting.operation = call.operation, meeting.mask = mask, meeting.expected = expected;
    return meeting;
}

// Wait until all have come; the last one calls `complete` and does not wait.
template <typename Complete>
void join(Meeting& meeting, Call call, bool orders, Complete complete) {
    int* token = &meeting.count[meeting.round % 2];
    if (orders) {
        for (Copy& copy : running().copies)  // still under way: what is there is undefined
            memset(copy.dst, 0xFF, copy.size);
        release(token);
    }
    meeting.waiting.push_back(&running());
    running().call = call;
    if (meeting.waiting.size() == meeting.expected) {
        complete();
        ++meeting.round;
        block->make_ready(meeting.waiting);
    }
    leave();
    if (orders) acquire(token), running().fenced = false;
}

// How far into a memory of `bytes` an address lies, if `size` bytes from there on do.
std::optional<size_t> offset(const void* address, size_t size, const void* memory, size_t bytes) {
    const size_t at = uintptr_t(address) - uintptr_t(memory);
    return at < bytes && size <= bytes - at ? std::optional(at) : std::nullopt;
}

Phases& phases(Call call, const unsigned long long* at, Block& owner = *block) {
    const uint64_t number = *at;
    if (number >= owner.phases.size())
        fail(call, "a barrier must have begun, and nothing else be stored in its place");
    return owner.phases[number];
}

}  // namespace

int barrier(Call call, bool predicate) {
    Unseen unseen;
    Meeting& meeting = find(block->barriers, call, 0, block->fibers.size());
    int& count = meeting.count[meeting.round % 2];
    count = predicate + (meeting.waiting.empty() ? 0 : count);
    join(meeting, call, true, [] {});
    return count;
}

void* meet(Call call, unsigned mask, const void* value, size_t size, void (*combine)(void* table)) {
    Unseen unseen;
    if (!(mask >> self->lane & 1))
        fail(call,
             format("lane %u must be in the mask of %s, 0x%08x", self->lane, call.operation, mask));
    Meeting& meeting =
        find(block->warps[self->warp], call, mask, std::popcount(mask & self->lanes));
    unsigned char* values = meeting.values[meeting.round % 2];
    if (meeting.waiting.empty()) memset(values, 0xFF, WARP * size);
    memcpy(values + self->lane * size, value, size);
    join(meeting, call, size == 0, [=] {
        if (combine) combine(values);
    });
    return values;
}

void cluster_arrive(Call call, bool orders) {
    Unseen unseen;
    Fiber& fiber = running();
    Cluster& cluster = block->cluster;
    if (fiber.arrivals > fiber.waits)
        fail(call,
             "a thread must wait at its cluster's barrier before it arrives again, or all may "
             "deadlock");
    if (orders) release(&cluster.token[cluster.rounds % 2]);
    ++fiber.arrivals;
    if (++cluster.arrived < cluster.blocks.size() * block->fibers.size()) return;
    ++cluster.rounds;
    cluster.arrived = 0;
    for (Fiber* other : cluster.waiting) other->block->ready.insert(other->place);
    cluster.waiting.clear();
}

void cluster_wait(Call call) {
    Unseen unseen;
    Fiber& fiber = running();
    Cluster& cluster = block->cluster;
    if (fiber.arrivals == fiber.waits)
        fail(call,
             "a thread must arrive at its cluster's barrier before it waits, or all may deadlock");
    fiber.call = call;
    if (cluster.rounds < fiber.arrivals)
        cluster.waiting.push_back(&fiber);
    else
        block->ready.insert(fiber.place);
    leave();
    acquire(&cluster.token[fiber.waits % 2]);
    ++fiber.waits;
}

void* remote(Call call, void* address, unsigned rank) {
    Unseen unseen;
    Cluster& cluster = block->cluster;
    const Shared& shared = cluster.shared;
    if (rank >= cluster.blocks.size())
        fail(call,
             format("block %u is out of bounds for a cluster of %zu", rank, cluster.blocks.size()));
    if (running().waits == 0)
        fail(call,
             format(
                 "block %u of the cluster perhaps takes no part yet: a thread must have waited at "
                 "its barrier",
                 rank));
    Block& peer = cluster.blocks[rank];
    if (peer.ended())
        fail(call, format("block %u of the cluster takes no part any more: it has ended", rank));
    if (&peer == block) return address;
    if (const auto at = offset(address, 1, block->dynamic, shared.dynamic_bytes))
        return static_cast<char*>(peer.dynamic) + *at;
    if (const auto at = offset(address, 1, shared.statics, shared.static_bytes))
        return peer.statics.data() + *at;
    if constexpr (ASAN) return address;  // where all blocks have one static memory
    fail(call, "an address in shared memory is needed");
}

void mbarrier_init(Call call, unsigned long long* at, unsigned arrivals) {
    Unseen unseen;
    const Shared& shared = block->cluster.shared;
    const bool in_shared = offset(at, sizeof *at, block->dynamic, shared.dynamic_bytes) ||
                           offset(at, sizeof *at, shared.statics, shared.static_bytes);
    if ((!ASAN && !in_shared) || uintptr_t(at) % sizeof *at)
        fail(call, "a barrier must be 8 bytes of shared memory, at a multiple of them");
    *at = block->phases.size();
    block->phases.push_back({*block, arrivals, arrivals});
}

void fence_mbarrier_init() {
    for (Phases& each : block->phases) each.fenced = true;
}

void mbarrier_arrive(Call call, unsigned long long* at, long long bytes) {
    Unseen unseen;
    Phases& found = phases(call, at);
    release(&found.token);
    --found.missing;
    found.bytes += bytes;
    found.end_if_complete();
}

void send(Call call, unsigned long long* at, unsigned rank, void* dst, std::vector<char> bytes) {
    Unseen unseen;
    const bool own = rank == OWN;
    auto* place = own ? at : static_cast<unsigned long long*>(remote(call, at, rank));
    Phases& found = phases(call, place, own ? *block : block->cluster.blocks[rank]);
    if (!found.fenced)
        fail(call, "fence_mbarrier_init must follow the beginning of a barrier that counts bytes");
    release(&found.token);
    found.bytes -= bytes.size();
    if (const auto to = offset(dst, 1, block->dynamic, block->cluster.shared.dynamic_bytes))
        dst = static_cast<char*>(found.owner.dynamic) + *to;  // the static part has one address
    found.sent.push_back({found.ended, dst, std::move(bytes)});
    found.end_if_complete();
}

void mbarrier_wait(Call call, unsigned long long* at, unsigned parity) {
    Unseen unseen;
    Phases& found = phases(call, at);
    running().call = call;
    while (found.ended % 2 == parity) {
        found.waiting.push_back(&running());
        leave();
    }
    std::erase_if(found.sent, [&](const Sent& each) {
        const bool here = each.phase < found.ended;
        if (here) memcpy(each.dst, each.bytes.data(), each.bytes.size());
        return here;
    });
    acquire(&found.token);
    running().fenced = false;
}

void fence() {
    static char token;
    acquire(&token);
    release(&token);
}

void yield() {
    Unseen unseen;
    block->yielded.push_back(&running());
    leave();
}

void fail(Call call, const std::string& reason) {
    block->cluster.error = name(threadIdx) + ", " + place(call) + ": " + reason;
    for (Block& each : block->cluster.blocks) each.ready = {}, each.yielded.clear();
    leave();
    abort();  // nobody comes back to it
}

void* dynamic_shared() {
    return block->dynamic;
}

std::string format(const char* pattern, ...) {
    char buffer[1024];
    va_list args;
    va_start(args, pattern);
    vsnprintf(buffer, sizeof buffer, pattern, args);
    va_end(args);
    return buffer;
}

// --- what the compiler's own checks call: the interface of UBSan ---------------------------------

struct SourceLine {
    const char* file;
    uint32_t line, column;
};
struct TypeName {
    uint16_t kind, info;
    char quoted[1];
};
struct OutOfBounds {
    SourceLine at;
    const TypeName *array, *index;
};
struct Misaligned {
    SourceLine at;
    const TypeName* type;
    unsigned char log_alignment, access;
};

extern "C" void __ubsan_handle_out_of_bounds_abort(const OutOfBounds* found, uintptr_t index) {
    fail({"", found->at.file, int(found->at.line)},
         format("index %d is out of bounds for %s", int(index), found->array->quoted));
}

extern "C" void __ubsan_handle_type_mismatch_v1_abort(const Misaligned* found, uintptr_t address) {
    const int alignment = 1 << found->log_alignment;
    fail({"", found->at.file, int(found->at.line)},
         format("an address of %s must be a multiple of %d bytes, got %d beyond one",
                found->type->quoted, alignment, int(address % alignment)));
}

namespace {

// --- blocks -------------------------------------------------------------------------------------

// A stack for each thread, above a page that none may touch.
class Stacks {
  public:
    explicit Stacks(size_t count) : bytes(count * STACK) {
        memory = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (memory == MAP_FAILED) abort();
        for (size_t i = 0; i < count; ++i) mprotect(memory + i * STACK, PAGE, PROT_NONE);
    }
    ~Stacks() { munmap(memory, bytes); }

    Context context(size_t i) const {
        return begin(memory + i * STACK + PAGE, STACK - PAGE, run_thread);
    }

  private:
    size_t bytes;
    char* memory;
};

void create_threads(const Stacks& stacks, size_t first_stack, Block& block) {
    const unsigned size = block.fibers.size();
    for (unsigned i = 0; i < size; ++i) {
        Fiber& fiber = block.fibers[i];
        static_cast<Context&>(fiber) = stacks.context(first_stack + i);
        fiber.block = &block;
        fiber.rank = i, fiber.warp = i / WARP, fiber.lane = i % WARP;
        fiber.lanes = ~0u >> (WARP - std::min(WARP, size - fiber.warp * WARP));
        fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        if constexpr (TSAN) __tsan_set_fiber_name(fiber.fiber, name(fiber.index).c_str());
        fiber.place = block.cluster.order.places[i];
        block.ready.insert(fiber.place);
    }
}

// To TSan, a fibre in the place of one destroyed is ordered after it, which would hide races
// between blocks: those of the last blocks live on.
void retire_threads(const Cluster& cluster) {
    static std::deque<void*> retired;
    for (const Block& block : cluster.blocks)
        for (const Fiber& fiber : block.fibers) retired.push_back(fiber.fiber);
    const size_t kept = std::max<size_t>(300, cluster.blocks[0].fibers.size());
    for (; retired.size() > kept; retired.pop_front()) __tsan_destroy_fiber(retired.front());
}

// Run the blocks from `blockIdx` on along x, as many as make a cluster. What went wrong, or "".
std::string run_cluster(unsigned size, const Order& order, const Stacks& stacks, Shared& shared,
                        void** args) {
    Cluster cluster{args, shared, order};
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z, first = blockIdx.x;
    if constexpr (TSAN) cluster.host.fiber = __tsan_get_current_fiber();
    for (unsigned rank = 0; rank < size; ++rank) {
        blockIdx.x = first + rank;
        cluster.blocks.push_back(Block{blockIdx, cluster, std::vector<Fiber>(threads)});
        Block& added = cluster.blocks.back();
        added.warps.resize((threads + WARP - 1) / WARP);
        shared.create(added);
        create_threads(stacks, rank * threads, added);
    }
    Block outside{{}, cluster, {}};
    block = &outside;
    self = &cluster.host;
    leave();
    for (Block& each : cluster.blocks) {
        if (cluster.error.empty() && !each.ended())
            cluster.error = "deadlock in block " + text(each.index) + ": " + whereabouts(each);
        free(each.dynamic);
    }
    if constexpr (TSAN) retire_threads(cluster);
    return cluster.error;
}

// --- grids --------------------------------------------------------------------------------------

// Why a driver would not launch this, or "".
std::string refusal(dim3 grid, dim3 block, unsigned cluster, const Shared& shared,
                    const std::string& given) {
    const std::string wanted = study_parameters();
    if (given.size() != wanted.size())
        return format("the kernel has %zu parameters, got %zu", wanted.size() / 2,
                      given.size() / 2);
    for (size_t i = 0; i < given.size(); i += 2)
        if (given.compare(i, 2, wanted, i, 2))
            return format("parameter %zu of the kernel is %s, got %s", i / 2 + 1,
                          parameter(&wanted[i]).c_str(), parameter(&given[i]).c_str());
    const size_t threads = size_t(block.x) * block.y * block.z;
    if (threads < 1 || threads > 1024 || block.z > 64)
        return format("a block must have 1 to 1024 threads and 64 along z, got (%u, %u, %u)",
                      block.x, block.y, block.z);
    if (grid.x - 1 >= 0x7fffffff || grid.y - 1 >= 0xffff || grid.z - 1 >= 0xffff)
        return format(
            "a grid must have 1 to 2147483647 blocks along x, 65535 along y and z, got "
            "(%u, %u, %u)",
            grid.x, grid.y, grid.z);
    if (cluster < 1 || cluster > MAX_BLOCKS || grid.x % cluster)
        return format("a grid must have clusters of 1 to %zu blocks along x, got %u blocks in %us",
                      MAX_BLOCKS, grid.x, cluster);
    constexpr size_t OURS = 64;  // at most: what find_statics looks for
    if (shared.static_bytes > OURS + 49152)
        return format("a block must have at most 49152 bytes of static shared memory, got %zu",
                      shared.static_bytes);
    if (shared.static_bytes + shared.dynamic_bytes > OURS + 232448)
        return format("a block must have at most 232448 bytes of shared memory, got %zu",
                      shared.static_bytes + shared.dynamic_bytes);
    return "";
}

std::string launch(dim3 grid, dim3 block, unsigned cluster, size_t dynamic_bytes, const char* given,
                   void** args) {
    Unseen unseen;
    if constexpr (ASAN)  // which takes all threads for one
        __asan_set_error_report_callback(
            [](const char*) { fprintf(stderr, "Thread T0 '%s'\n", name(threadIdx).c_str()); });
    Shared shared(dynamic_bytes);
    std::string error = refusal(grid, block, cluster, shared, given);
    gridDim = grid, blockDim = block;
    const Order order;
    std::optional<Stacks> stacks;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x && error.empty(); x += cluster) {
                blockIdx = {x, y, z};
                if (TSAN || !stacks)  // see `exchange`
                    stacks.emplace(size_t(cluster) * block.x * block.y * block.z);
                error = run_cluster(cluster, order, *stacks, shared, args);
            }
    return error;
}

}  // namespace
}  // namespace study

// Launch the kernel. args: pointers to its arguments; given: what they are, as `study_parameters`
// describes parameters. What went wrong, or nullptr; it stands until the next launch.
extern "C" [[gnu::visibility("default")]] const char* study_launch(const unsigned* grid,
                                                                   const unsigned* block,
                                                                   unsigned cluster,
                                                                   size_t dynamic_bytes,
                                                                   const char* given, void** args) {
    static std::string error;
    error = study::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, cluster,
                          dynamic_bytes, given, args);
    return error.empty() ? nullptr : error.c_str();
}
