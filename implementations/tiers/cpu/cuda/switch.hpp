// Stacks, switching between them, and what the sanitizers must be told of it.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

extern "C" {
// Push the registers that a call keeps, save the stack pointer in *from, and go on at `to`.
void study_switch(void** from, void* to);

// What the sanitizers offer to libraries that switch stacks; defined only in their builds.
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __asan_set_error_report_callback(void (*callback)(const char* report));
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_set_fiber_name(void* fiber, const char* name);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
void __tsan_java_init(unsigned long begin, unsigned long size);
void __tsan_java_alloc(unsigned long begin, unsigned long size);
void __tsan_java_free(unsigned long begin, unsigned long size);
}

namespace study {

#ifdef STUDY_SANITIZE_ADDRESS
constexpr bool ASAN = true;
#else
constexpr bool ASAN = false;
#endif
#ifdef STUDY_SANITIZE_THREAD
constexpr bool TSAN = true;
#else
constexpr bool TSAN = false;
#endif

// A stack and, while it does not run, where it stopped.
struct Context {
    void* pointer = nullptr;
    const void* bottom = nullptr;  // known once it has run
    size_t size = 0;
    void* fake_stack = nullptr;  // AddressSanitizer's
    void* fiber = nullptr;       // ThreadSanitizer's
};

inline Context* left;  // by the last switch

// First thing on a stack that was switched to.
inline void arrive(Context& here) {
    if constexpr (ASAN)
        __sanitizer_finish_switch_fiber(here.fake_stack, &left->bottom, &left->size);
}

// Leave `from`, for ever if it `ended`. The switch itself orders no memory.
inline void switch_context(Context& from, Context& to, bool ended) {
    left = &from;
    if constexpr (ASAN)
        __sanitizer_start_switch_fiber(ended ? nullptr : &from.fake_stack, to.bottom, to.size);
    if constexpr (TSAN) __tsan_switch_to_fiber(to.fiber, 1);
    study_switch(&from.pointer, to.pointer);
    arrive(from);
}

inline void acquire(void* address) {
    if constexpr (TSAN) __tsan_acquire(address);
}
inline void release(void* address) {
    if constexpr (TSAN) __tsan_release(address);
}

// While one lives, the running stack's accesses are not looked at.
struct Unseen {
    Unseen() {
        if constexpr (TSAN) __tsan_ignore_thread_begin();
    }
    ~Unseen() {
        if constexpr (TSAN) __tsan_ignore_thread_end();
    }
};

// `bottom` ... `bottom + size` as a context in which `entry` begins; it must not return.
inline Context begin(char* bottom, size_t size, void (*entry)()) {
    void** pointer = reinterpret_cast<void**>(bottom + size);
#if defined(__x86_64__)
    *--pointer = nullptr;  // in place of a return address
    *--pointer = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--pointer = nullptr;
#elif defined(__aarch64__)
    for (int i = 0; i < 20; ++i) *--pointer = nullptr;
    pointer[11] = reinterpret_cast<void*>(entry);  // x30, the return address
#else
    ucontext_t* saved = reinterpret_cast<ucontext_t*>(pointer) - 1;
    getcontext(saved);
    saved->uc_stack.ss_sp = bottom;
    saved->uc_stack.ss_size = size - sizeof(ucontext_t);
    makecontext(saved, entry, 0);
    pointer = reinterpret_cast<void**>(saved);
#endif
    Context context{pointer, bottom, size};
    if constexpr (TSAN) context.fiber = __tsan_create_fiber(0);
    return context;
}

}  // namespace study

#if defined(__x86_64__)
asm(R"(
    .text
    .globl study_switch
    .hidden study_switch
    .type study_switch, @function
study_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size study_switch, .-study_switch
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .globl study_switch
    .hidden study_switch
    .type study_switch, %function
study_switch:
    stp x19, x20, [sp, #-160]!
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp d14, d15, [sp, #144]
    ldp d12, d13, [sp, #128]
    ldp d10, d11, [sp, #112]
    ldp d8, d9, [sp, #96]
    ldp x29, x30, [sp, #80]
    ldp x27, x28, [sp, #64]
    ldp x25, x26, [sp, #48]
    ldp x23, x24, [sp, #32]
    ldp x21, x22, [sp, #16]
    ldp x19, x20, [sp], #160
    ret
    .size study_switch, .-study_switch
)");
#else
void study_switch(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}
#endif
