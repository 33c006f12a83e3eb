// Runs one launch under a sanitizer: sanitized LIBRARY FILE. The file, written by cuda_cpp.py,
// holds the launch and the memory that its arguments point to, which is replaced by what the kernel
// left.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "switch.hpp"

namespace {

FILE* file;

void check(bool ok, const char* what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    if constexpr (study::TSAN) __tsan_ignore_thread_end();  // or it complains of `unseen`
    exit(1);
}

uint64_t number() {
    uint64_t result;
    check(fread(&result, sizeof result, 1, file) == 1, "the file of arguments is too short");
    return result;
}

// A heap block of its own, so that what lies outside it is known; as misaligned as the original.
struct Memory {
    size_t bytes = number(), shift = number();
    char* address;

    Memory() {
        void* block;
        check(posix_memalign(&block, 64, shift + bytes) == 0, "out of memory");
        address = static_cast<char*>(block) + shift;
    }
};

}  // namespace

int main(int, char** argv) {
    study::Unseen unseen;
    void* library = dlopen(argv[1], RTLD_NOW);
    check(library, library ? "" : dlerror());
    auto launch =
        reinterpret_cast<const char* (*)(const unsigned*, const unsigned*, unsigned, size_t,
                                         const char*, void**)>(dlsym(library, "study_launch"));
    file = fopen(argv[2], "r+b");
    check(file, "cannot open the file of arguments");

    unsigned grid[3], block[3];
    for (unsigned& n : grid) n = number();
    for (unsigned& n : block) n = number();
    const unsigned cluster = number();
    const size_t dynamic_bytes = number();
    std::vector<Memory> memories(number());
    std::vector<char*> pointers(number());
    std::vector<void*> args(pointers.size());
    std::string given;
    for (size_t i = 0; i < args.size(); ++i) {
        const Memory& memory = memories[number()];
        pointers[i] = memory.address + number();
        const char kind = number(), size = number();
        given += {kind, size};
        args[i] = kind == 'p' ? static_cast<void*>(&pointers[i]) : pointers[i];
    }
    std::vector<std::pair<char**, char*>> addresses(number());  // in memory, and what they are here
    for (auto& [place, address] : addresses) {
        char* const table = memories[number()].address;
        place = reinterpret_cast<char**>(table + number());
        const Memory& memory = memories[number()];
        address = memory.address + number();
    }
    const long contents = ftell(file);
    for (const Memory& memory : memories)
        check(fread(memory.address, 1, memory.bytes, file) == memory.bytes, "too short");

    for (auto& [place, address] : addresses) std::swap(*place, address);
    const char* error = launch(grid, block, cluster, dynamic_bytes, given.c_str(), args.data());
    check(!error, error);
    for (auto& [place, address] : addresses) std::swap(*place, address);

    fseek(file, contents, SEEK_SET);
    for (const Memory& memory : memories) fwrite(memory.address, 1, memory.bytes, file);
    check(fclose(file) == 0, "cannot write the results");
}
