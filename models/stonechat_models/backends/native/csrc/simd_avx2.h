// AVX2, FMA and F16C: two registers per vector.  See simd.h for the interface.
//
// AVX-VNNI, where the target has it, multiplies unsigned by signed in one instruction.
#pragma once
#include <immintrin.h>

#include "scalars.h"

namespace sc {

#if defined(__AVXVNNI__)
inline constexpr const char* kIsa = "avx2-vnni";
inline constexpr bool kSignedDot8 = false;
#else
inline constexpr const char* kIsa = "avx2";
inline constexpr bool kSignedDot8 = true;
#endif
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
inline I16 add_product(I16 acc, I16 x, I16 y) {
  return {_mm256_add_epi32(acc.a, _mm256_mullo_epi32(x.a, y.a)),
          _mm256_add_epi32(acc.b, _mm256_mullo_epi32(x.b, y.b))};
}
inline I16 to_int(F16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline B64 load_bytes(const uint8_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
template <int Bits>
inline __m256i dot4_8(__m256i acc, __m256i w, __m256i x) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(acc, w, x);
#else
  // Sums of two products fit 16 bits: 63 * 127 * 2 with codes of up to 6 bits; 128 * 127 * 2 = 32512
  // with |q| as the unsigned factor and q's sign moved to x.
  if (Bits == 8) {
    __m256i q = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    x = _mm256_sign_epi8(x, q);
    w = _mm256_abs_epi8(q);
  }
  __m256i pairs = _mm256_maddubs_epi16(w, x);
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
template <int Bits>
inline I16 dot4(I16 acc, B64 w, int32_t x) {
  __m256i b = _mm256_set1_epi32(x);
  return {dot4_8<Bits>(acc.a, w.a, b), dot4_8<Bits>(acc.b, w.b, b)};
}

template <int Bits>
inline B64 shift(B64 x) {
  if constexpr (Bits > 0) return {_mm256_slli_epi16(x.a, Bits), _mm256_slli_epi16(x.b, Bits)};
  else if constexpr (Bits < 0) {
    return {_mm256_srli_epi16(x.a, -Bits), _mm256_srli_epi16(x.b, -Bits)};
  } else {
    return x;
  }
}
template <int Mask>
inline B64 masked(B64 x) {
  const __m256i m = _mm256_set1_epi8(char(Mask));
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
template <int Mask>
inline B64 merged(B64 x, B64 y) {
  const __m256i m = _mm256_set1_epi8(char(Mask));
  return {_mm256_or_si256(_mm256_and_si256(m, x.a), _mm256_andnot_si256(m, y.a)),
          _mm256_or_si256(_mm256_and_si256(m, x.b), _mm256_andnot_si256(m, y.b))};
}
inline B64 lookup(const uint8_t* table, B64 x) {
  const __m256i t = _mm256_broadcastsi128_si256(load_128(table));
  return {_mm256_shuffle_epi8(t, x.a), _mm256_shuffle_epi8(t, x.b)};
}
inline void store_bytes(uint8_t* p, B64 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, x.b);
}
inline B64 load_shorts(const uint8_t* p) {
  return {_mm256_cvtepu16_epi32(load_128(p)), _mm256_cvtepu16_epi32(load_128(p + 16))};
}
template <int From, int Bits>
inline __m256 field_8(__m256i x) {
  if constexpr (From > 0) x = _mm256_srli_epi32(x, From);
  if constexpr (From + Bits < 32) x = _mm256_and_si256(x, _mm256_set1_epi32((1 << Bits) - 1));
  return _mm256_cvtepi32_ps(x);
}
template <int From, int Bits>
inline F16 field(B64 x) {
  return {field_8<From, Bits>(x.a), field_8<From, Bits>(x.b)};
}
inline __m256 load_exponents_8(const uint8_t* p) {
  __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(e, 23)), _mm256_set1_ps(0.5f));
}
inline F16 load_exponents(const uint8_t* p) {
  return {load_exponents_8(p), load_exponents_8(p + 8)};
}

}  // namespace sc
