// Arm NEON (64 bit): four registers per vector.  See simd.h for the interface.
//
// Every ARMv8 processor has the base.  Two extensions make the products shorter:
//   dotprod  sdot multiplies signed by signed: 4 bits fit as they are, 8 bits as q
//   i8mm     usdot multiplies unsigned by signed: all codes as they are
#pragma once
#include <arm_neon.h>

#include "scalars.h"

namespace sc {

#if defined(__ARM_FEATURE_MATMUL_INT8)
inline constexpr const char* kIsa = "neon-i8mm";
inline constexpr bool kSignedDot8 = false;
#elif defined(__ARM_FEATURE_DOTPROD)
inline constexpr const char* kIsa = "neon-dotprod";
inline constexpr bool kSignedDot8 = true;
#else
inline constexpr const char* kIsa = "neon";
inline constexpr bool kSignedDot8 = true;
#endif
inline constexpr int kRowsPerKernel = 2;
inline constexpr int kQueryRows = 2;

struct F16 {
  float32x4_t v[4];
};
struct I16 {
  int32x4_t v[4];
};
struct B64 {
  uint8x16_t v[4];
};

#define SC_QUARTERS(type, expr)                \
  type r;                                      \
  for (int i = 0; i < 4; ++i) r.v[i] = (expr); \
  return r
inline F16 load(const float* p) { SC_QUARTERS(F16, vld1q_f32(p + 4 * i)); }
inline void store(float* p, F16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline F16 set1(float x) { SC_QUARTERS(F16, vdupq_n_f32(x)); }
inline F16 add(F16 a, F16 b) { SC_QUARTERS(F16, vaddq_f32(a.v[i], b.v[i])); }
inline F16 sub(F16 a, F16 b) { SC_QUARTERS(F16, vsubq_f32(a.v[i], b.v[i])); }
inline F16 mul(F16 a, F16 b) { SC_QUARTERS(F16, vmulq_f32(a.v[i], b.v[i])); }
inline F16 div(F16 a, F16 b) { SC_QUARTERS(F16, vdivq_f32(a.v[i], b.v[i])); }
inline F16 fma(F16 a, F16 b, F16 c) { SC_QUARTERS(F16, vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
// As on other processors, b is the result if a number is not comparable.
inline float32x4_t max_4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float32x4_t min_4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F16 max(F16 a, F16 b) { SC_QUARTERS(F16, max_4(a.v[i], b.v[i])); }
inline F16 min(F16 a, F16 b) { SC_QUARTERS(F16, min_4(a.v[i], b.v[i])); }
inline F16 abs(F16 a) { SC_QUARTERS(F16, vabsq_f32(a.v[i])); }
inline F16 round(F16 a) { SC_QUARTERS(F16, vrndnq_f32(a.v[i])); }
inline F16 load_half(const half_t* p) {
  SC_QUARTERS(F16, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
inline F16 load_bf16(const bf16_t* p) {
  SC_QUARTERS(F16, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)));
}
inline void store_half(half_t* p, F16 a) {
  for (int i = 0; i < 4; ++i) {
    vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
  }
}
inline void store_i8(int8_t* p, F16 a) {  // rounds to nearest even
  int16x4_t h[4];
  for (int i = 0; i < 4; ++i) h[i] = vqmovn_s32(vcvtnq_s32_f32(a.v[i]));
  vst1_s8(p, vqmovn_s16(vcombine_s16(h[0], h[1])));
  vst1_s8(p + 8, vqmovn_s16(vcombine_s16(h[2], h[3])));
}
inline float32x4_t scale_exp2_4(float32x4_t a, float32x4_t n) {
  int32x4_t e = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
  return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(e, 23)));
}
inline F16 scale_exp2(F16 a, F16 n) { SC_QUARTERS(F16, scale_exp2_4(a.v[i], n.v[i])); }
inline float32x4_t select_4(uint32x4_t mask, float32x4_t a, float other) {
  return vbslq_f32(mask, a, vdupq_n_f32(other));
}
inline F16 zero_below(F16 a, F16 x, float low) {
  SC_QUARTERS(F16, select_4(vcgeq_f32(x.v[i], vdupq_n_f32(low)), a.v[i], 0.0f));
}
inline uint32x4_t lanes_4(int first, int from, int to) {  // lanes first..first + 3 in [from, to)
  constexpr int32_t kLanes[4] = {0, 1, 2, 3};
  const int32x4_t lane = vaddq_s32(vld1q_s32(kLanes), vdupq_n_s32(first));
  return vandq_u32(vcgeq_s32(lane, vdupq_n_s32(from)), vcltq_s32(lane, vdupq_n_s32(to)));
}
inline F16 keep_lanes(F16 a, int from, int to, float other) {
  SC_QUARTERS(F16, select_4(lanes_4(4 * i, from, to), a.v[i], other));
}
inline I16 set1_i32(int32_t x) { SC_QUARTERS(I16, vdupq_n_s32(x)); }
inline I16 add_product(I16 acc, I16 a, I16 b) {
  SC_QUARTERS(I16, vmlaq_s32(acc.v[i], a.v[i], b.v[i]));
}
inline I16 to_int(F16 a) { SC_QUARTERS(I16, vcvtnq_s32_f32(a.v[i])); }
inline F16 to_float(I16 a) { SC_QUARTERS(F16, vcvtq_f32_s32(a.v[i])); }
inline B64 load_bytes(const uint8_t* p) { SC_QUARTERS(B64, vld1q_u8(p + 16 * i)); }

template <int Bits>
inline int32x4_t dot4_4(int32x4_t acc, uint8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return vusdotq_s32(acc, w, x);
#else
  const int8x16_t q = vreinterpretq_s8_u8(Bits == 8 ? veorq_u8(w, vdupq_n_u8(128)) : w);
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, q, x);
#else
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(q), vget_low_s8(x)));
  const int32x4_t high = vpaddlq_s16(vmull_high_s8(q, x));
  return vaddq_s32(acc, vpaddq_s32(low, high));
#endif
#endif
}
template <int Bits>
inline I16 dot4(I16 acc, B64 w, int32_t x) {
  const int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(x));
  SC_QUARTERS(I16, (dot4_4<Bits>(acc.v[i], w.v[i], b)));
}

template <int Bits>
inline uint8x16_t shift_16(uint8x16_t a) {
  const uint16x8_t pairs = vreinterpretq_u16_u8(a);
  if constexpr (Bits > 0) return vreinterpretq_u8_u16(vshlq_n_u16(pairs, Bits));
  else if constexpr (Bits < 0) return vreinterpretq_u8_u16(vshrq_n_u16(pairs, -Bits));
  else return a;
}
template <int Bits>
inline B64 shift(B64 a) {
  SC_QUARTERS(B64, shift_16<Bits>(a.v[i]));
}
template <int Mask>
inline B64 masked(B64 a) {
  SC_QUARTERS(B64, vandq_u8(a.v[i], vdupq_n_u8(uint8_t(Mask))));
}
template <int Mask>
inline B64 merged(B64 a, B64 b) {
  SC_QUARTERS(B64, vbslq_u8(vdupq_n_u8(uint8_t(Mask)), a.v[i], b.v[i]));
}
inline B64 lookup(const uint8_t* table, B64 a) {
  const uint8x16_t t = vld1q_u8(table);
  SC_QUARTERS(B64, vqtbl1q_u8(t, a.v[i]));
}
inline void store_bytes(uint8_t* p, B64 a) {
  for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, a.v[i]);
}
inline uint16x4_t load_64(const uint8_t* p) { return vreinterpret_u16_u8(vld1_u8(p)); }
inline B64 load_shorts(const uint8_t* p) {
  SC_QUARTERS(B64, vreinterpretq_u8_u32(vmovl_u16(load_64(p + 8 * i))));
}
template <int From, int Bits>
inline float32x4_t field_4(uint8x16_t a) {
  uint32x4_t x = vreinterpretq_u32_u8(a);
  if constexpr (From > 0) x = vshrq_n_u32(x, From);
  if constexpr (From + Bits < 32) x = vandq_u32(x, vdupq_n_u32((1u << Bits) - 1));
  return vcvtq_f32_u32(x);
}
template <int From, int Bits>
inline F16 field(B64 a) {
  SC_QUARTERS(F16, (field_4<From, Bits>(a.v[i])));
}
inline F16 load_exponents(const uint8_t* p) {
  const uint8x16_t e = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(e)), high = vmovl_high_u8(e);
  const uint32x4_t bits[4] = {vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low),
                              vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)};
  SC_QUARTERS(F16, vmulq_n_f32(vreinterpretq_f32_u32(vshlq_n_u32(bits[i], 23)), 0.5f));
}
#undef SC_QUARTERS

// Both fold halves, as the others do.
inline float reduce_add(F16 a) {
  const float32x4_t s = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t t = vadd_f32(vget_low_f32(s), vget_high_f32(s));
  return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
inline float reduce_max(F16 a) {
  const float32x4_t s = max_4(max_4(a.v[0], a.v[2]), max_4(a.v[1], a.v[3]));
  return vmaxnmvq_f32(s);
}

}  // namespace sc
