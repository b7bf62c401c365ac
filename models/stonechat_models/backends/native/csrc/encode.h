// Quantises groups of 32 floats.
#pragma once
#include <algorithm>

#include "matrix.h"
#include "simd.h"

namespace sc {

struct GroupCodes {
  half_t d, m;
  uint8_t code[kGroup];  // one per byte
};

// w ~ d * q with q in [-127, 127].
inline void encode_int8(const float* w, GroupCodes* out) {
  float top = 0.0f;
  for (int i = 0; i < kGroup; ++i) top = std::max(top, std::fabs(w[i]));
  out->d = to_half(top / 127.0f);
  float d = half_value(out->d), inverse = d > 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    float q = std::nearbyint(w[i] * inverse);
    out->code[i] = uint8_t(128 + int(std::min(127.0f, std::max(-127.0f, q))));
  }
}

inline float affine4_error(const float* w, float d, float m) {
  float error = 0.0f, inverse = d > 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    float q = std::min(15.0f, std::max(0.0f, std::nearbyint((w[i] - m) * inverse)));
    float e = w[i] - (d * q + m);
    error += e * e;
  }
  return error;
}

// w ~ d * q + m with q in [0, 15].  The range of w is shrunk at either end if that lowers the
// squared error.
inline void encode_affine4(const float* w, GroupCodes* out) {
  float low = w[0], high = w[0];
  for (int i = 1; i < kGroup; ++i) low = std::min(low, w[i]), high = std::max(high, w[i]);
  float best = INFINITY, d = 0.0f, m = 0.0f;
  for (int a = 0; a < 5; ++a) {
    for (int b = 0; b < 5; ++b) {
      float from = low + (high - low) * 0.03f * float(a),
            to = high - (high - low) * 0.03f * float(b);
      half_t dh = to_half((to - from) / 15.0f), mh = to_half(from);
      float error = affine4_error(w, half_value(dh), half_value(mh));
      if (error < best) best = error, out->d = dh, out->m = mh;
    }
  }
  d = half_value(out->d), m = half_value(out->m);
  float inverse = d > 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    float q = std::nearbyint((w[i] - m) * inverse);
    out->code[i] = uint8_t(std::min(15.0f, std::max(0.0f, q)));
  }
}

}  // namespace sc
