// Vector operations on bfloat16 numbers and sums, for the same instruction sets as simd.h.
//
//   dot2(acc, w, x)   lane i of acc += w[2i] x[0] + w[2i+1] x[1]; w and x hold bfloat16 numbers
//   store_bf16        rounds to nearest even
//   load_sums         int32 numbers as floats
#pragma once
#include "simd.h"

namespace sc {

#if SC_AVX512
inline F16 dot2(F16 acc, B64 w, int32_t x) {
#if defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(w.v),
                           reinterpret_cast<__m512bh>(_mm512_set1_epi32(x)))};
#else
  const __m512i high = _mm512_set1_epi32(int32_t(0xffff0000)), b = _mm512_set1_epi32(x);
  const __m512 w0 = _mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16));
  const __m512 w1 = _mm512_castsi512_ps(_mm512_and_si512(w.v, high));
  const __m512 x0 = _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
  const __m512 x1 = _mm512_castsi512_ps(_mm512_and_si512(b, high));
  return {_mm512_fmadd_ps(w1, x1, _mm512_fmadd_ps(w0, x0, acc.v))};
#endif
}
inline void store_bf16(bf16_t* p, F16 a) {
#if defined(__AVX512BF16__)
  __m256i h = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));
#else
  __m512i u = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __m256i h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16));
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
}
inline F16 load_sums(const void* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
inline void store_sums(void* p, I16 a) { _mm512_storeu_si512(p, a.v); }

#elif SC_AVX2
inline __m256 dot2_8(__m256 acc, __m256i w, __m256i x) {
  const __m256i high = _mm256_set1_epi32(int32_t(0xffff0000));
  acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(w, 16)),
                        _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), acc);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(w, high)),
                         _mm256_castsi256_ps(_mm256_and_si256(x, high)), acc);
}
inline F16 dot2(F16 acc, B64 w, int32_t x) {
  const __m256i b = _mm256_set1_epi32(x);
  return {dot2_8(acc.a, w.a, b), dot2_8(acc.b, w.b, b)};
}
inline __m256i rounded_bf16(__m256 a) {  // in the low halves of the lanes
  __m256i u = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  u = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_srli_epi32(u, 16);
}
inline void store_bf16(bf16_t* p, F16 x) {
  __m256i h = _mm256_packus_epi32(rounded_bf16(x.a), rounded_bf16(x.b));
  h = _mm256_permute4x64_epi64(h, 0xd8);  // the 128-bit halves were packed separately
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
}
inline F16 load_sums(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_cvtepi32_ps(_mm256_loadu_si256(q)), _mm256_cvtepi32_ps(_mm256_loadu_si256(q + 1))};
}
inline void store_sums(void* p, I16 x) {
  __m256i* q = static_cast<__m256i*>(p);
  _mm256_storeu_si256(q, x.a);
  _mm256_storeu_si256(q + 1, x.b);
}

#elif SC_SVE
inline F16 dot2(F16 acc, B64 w, int32_t x) {
  const svbfloat16_t b = svreinterpret_bf16_s32(svdup_n_s32(x));
  return {svbfdot_f32(acc.a, svreinterpret_bf16_u8(w.a), b),
          svbfdot_f32(acc.b, svreinterpret_bf16_u8(w.b), b)};
}
inline void store_bf16(bf16_t* p, F16 x) {
  svst1h_u32(all(), p, svreinterpret_u32_bf16(svcvt_bf16_f32_x(all(), x.a)));
  svst1h_u32(all(), p + 8, svreinterpret_u32_bf16(svcvt_bf16_f32_x(all(), x.b)));
}
inline F16 load_sums(const void* p) {
  const int32_t* q = static_cast<const int32_t*>(p);
  return to_float({svld1_s32(all(), q), svld1_s32(all(), q + 8)});
}
inline void store_sums(void* p, I16 x) {
  int32_t* q = static_cast<int32_t*>(p);
  svst1_s32(all(), q, x.a);
  svst1_s32(all(), q + 8, x.b);
}

#elif SC_NEON
inline float32x4_t dot2_4(float32x4_t acc, uint8x16_t w, float first, float second) {
  const uint32x4_t u = vreinterpretq_u32_u8(w), high = vdupq_n_u32(0xffff0000);
  acc = vfmaq_n_f32(acc, vreinterpretq_f32_u32(vshlq_n_u32(u, 16)), first);
  return vfmaq_n_f32(acc, vreinterpretq_f32_u32(vandq_u32(u, high)), second);
}
inline F16 dot2(F16 acc, B64 w, int32_t x) {
  const float first = float_of(uint32_t(x) << 16), second = float_of(uint32_t(x) & 0xffff0000);
  for (int i = 0; i < 4; ++i) acc.v[i] = dot2_4(acc.v[i], w.v[i], first, second);
  return acc;
}
inline void store_bf16(bf16_t* p, F16 a) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t u = vreinterpretq_u32_f32(a.v[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    vst1_u16(p + 4 * i, vaddhn_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))));
  }
}
inline F16 load_sums(const void* p) {
  const int32_t* q = static_cast<const int32_t*>(p);
  F16 r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvtq_f32_s32(vld1q_s32(q + 4 * i));
  return r;
}
inline void store_sums(void* p, I16 a) {
  for (int i = 0; i < 4; ++i) vst1q_s32(static_cast<int32_t*>(p) + 4 * i, a.v[i]);
}

#else  // through memory
inline F16 dot2(F16 acc, B64 w, int32_t x) {
  bf16_t pairs[32], b[2];
  std::memcpy(pairs, &w, 64);
  std::memcpy(b, &x, 4);
  float even[16], odd[16];
  for (int i = 0; i < 16; ++i) {
    even[i] = bf16_to_float(pairs[2 * i]);
    odd[i] = bf16_to_float(pairs[2 * i + 1]);
  }
  acc = fma(load(even), set1(bf16_to_float(b[0])), acc);
  return fma(load(odd), set1(bf16_to_float(b[1])), acc);
}
inline void store_bf16(bf16_t* p, F16 a) {
  float t[16];
  store(t, a);
  for (int i = 0; i < 16; ++i) p[i] = float_to_bf16(t[i]);
}
inline F16 load_sums(const void* p) {
  int32_t sums[16];
  float t[16];
  std::memcpy(sums, p, 64);
  for (int i = 0; i < 16; ++i) t[i] = float(sums[i]);
  return load(t);
}
inline void store_sums(void* p, I16 a) { std::memcpy(p, &a, 64); }
#endif

inline I16 dot(I16 acc, B64 w, int32_t x) { return dot4<8>(acc, w, x); }
inline F16 dot(F16 acc, B64 w, int32_t x) { return dot2(acc, w, x); }
inline void store_sums(void* p, F16 a) { store(static_cast<float*>(p), a); }

// 2^x within 4 ulp for x in [-126, 0], exactly 1 at 0; below: exactly 0.
inline F16 exp2(F16 x) {
  F16 c = max(x, set1(-126.0f));
  F16 n = round(c);
  F16 r = sub(c, n);
  F16 p = set1(1.3264730e-3f);
  p = fma(p, r, set1(9.6715139e-3f));
  p = fma(p, r, set1(5.5507336e-2f));
  p = fma(p, r, set1(2.4022242e-1f));
  p = fma(p, r, set1(6.9314700e-1f));
  p = fma(p, r, set1(1.0f));
  return zero_below(scale_exp2(p, n), x, -126.0f);
}

}  // namespace sc
