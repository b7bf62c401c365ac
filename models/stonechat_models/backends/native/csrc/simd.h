// Sixteen-lane vectors: F16 (float), I16 (int32), and the few operations the kernels need.  B64 is
// 64 bytes.
//
// There are three backends with the same interface.  The compiler's target selects one:
//   AVX-512 with VNNI   one register per vector
//   AVX2, FMA, F16C     two registers per vector
//   plain C++           arrays, left to the compiler
//
// dot4<Bits>(acc, w, x): lane i of acc += w[4i..4i+3] . x[0..3], exact.  w holds unsigned numbers
// of Bits bits (8-bit weights are stored as q + 128).  x is int8 in [-127, 127].  If kSignedDot8,
// the 8-bit product uses q itself; else it uses q + 128, and the caller starts from -128 * sum(x).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define SC_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SC_AVX2 1
#include <immintrin.h>
#endif

namespace sc {

using half_t = uint16_t;  // IEEE binary16 bits
using bf16_t = uint16_t;  // bfloat16 bits

inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline int32_t load_i32(const void* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
inline void store_i32(void* p, int32_t v) { std::memcpy(p, &v, 4); }

inline float bf16_to_float(bf16_t h) { return float_of(uint32_t(h) << 16); }
inline bf16_t float_to_bf16(float x) {  // to nearest even
  uint32_t u = bits_of(x);
  return bf16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#if SC_AVX512
inline constexpr const char* kIsa = "avx512-vnni";
inline constexpr bool kSignedDot8 = false;
inline constexpr int kRowsPerKernel = 8;  // rows of a matrix product held in registers
inline constexpr int kQueryRows = 6;      // rows of an attention tile held in registers

struct F16 {
  __m512 v;
};
struct I16 {
  __m512i v;
};
struct B64 {
  __m512i v;
};

inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
inline F16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F16 add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 div(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 abs(F16 a) { return {_mm512_abs_ps(a.v)}; }
inline F16 round(F16 a) { return {_mm512_roundscale_ps(a.v, 8)}; }
inline F16 load_half(const half_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F16 load_bf16(const bf16_t* p) {
  __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(u, 16))};
}
inline void store_half(half_t* p, F16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, 8));
}
inline void store_i8(int8_t* p, F16 a) {  // rounds to nearest even
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline F16 scale_exp2(F16 a, F16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // a * 2^n
inline F16 zero_below(F16 a, F16 x, float low) {  // a where x >= low, else 0
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(low), _CMP_GE_OQ), a.v)};
}
inline F16 keep_lanes(F16 a, int from, int to, float other) {  // other outside [from, to)
  __mmask16 m = __mmask16(((1u << to) - 1) & ~((1u << from) - 1));
  return {_mm512_mask_mov_ps(_mm512_set1_ps(other), m, a.v)};
}
inline I16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline B64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline B64 low_nibbles(B64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline B64 high_nibbles(B64 a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
template <int Bits>
inline I16 dot4(I16 acc, B64 w, int32_t x) {
  return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(x))};
}

#elif SC_AVX2
inline constexpr const char* kIsa = "avx2";
inline constexpr bool kSignedDot8 = true;
inline constexpr int kRowsPerKernel = 2;
inline constexpr int kQueryRows = 2;

struct F16 {
  __m256 a, b;
};
struct I16 {
  __m256i a, b;
};
struct B64 {
  __m256i a, b;
};

inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline F16 set1(float x) {
  __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
#define SC_PAIRWISE(name, op) \
  inline F16 name(F16 x, F16 y) { return {op(x.a, y.a), op(x.b, y.b)}; }
SC_PAIRWISE(add, _mm256_add_ps)
SC_PAIRWISE(sub, _mm256_sub_ps)
SC_PAIRWISE(mul, _mm256_mul_ps)
SC_PAIRWISE(div, _mm256_div_ps)
SC_PAIRWISE(max, _mm256_max_ps)
SC_PAIRWISE(min, _mm256_min_ps)
#undef SC_PAIRWISE
inline F16 fma(F16 x, F16 y, F16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline F16 abs(F16 x) {
  __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
inline F16 round(F16 x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
inline __m128i load_128(const void* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline F16 load_half(const half_t* p) {
  return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
inline __m256 widen_bf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline F16 load_bf16(const bf16_t* p) {
  return {widen_bf16(load_128(p)), widen_bf16(load_128(p + 8))};
}
inline void store_half(half_t* p, F16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, 0));
}
inline void store_i8(int8_t* p, F16 x) {
  __m256i i = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  i = _mm256_permute4x64_epi64(i, 0xd8);  // the 128-bit halves were packed separately
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
}
inline __m256 scale_exp2_8(__m256 a, __m256 n) {
  __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}
inline F16 scale_exp2(F16 x, F16 n) { return {scale_exp2_8(x.a, n.a), scale_exp2_8(x.b, n.b)}; }
inline F16 zero_below(F16 a, F16 x, float low) {
  __m256 l = _mm256_set1_ps(low);
  return {_mm256_and_ps(a.a, _mm256_cmp_ps(x.a, l, _CMP_GE_OQ)),
          _mm256_and_ps(a.b, _mm256_cmp_ps(x.b, l, _CMP_GE_OQ))};
}
inline __m256 keep_lanes_8(__m256 a, int from, int to, float other) {
  __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i in = _mm256_and_si256(_mm256_cmpgt_epi32(i, _mm256_set1_epi32(from - 1)),
                                _mm256_cmpgt_epi32(_mm256_set1_epi32(to), i));
  return _mm256_blendv_ps(_mm256_set1_ps(other), a, _mm256_castsi256_ps(in));
}
inline F16 keep_lanes(F16 x, int from, int to, float other) {
  return {keep_lanes_8(x.a, from, to, other), keep_lanes_8(x.b, from - 8, to - 8, other)};
}
inline I16 set1_i32(int32_t x) {
  __m256i v = _mm256_set1_epi32(x);
  return {v, v};
}
inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline B64 load_bytes(const uint8_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline B64 low_nibbles(B64 x) {
  __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
inline B64 high_nibbles(B64 x) {
  return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}
// Sums of two products fit 16 bits: 15 * 127 * 2 with 4-bit weights; 128 * 127 * 2 = 32512 with
// |q| as the unsigned factor and q's sign moved to x.
template <int Bits>
inline __m256i dot4_8(__m256i acc, __m256i w, __m256i x) {
  if (Bits == 8) {
    __m256i q = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    x = _mm256_sign_epi8(x, q);
    w = _mm256_abs_epi8(q);
  }
  __m256i pairs = _mm256_maddubs_epi16(w, x);
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
template <int Bits>
inline I16 dot4(I16 acc, B64 w, int32_t x) {
  __m256i b = _mm256_set1_epi32(x);
  return {dot4_8<Bits>(acc.a, w.a, b), dot4_8<Bits>(acc.b, w.b, b)};
}

#else
inline constexpr const char* kIsa = "generic";
inline constexpr bool kSignedDot8 = false;
inline constexpr int kRowsPerKernel = 1;
inline constexpr int kQueryRows = 1;

inline float half_to_float(half_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 1023;
  if (exp == 31) return float_of(sign | 0x7f800000 | (man << 13));
  if (exp == 0) {
    float x = float(man) * 0x1p-24f;
    return sign ? -x : x;
  }
  return float_of(sign | ((exp + 112) << 23) | (man << 13));
}
inline half_t float_to_half(float x) {  // to nearest even
  uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u >= 0x47800000) return half_t(sign | (u > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (u < 0x38800000) {  // subnormal: let the float adder round
    return half_t(sign | (bits_of(float_of(u) + 0.5f) - bits_of(0.5f)));
  }
  u += 0xfff + ((u >> 13) & 1);
  return half_t(sign | ((u - (112u << 23)) >> 13));
}

struct F16 {
  float v[16];
};
struct I16 {
  int32_t v[16];
};
struct B64 {
  uint8_t v[64];
};

#define SC_LANES(expr)                          \
  F16 r;                                        \
  for (int i = 0; i < 16; ++i) r.v[i] = (expr); \
  return r
inline F16 load(const float* p) { SC_LANES(p[i]); }
inline void store(float* p, F16 a) { std::memcpy(p, a.v, 64); }
inline F16 set1(float x) { SC_LANES(x); }
inline F16 add(F16 a, F16 b) { SC_LANES(a.v[i] + b.v[i]); }
inline F16 sub(F16 a, F16 b) { SC_LANES(a.v[i] - b.v[i]); }
inline F16 mul(F16 a, F16 b) { SC_LANES(a.v[i] * b.v[i]); }
inline F16 div(F16 a, F16 b) { SC_LANES(a.v[i] / b.v[i]); }
inline F16 fma(F16 a, F16 b, F16 c) { SC_LANES(a.v[i] * b.v[i] + c.v[i]); }
inline F16 max(F16 a, F16 b) { SC_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F16 min(F16 a, F16 b) { SC_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F16 abs(F16 a) { SC_LANES(std::fabs(a.v[i])); }
inline F16 round(F16 a) { SC_LANES(std::nearbyint(a.v[i])); }
inline F16 load_half(const half_t* p) { SC_LANES(half_to_float(p[i])); }
inline F16 load_bf16(const bf16_t* p) { SC_LANES(bf16_to_float(p[i])); }
inline void store_half(half_t* p, F16 a) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
}
inline void store_i8(int8_t* p, F16 a) {
  for (int i = 0; i < 16; ++i) p[i] = int8_t(std::lrint(a.v[i]));
}
inline F16 scale_exp2(F16 a, F16 n) {
  SC_LANES(a.v[i] * float_of(uint32_t(int32_t(n.v[i]) + 127) << 23));
}
inline F16 zero_below(F16 a, F16 x, float low) { SC_LANES(x.v[i] >= low ? a.v[i] : 0.0f); }
inline F16 keep_lanes(F16 a, int from, int to, float other) {
  SC_LANES(i >= from && i < to ? a.v[i] : other);
}
inline F16 to_float(I16 a) { SC_LANES(float(a.v[i])); }
#undef SC_LANES
inline I16 set1_i32(int32_t x) {
  I16 r;
  for (int32_t& v : r.v) v = x;
  return r;
}
inline B64 load_bytes(const uint8_t* p) {
  B64 r;
  std::memcpy(r.v, p, 64);
  return r;
}
inline B64 low_nibbles(B64 a) {
  for (uint8_t& v : a.v) v &= 15;
  return a;
}
inline B64 high_nibbles(B64 a) {
  for (uint8_t& v : a.v) v >>= 4;
  return a;
}
template <int Bits>
inline I16 dot4(I16 acc, B64 w, int32_t x) {
  int8_t b[4];
  std::memcpy(b, &x, 4);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) acc.v[i] += int32_t(w.v[4 * i + j]) * b[j];
  return acc;
}
#endif

// Adds the lanes by folding halves, always in this order.
inline float reduce_add(F16 a) {
#if SC_AVX512
  return _mm512_reduce_add_ps(a.v);
#else
  float t[16];
  store(t, a);
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; ++i) t[i] += t[i + w];
  return t[0];
#endif
}

inline float reduce_max(F16 a) {
#if SC_AVX512
  return _mm512_reduce_max_ps(a.v);
#else
  float t[16];
  store(t, a);
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; ++i) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
  return t[0];
#endif
}

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
