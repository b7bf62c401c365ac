// Prints what this processor does at most, with as many threads as the first argument says: bytes
// read from memory a second, and int8 operations a second (a multiplication and an addition are
// two) of each of its instructions. The operands of the operations stay in registers, so no program
// that reads them from memory can be faster.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int kRegisters = 12;  // enough results in flight to hide the latency of each

volatile int sink;

constexpr size_t kReadBytes = size_t(512) << 20;  // of each thread: more than any cache holds

// Reads a thread's own array. Several words at a time keep more lines of memory in flight.
long read(const uint64_t* words) {
    uint64_t sums[32] = {};
    for (size_t i = 0; i < kReadBytes / 8; i += 32) {
        __builtin_prefetch(words + i + 512);
        for (int j = 0; j < 32; j++) sums[j] ^= words[i + j];
    }
    for (uint64_t sum : sums) sink = int(sum);
    return kReadBytes;
}

#if defined(__AMX_INT8__)
bool may_use_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

long amx(long rounds) {
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; i++) {
        reinterpret_cast<uint16_t*>(config + 16)[i] = 64;
        config[48 + i] = 16;
    }
    asm volatile("" : : "r"(config) : "memory");  // GCC sees only 8 of the bytes read
    _tile_loadconfig(config);
    alignas(64) static uint8_t operand[1024];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(6, operand, 64);
    _tile_loadd(7, operand, 64);
    for (long i = 0; i < rounds; i++) {
        _tile_dpbusd(0, 6, 7);
        _tile_dpbusd(1, 6, 7);
        _tile_dpbusd(2, 6, 7);
        _tile_dpbusd(3, 6, 7);
    }
    _tile_release();
    return rounds * 4 * 16 * 16 * 64 * 2;
}
#endif

// Applies a step to each of some registers, again and again. The step hides from the compiler that
// its operand stays the same.
template <class Register, class Step>
void repeat(long rounds, Register (&sums)[kRegisters], Step step) {
    for (long i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (auto& sum : sums) step(sum);
    }
}

#if defined(__AVX512VNNI__)
long vnni512(long rounds) {
    __m512i sums[kRegisters] = {}, operand = _mm512_set1_epi8(1);
    repeat(rounds, sums, [&](__m512i& sum) {
        asm volatile("" : "+v"(operand));
        sum = _mm512_dpbusd_epi32(sum, operand, operand);
    });
    alignas(64) int lanes[16];
    for (auto& sum : sums) _mm512_store_si512(lanes, sum), sink = lanes[0];
    return rounds * kRegisters * 64 * 2;
}
#endif

#if defined(__AVX2__)
long avx2(long rounds) {
    __m256i sums[kRegisters] = {}, operand = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    repeat(rounds, sums, [&](__m256i& sum) {
        asm volatile("" : "+x"(operand));
        __m256i pairs = _mm256_maddubs_epi16(operand, operand);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    });
    for (auto& sum : sums) sink = _mm256_extract_epi32(sum, 0);
    return rounds * kRegisters * 32 * 2;
}
#endif

#if defined(__ARM_NEON)
// `operations`: those of one step.
template <class Step>
long arm(long rounds, int operations, Step step) {
    int32x4_t sums[kRegisters] = {};
    int8x16_t operand = vdupq_n_s8(1);
    repeat(rounds, sums, [&](int32x4_t& sum) {
        asm volatile("" : "+w"(operand));
        sum = step(sum, operand);
    });
    for (auto& sum : sums) sink = vaddvq_s32(sum);
    return rounds * kRegisters * operations;
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
long i8mm(long rounds) {
    auto step = [](int32x4_t sum, int8x16_t x) { return vmmlaq_s32(sum, x, x); };
    return arm(rounds, 32 * 2, step);
}
#endif

#if defined(__ARM_FEATURE_DOTPROD)
long dotprod(long rounds) {
    auto step = [](int32x4_t sum, int8x16_t x) { return vdotq_s32(sum, x, x); };
    return arm(rounds, 16 * 2, step);
}
#endif

// The best of several passes, of about 20 ms each or one round, with all threads at the same time.
template <class Kernel>
void show(const char* name, Kernel kernel, int num_threads) {
    double best = 0;
    long rounds = 1000;
    for (int pass = 0; pass < 9; pass++) {
        std::atomic<int> waiting{num_threads};
        std::atomic<long> operations{0};
        std::chrono::steady_clock::time_point start;
        std::vector<std::thread> threads;
        for (int t = 0; t < num_threads; t++) {
            threads.emplace_back([&, t] {
                if (--waiting == 0) start = std::chrono::steady_clock::now();
                while (waiting > 0) std::this_thread::yield();
                operations += kernel(t, rounds);
            });
        }
        for (auto& thread : threads) thread.join();
        std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        if (pass > 0 && operations / seconds.count() > best) best = operations / seconds.count();
        if (seconds.count() < 0.02) rounds = long(rounds * 0.02 / seconds.count()) + 1;
    }
    std::printf("%s %.4g\n", name, best);
}

// An array in large pages, if the system has them, so that looking up addresses costs nothing.
uint64_t* new_array() {
    void* memory = std::aligned_alloc(size_t(2) << 20, kReadBytes);
    if (memory == nullptr) std::exit(1);
#if defined(__linux__)
    madvise(memory, kReadBytes, MADV_HUGEPAGE);
#endif
    std::memset(memory, 1, kReadBytes);
    return static_cast<uint64_t*>(memory);
}

void show_reading(int num_threads) {
    std::vector<uint64_t*> arrays;
    for (int t = 0; t < num_threads; t++) arrays.push_back(new_array());
    show("read", [&](int t, long) { return read(arrays[t]); }, num_threads);
    for (uint64_t* array : arrays) std::free(array);
}

}  // namespace

int main(int argc, char** argv) {
    int num_threads = argc > 1 ? std::atoi(argv[1]) : 1;
    show_reading(num_threads);
#if defined(__AMX_INT8__)
    if (may_use_tiles()) show("AMX", [](int, long rounds) { return amx(rounds); }, num_threads);
#endif
#if defined(__AVX512VNNI__)
    show("VNNI", [](int, long rounds) { return vnni512(rounds); }, num_threads);
#endif
#if defined(__AVX2__)
    show("AVX2", [](int, long rounds) { return avx2(rounds); }, num_threads);
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
    show("i8mm", [](int, long rounds) { return i8mm(rounds); }, num_threads);
#endif
#if defined(__ARM_FEATURE_DOTPROD)
    show("dotprod", [](int, long rounds) { return dotprod(rounds); }, num_threads);
#endif
}
