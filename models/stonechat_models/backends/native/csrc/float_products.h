// Products of float weights with activations in float32; of bfloat16 weights on tiles where the
// processor has them (pair_tiles.h).  The order of operations does not depend on the number of rows.
#pragma once
#include "pair_tiles.h"

namespace sc {

// Weights i of a panel.
template <int KindOf>
inline F16 load_weights(const uint8_t* panel, size_t i) {
  if constexpr (has_pairs(KindOf)) {
    bf16_t weights[kPanel];
    for (size_t c = 0; c < kPanel; ++c) {
      std::memcpy(weights + c, panel + float_index(KindOf, i, c) * 2, 2);
    }
    return load_bf16(weights);
  } else if constexpr (KindOf == kFloat) {
    return load(reinterpret_cast<const float*>(panel) + i * kPanel);
  } else if constexpr (KindOf == kHalf) {
    return load_half(reinterpret_cast<const half_t*>(panel) + i * kPanel);
  } else {
    return load_bf16(reinterpret_cast<const bf16_t*>(panel) + i * kPanel);
  }
}

template <int KindOf, int Rows>
inline void add_floats(const uint8_t* panel, const float* f, size_t width, F16* acc) {
  const size_t ahead = panel_bytes(KindOf, int(width));
  F16 total[Rows];
  for (int r = 0; r < Rows; ++r) total[r] = acc[r];
  for (size_t i = 0; i < width; ++i) {
    F16 w = load_weights<KindOf>(panel, i);
    prefetch_far(panel + ahead + i * kPanel * (KindOf == kFloat ? 4 : 2));
    for (int r = 0; r < Rows; ++r) total[r] = fma(w, set1(f[size_t(r) * width + i]), total[r]);
  }
  for (int r = 0; r < Rows; ++r) acc[r] = total[r];
}

// Requires rows <= kRowsPerKernel.
template <int KindOf, int Rows = kRowsPerKernel>
inline void add_floats_up_to(int rows, const uint8_t* panel, const float* f, size_t width,
                             F16* acc) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return add_floats_up_to<KindOf, Rows - 1>(rows, panel, f, width, acc);
  }
  add_floats<KindOf, Rows>(panel, f, width, acc);
}

// out[r] += row r of the block times a panel.
template <int KindOf>
inline void float_panel(const uint8_t* panel, const RowBlock& rows, F16* out) {
#if SC_AMX
  if (has_pairs(KindOf) && has_tiles()) return pair_panel(panel, rows, out);
#endif
  const size_t width = size_t(rows.x.k);
  for (int r = 0; r < rows.count; r += kRowsPerKernel) {
    const float* f = rows.x.f + size_t(rows.from + r) * width;
    add_floats_up_to<KindOf>(std::min(kRowsPerKernel, rows.count - r), panel, f, width, out + r);
  }
}

}  // namespace sc
