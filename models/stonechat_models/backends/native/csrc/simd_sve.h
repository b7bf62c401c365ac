// Arm SVE at a length of 256 bits, with i8mm and bfloat16: two registers per vector.  See simd.h for
// the interface.
//
// The compiler is told the length (-msve-vector-bits).  The code is wrong at any other one, so it is
// used only where the system reports this length.
#pragma once
#include <arm_sve.h>

#include "scalars.h"

namespace sc {

inline constexpr const char* kIsa = "sve256";
inline constexpr bool kSignedDot8 = false;
inline constexpr int kRowsPerKernel = 4;
inline constexpr int kQueryRows = 2;

typedef svfloat32_t f32x8_t __attribute__((arm_sve_vector_bits(256)));
typedef svint32_t s32x8_t __attribute__((arm_sve_vector_bits(256)));
typedef svuint8_t u8x32_t __attribute__((arm_sve_vector_bits(256)));

// Two members, because gcc keeps arrays of them in memory.
struct F16 {
  f32x8_t a, b;
};
struct I16 {
  s32x8_t a, b;
};
struct B64 {
  u8x32_t a, b;
};

inline svbool_t all() { return svptrue_b8(); }

inline F16 load(const float* p) { return {svld1_f32(all(), p), svld1_f32(all(), p + 8)}; }
inline void store(float* p, F16 x) {
  svst1_f32(all(), p, x.a);
  svst1_f32(all(), p + 8, x.b);
}
inline F16 set1(float x) { return {svdup_n_f32(x), svdup_n_f32(x)}; }
#define SC_PAIRWISE(name, op) \
  inline F16 name(F16 x, F16 y) { return {op(all(), x.a, y.a), op(all(), x.b, y.b)}; }
// As on other processors, y is the result if a number is not comparable.
inline svfloat32_t max_8(svbool_t pg, svfloat32_t x, svfloat32_t y) {
  return svsel_f32(svcmpgt_f32(pg, x, y), x, y);
}
inline svfloat32_t min_8(svbool_t pg, svfloat32_t x, svfloat32_t y) {
  return svsel_f32(svcmplt_f32(pg, x, y), x, y);
}
SC_PAIRWISE(add, svadd_f32_x)
SC_PAIRWISE(sub, svsub_f32_x)
SC_PAIRWISE(mul, svmul_f32_x)
SC_PAIRWISE(div, svdiv_f32_x)
SC_PAIRWISE(max, max_8)
SC_PAIRWISE(min, min_8)
#undef SC_PAIRWISE
inline F16 fma(F16 x, F16 y, F16 z) {
  return {svmla_f32_x(all(), z.a, x.a, y.a), svmla_f32_x(all(), z.b, x.b, y.b)};
}
inline F16 abs(F16 x) { return {svabs_f32_x(all(), x.a), svabs_f32_x(all(), x.b)}; }
inline F16 round(F16 x) { return {svrintn_f32_x(all(), x.a), svrintn_f32_x(all(), x.b)}; }
inline I16 to_int(F16 x) { return {svcvt_s32_f32_x(all(), x.a), svcvt_s32_f32_x(all(), x.b)}; }
inline F16 to_float(I16 x) { return {svcvt_f32_s32_x(all(), x.a), svcvt_f32_s32_x(all(), x.b)}; }

// Numbers of 16 bits fill the low halves of lanes of 32 bits.
inline svfloat32_t load_half_8(const half_t* p) {
  return svcvt_f32_f16_x(all(), svreinterpret_f16_u32(svld1uh_u32(all(), p)));
}
inline F16 load_half(const half_t* p) { return {load_half_8(p), load_half_8(p + 8)}; }
inline svfloat32_t load_bf16_8(const bf16_t* p) {
  return svreinterpret_f32_u32(svlsl_n_u32_x(all(), svld1uh_u32(all(), p), 16));
}
inline F16 load_bf16(const bf16_t* p) { return {load_bf16_8(p), load_bf16_8(p + 8)}; }
inline void store_half(half_t* p, F16 x) {
  svst1h_u32(all(), p, svreinterpret_u32_f16(svcvt_f16_f32_x(all(), x.a)));
  svst1h_u32(all(), p + 8, svreinterpret_u32_f16(svcvt_f16_f32_x(all(), x.b)));
}
inline void store_i8(int8_t* p, F16 x) {
  const I16 n = to_int(round(x));
  svst1b_s32(all(), p, n.a);
  svst1b_s32(all(), p + 8, n.b);
}

inline F16 scale_exp2(F16 x, F16 n) {
  const I16 e = to_int(n);
  return {svscale_f32_x(all(), x.a, e.a), svscale_f32_x(all(), x.b, e.b)};
}
inline F16 zero_below(F16 a, F16 x, float low) {
  const svfloat32_t zero = svdup_n_f32(0.0f);
  return {svsel_f32(svcmpge_n_f32(all(), x.a, low), a.a, zero),
          svsel_f32(svcmpge_n_f32(all(), x.b, low), a.b, zero)};
}
inline svfloat32_t keep_lanes_8(svfloat32_t x, int from, int to, float other) {
  const svint32_t lane = svindex_s32(0, 1);
  const svbool_t in = svcmplt_n_s32(svcmpge_n_s32(all(), lane, from), lane, to);
  return svsel_f32(in, x, svdup_n_f32(other));
}
inline F16 keep_lanes(F16 x, int from, int to, float other) {
  return {keep_lanes_8(x.a, from, to, other), keep_lanes_8(x.b, from - 8, to - 8, other)};
}

inline I16 set1_i32(int32_t x) { return {svdup_n_s32(x), svdup_n_s32(x)}; }
inline I16 add_product(I16 acc, I16 x, I16 y) {
  return {svmla_s32_x(all(), acc.a, x.a, y.a), svmla_s32_x(all(), acc.b, x.b, y.b)};
}
inline B64 load_bytes(const uint8_t* p) { return {svld1_u8(all(), p), svld1_u8(all(), p + 32)}; }
template <int Bits>
inline I16 dot4(I16 acc, B64 w, int32_t x) {
  const svint8_t b = svreinterpret_s8_s32(svdup_n_s32(x));
  return {svusdot_s32(acc.a, w.a, b), svusdot_s32(acc.b, w.b, b)};
}

template <int Bits>
inline svuint8_t shift_32(svuint8_t x) {
  const svuint16_t pairs = svreinterpret_u16_u8(x);
  if constexpr (Bits > 0) return svreinterpret_u8_u16(svlsl_n_u16_x(all(), pairs, Bits));
  else if constexpr (Bits < 0) return svreinterpret_u8_u16(svlsr_n_u16_x(all(), pairs, -Bits));
  else return x;
}
template <int Bits>
inline B64 shift(B64 x) {
  return {shift_32<Bits>(x.a), shift_32<Bits>(x.b)};
}
template <int Mask>
inline B64 masked(B64 x) {
  return {svand_n_u8_x(all(), x.a, uint8_t(Mask)), svand_n_u8_x(all(), x.b, uint8_t(Mask))};
}
template <int Mask>
inline B64 merged(B64 x, B64 y) {
  x = masked<Mask>(x), y = masked<~Mask>(y);
  return {svorr_u8_x(all(), x.a, y.a), svorr_u8_x(all(), x.b, y.b)};
}
inline B64 lookup(const uint8_t* table, B64 x) {
  const svuint8_t t = svld1rq_u8(all(), table);
  return {svtbl_u8(t, x.a), svtbl_u8(t, x.b)};
}
inline void store_bytes(uint8_t* p, B64 x) {
  svst1_u8(all(), p, x.a);
  svst1_u8(all(), p + 32, x.b);
}
inline B64 load_shorts(const uint8_t* p) {
  const uint16_t* shorts = reinterpret_cast<const uint16_t*>(p);
  return {svreinterpret_u8_u32(svld1uh_u32(all(), shorts)),
          svreinterpret_u8_u32(svld1uh_u32(all(), shorts + 8))};
}
template <int From, int Bits>
inline svfloat32_t field_8(svuint8_t a) {
  svuint32_t x = svreinterpret_u32_u8(a);
  if constexpr (From > 0) x = svlsr_n_u32_x(all(), x, From);
  if constexpr (From + Bits < 32) x = svand_n_u32_x(all(), x, (1u << Bits) - 1);
  return svcvt_f32_u32_x(all(), x);
}
template <int From, int Bits>
inline F16 field(B64 x) {
  return {field_8<From, Bits>(x.a), field_8<From, Bits>(x.b)};
}
inline svfloat32_t load_exponents_8(const uint8_t* p) {
  const svuint32_t bits = svlsl_n_u32_x(all(), svld1ub_u32(all(), p), 23);
  return svmul_n_f32_x(all(), svreinterpret_f32_u32(bits), 0.5f);
}
inline F16 load_exponents(const uint8_t* p) {
  return {load_exponents_8(p), load_exponents_8(p + 8)};
}

// Both fold halves, as the others do.
inline float reduce_add(F16 x) {
  svfloat32_t s = svadd_f32_x(all(), x.a, x.b);
  s = svadd_f32_x(all(), s, svext_f32(s, s, 4));
  s = svadd_f32_x(all(), s, svext_f32(s, s, 2));
  s = svadd_f32_x(all(), s, svext_f32(s, s, 1));
  return svlasta_f32(svpfalse_b(), s);  // lane 0
}
inline float reduce_max(F16 x) { return svmaxnmv_f32(all(), max_8(all(), x.a, x.b)); }

}  // namespace sc
