// Prints how many int8 operations a second (a multiplication and an addition are two) each
// instruction of this processor reaches, with as many threads as the first argument says. The
// operands stay in registers, so no program that reads memory can be faster.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
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

#if defined(__AVX512VNNI__)
long vnni512(long rounds) {
    __m512i sums[kRegisters] = {}, operand = _mm512_set1_epi8(1);
    for (long i = 0; i < rounds; i++) {
        for (auto& sum : sums) {
            sum = _mm512_dpbusd_epi32(sum, operand, operand);
            asm volatile("" : "+v"(sum));
        }
    }
    alignas(64) int lanes[16];
    for (auto& sum : sums) _mm512_store_si512(lanes, sum), sink = lanes[0];
    return rounds * kRegisters * 64 * 2;
}
#endif

#if defined(__AVX2__)
long avx2(long rounds) {
    __m256i sums[kRegisters] = {}, operand = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    for (long i = 0; i < rounds; i++) {
        for (auto& sum : sums) {
            __m256i pairs = _mm256_maddubs_epi16(operand, operand);
            asm volatile("" : "+x"(pairs));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    for (auto& sum : sums) sink = _mm256_extract_epi32(sum, 0);
    return rounds * kRegisters * 32 * 2;
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
long i8mm(long rounds) {
    int32x4_t sums[kRegisters] = {};
    int8x16_t operand = vdupq_n_s8(1);
    for (long i = 0; i < rounds; i++) {
        for (auto& sum : sums) {
            sum = vmmlaq_s32(sum, operand, operand);
            asm volatile("" : "+w"(sum));
        }
    }
    for (auto& sum : sums) sink = vaddvq_s32(sum);
    return rounds * kRegisters * 32 * 2;
}
#endif

#if defined(__ARM_FEATURE_DOTPROD)
long dotprod(long rounds) {
    int32x4_t sums[kRegisters] = {};
    int8x16_t operand = vdupq_n_s8(1);
    for (long i = 0; i < rounds; i++) {
        for (auto& sum : sums) {
            sum = vdotq_s32(sum, operand, operand);
            asm volatile("" : "+w"(sum));
        }
    }
    for (auto& sum : sums) sink = vaddvq_s32(sum);
    return rounds * kRegisters * 16 * 2;
}
#endif

// The best of several passes of about 20 ms, all threads at the same time.
void show(const char* name, long (*kernel)(long), int num_threads) {
    double best = 0;
    long rounds = 1000;
    for (int pass = 0; pass < 9; pass++) {
        std::atomic<int> waiting{num_threads};
        std::atomic<long> operations{0};
        std::chrono::steady_clock::time_point start;
        std::vector<std::thread> threads;
        for (int t = 0; t < num_threads; t++) {
            threads.emplace_back([&] {
                if (--waiting == 0) start = std::chrono::steady_clock::now();
                while (waiting > 0) std::this_thread::yield();
                operations += kernel(rounds);
            });
        }
        for (auto& thread : threads) thread.join();
        std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        if (pass > 0 && operations / seconds.count() > best) best = operations / seconds.count();
        if (seconds.count() < 0.02) rounds = long(rounds * 0.02 / seconds.count()) + 1;
    }
    std::printf("%s %.4g\n", name, best);
}

}  // namespace

int main(int argc, char** argv) {
    [[maybe_unused]] int num_threads = argc > 1 ? std::atoi(argv[1]) : 1;
#if defined(__AMX_INT8__)
    if (may_use_tiles()) show("AMX", amx, num_threads);
#endif
#if defined(__AVX512VNNI__)
    show("VNNI", vnni512, num_threads);
#endif
#if defined(__AVX2__)
    show("AVX2", avx2, num_threads);
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
    show("i8mm", i8mm, num_threads);
#endif
#if defined(__ARM_FEATURE_DOTPROD)
    show("dotprod", dotprod, num_threads);
#endif
}
