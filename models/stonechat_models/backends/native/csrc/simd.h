// Sixteen-lane vectors: F16 (float), I16 (int32), and the few operations the kernels need.  B64 is
// 64 bytes.
//
// There are five backends with the same interface, each in its own file.  The compiler's target
// selects one:
//   simd_avx512.h   AVX-512 with VNNI: one register per vector
//   simd_avx2.h     AVX2, FMA, F16C: two registers per vector; AVX-VNNI where the target has it
//   simd_sve.h      64-bit Arm with SVE of 256 bits, i8mm and bfloat16: two registers
//   simd_neon.h     64-bit Arm: four registers; dotprod and i8mm where the target has them
//   simd_plain.h    plain C++: arrays, left to the compiler
//
// dot4<Bits>(acc, w, x): lane i of acc += w[4i..4i+3] . x[0..3], exact.  w holds unsigned numbers
// of Bits bits (8-bit weights are stored as q + 128).  x is int8 in [-127, 127].  If kSignedDot8,
// the 8-bit product uses q itself; else it uses q + 128, and the caller starts from -128 * sum(x).
//
// add_product(acc, a, b): acc + a * b.  to_int(a): a holds integers.
//
// For codes and their scales:
//   shift<Bits>(b)         pairs of bytes, shifted left, or right if Bits < 0; bits of the other
//                          byte of a pair come in
//   masked<Mask>(b)        b & Mask in each byte
//   merged<Mask>(b, c)     (b & Mask) | (c & ~Mask) in each byte
//   lookup(table, b)       table[byte] for bytes below 16
//   load_shorts(p)         16 numbers of 16 bits as numbers of 32 bits
//   field<From, Bits>(b)   bits From.. of each number of 32 bits, as a float; Bits < 32
//   load_exponents(p)      2^(e - 128) for 16 bytes e, and 0 for e = 0
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define SC_AVX512 1
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SC_AVX2 1
#include "simd_avx2.h"
#elif defined(__ARM_FEATURE_SVE_BITS) && __ARM_FEATURE_SVE_BITS == 256 && \
    defined(__ARM_FEATURE_SVE_MATMUL_INT8) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define SC_SVE 1
#include "simd_sve.h"
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define SC_NEON 1
#include "simd_neon.h"
#else
#include "simd_plain.h"
#endif

namespace sc {

#if !SC_AVX512 && !SC_SVE && !SC_NEON
// Adds the lanes by folding halves, always in this order.
inline float reduce_add(F16 a) {
  float t[16];
  store(t, a);
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; ++i) t[i] += t[i + w];
  return t[0];
}
inline float reduce_max(F16 a) {
  float t[16];
  store(t, a);
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; ++i) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
  return t[0];
}
#endif

// exp(x) within 2 ulp for x in [-87, 88]; below: exactly 0; above: as at 88.
inline F16 exp(F16 x) {
  F16 c = min(max(x, set1(-87.0f)), set1(88.0f));
  F16 n = round(mul(c, set1(1.44269504f)));
  F16 r = fma(n, set1(-0.693359375f), c);  // ln 2 in two parts
  r = fma(n, set1(2.12194440e-4f), r);
  F16 p = set1(1.9875691e-4f);
  p = fma(p, r, set1(1.3981999e-3f));
  p = fma(p, r, set1(8.3334519e-3f));
  p = fma(p, r, set1(4.1665796e-2f));
  p = fma(p, r, set1(1.6666665e-1f));
  p = fma(p, r, set1(5.0000001e-1f));
  p = fma(mul(p, r), r, add(r, set1(1.0f)));
  return zero_below(scale_exp2(p, n), x, -87.0f);
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

// Prefetches into the L2 cache what is needed in a few thousand cycles.  Any address is allowed.
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

inline float half_value(half_t h) {
  half_t t[16] = {h};
  float f[16];
  store(f, load_half(t));
  return f[0];
}
inline half_t to_half(float x) {
  half_t t[16];
  store_half(t, set1(x));
  return t[0];
}

}  // namespace sc
