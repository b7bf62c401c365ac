// Reads single rows of a packed matrix: embedding lookups.
#pragma once
#include "products.h"

namespace sc {

// Writes column c of a panel of a quantised kind as k floats.
template <int KindOf>
inline void read_column(const uint8_t* panel, int k, size_t c, float* out) {
  constexpr Format f = kFormats[KindOf];
  const uint8_t* codes = panel + head_bytes(KindOf, k);
  Scales<KindOf> scales(panel, k);
  float d[2][kPanel], m[2][kPanel] = {};
  alignas(64) uint8_t rows[8 * 64];
  for (int g = 0; g < k / kGroup; ++g, codes += group_bytes(KindOf), out += kGroup) {
    scales.next();
    for (int part = 0; part < f.parts; ++part) {
      store(d[part], scales.d[part]);
      if constexpr (f.is_affine) store(m[part], scales.m[part]);
    }
    unrolled<8>([&](auto j) { store_bytes(rows + 64 * j, code_row<KindOf, j>(codes)); });
    for (size_t i = 0; i < kGroup; ++i) {
      const size_t part = i * size_t(f.parts) / kGroup;
      const int u = rows[i / 4 * 64 + c * 4 + i % 4];
      out[i] = d[part][c] * float(u - f.offset) + m[part][c];
    }
  }
}

// Writes row i of W as k floats.
inline void read_row(const Matrix& w, int i, float* out) {
  const uint8_t* panel = w.panel(i / kPanel);
  const size_t c = size_t(i % kPanel);
  with_kind(w.kind, [&](auto kind) {
    if constexpr (is_quantised(kind)) {
      read_column<kind>(panel, w.k, c, out);
    } else {
      float row[kPanel];
      for (size_t j = 0; j < size_t(w.k); ++j) {
        store(row, load_weights<kind>(panel, j));
        out[j] = row[c];
      }
    }
  });
}

}  // namespace sc
