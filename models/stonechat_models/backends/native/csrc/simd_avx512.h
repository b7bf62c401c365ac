// AVX-512 and VNNI: one register per vector.  See simd.h for the interface.
#pragma once
#include <immintrin.h>

#include "scalars.h"

namespace sc {

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
inline I16 add_product(I16 acc, I16 a, I16 b) {
  return {_mm512_add_epi32(acc.v, _mm512_mullo_epi32(a.v, b.v))};
}
inline I16 to_int(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline B64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int Bits>
inline I16 dot4(I16 acc, B64 w, int32_t x) {
  return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(x))};
}

template <int Bits>
inline B64 shift(B64 a) {
  if constexpr (Bits > 0) return {_mm512_slli_epi16(a.v, Bits)};
  else if constexpr (Bits < 0) return {_mm512_srli_epi16(a.v, -Bits)};
  else return a;
}
template <int Mask>
inline B64 masked(B64 a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(char(Mask)))};
}
template <int Mask>
inline B64 merged(B64 a, B64 b) {
  return {_mm512_ternarylogic_epi32(_mm512_set1_epi8(char(Mask)), a.v, b.v, 0xca)};
}
inline B64 lookup(const uint8_t* table, B64 a) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), a.v)};
}
inline void store_bytes(uint8_t* p, B64 a) { _mm512_storeu_si512(p, a.v); }
inline B64 load_shorts(const uint8_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
template <int From, int Bits>
inline F16 field(B64 a) {
  __m512i x = a.v;
  if constexpr (From > 0) x = _mm512_srli_epi32(x, From);
  if constexpr (From + Bits < 32) x = _mm512_and_si512(x, _mm512_set1_epi32((1 << Bits) - 1));
  return {_mm512_cvtepi32_ps(x)};
}
inline F16 load_exponents(const uint8_t* p) {
  __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(e, 23)), _mm512_set1_ps(0.5f))};
}

// Both fold halves, as the others do.
inline float reduce_add(F16 a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(F16 a) { return _mm512_reduce_max_ps(a.v); }

}  // namespace sc
