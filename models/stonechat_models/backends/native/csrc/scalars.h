// Single numbers: bits of floats, half precision and bfloat16, unaligned int32.
#pragma once
#include <cstdint>
#include <cstring>

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

}  // namespace sc
