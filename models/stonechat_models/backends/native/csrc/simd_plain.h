// Plain C++: arrays, left to the compiler.  See simd.h for the interface.
#pragma once
#include <cmath>

#include "scalars.h"

namespace sc {

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
#define SC_LANES(expr)                          \
  I16 r;                                        \
  for (int i = 0; i < 16; ++i) r.v[i] = (expr); \
  return r
inline I16 add_product(I16 acc, I16 a, I16 b) { SC_LANES(acc.v[i] + a.v[i] * b.v[i]); }
inline I16 to_int(F16 a) { SC_LANES(int32_t(a.v[i])); }
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
template <int Bits>
inline I16 dot4(I16 acc, B64 w, int32_t x) {
  int8_t b[4];
  std::memcpy(b, &x, 4);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) acc.v[i] += int32_t(w.v[4 * i + j]) * b[j];
  return acc;
}

template <int Bits>
inline B64 shift(B64 a) {
  for (int i = 0; i < 64; i += 2) {
    uint32_t x = uint32_t(a.v[i]) | uint32_t(a.v[i + 1]) << 8;
    x = Bits > 0 ? x << Bits : x >> -Bits;
    a.v[i] = uint8_t(x), a.v[i + 1] = uint8_t(x >> 8);
  }
  return a;
}
template <int Mask>
inline B64 masked(B64 a) {
  for (uint8_t& v : a.v) v &= uint8_t(Mask);
  return a;
}
template <int Mask>
inline B64 merged(B64 a, B64 b) {
  for (int i = 0; i < 64; ++i) a.v[i] = uint8_t((a.v[i] & Mask) | (b.v[i] & ~Mask));
  return a;
}
inline B64 lookup(const uint8_t* table, B64 a) {
  for (uint8_t& v : a.v) v = table[v];
  return a;
}
inline void store_bytes(uint8_t* p, B64 a) { std::memcpy(p, a.v, 64); }
inline B64 load_shorts(const uint8_t* p) {
  B64 r{};
  for (int i = 0; i < 16; ++i) std::memcpy(r.v + 4 * i, p + 2 * i, 2);
  return r;
}
template <int From, int Bits>
inline F16 field(B64 a) {
  F16 r;
  for (int i = 0; i < 16; ++i) {
    r.v[i] = float(uint32_t(load_i32(a.v + 4 * i)) >> From & ((1u << Bits) - 1));
  }
  return r;
}
inline F16 load_exponents(const uint8_t* p) {
  F16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = 0.5f * float_of(uint32_t(p[i]) << 23);
  return r;
}

}  // namespace sc
