// Vector functions that layers apply between their matrix products.
#pragma once
#include "simd.h"

namespace sc {

// The factor that norms a row to a root mean square of one: 1 / sqrt(mean of squares + eps).
inline float inverse_rms(const float* x, int n, float eps) {
  F16 squares = set1(0.0f);
  for (int i = 0; i < n; i += 16) {
    F16 v = load(x + i);
    squares = fma(v, v, squares);
  }
  return 1.0f / std::sqrt(reduce_add(squares) / float(n) + eps);
}

inline void norm_in_place(float* x, const float* weight, int n, float eps) {
  F16 factor = set1(inverse_rms(x, n, eps));
  for (int i = 0; i < n; i += 16) {
    store(x + i, mul(mul(load(x + i), factor), load(weight + i)));
  }
}

// x / (1 + exp(-gate)): x times the sigmoid of the gate.
inline F16 gated(F16 x, F16 gate) { return div(x, add(set1(1.0f), exp(sub(set1(0.0f), gate)))); }

inline F16 silu(F16 x) { return gated(x, x); }

// x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + exp(-2 u)).
inline F16 gelu_tanh(F16 x) {
  F16 cubic = fma(mul(mul(x, x), x), set1(0.044715f), x);
  return div(x, add(set1(1.0f), exp(mul(cubic, set1(-1.5957691216f)))));
}

// cap * tanh(x / cap), with tanh(u) = 1 - 2 / (1 + exp(2 u)).
inline F16 soft_cap(F16 x, float cap) {
  F16 e = exp(mul(x, set1(2.0f / cap)));
  return mul(set1(cap), sub(set1(1.0f), div(set1(2.0f), add(set1(1.0f), e))));
}

}  // namespace sc
