// Products of activations with panels of weights.
//
// Invariant: every output element is computed by one fixed sequence of operations over k, whatever
// the number of rows, the thread or the tile.  So a row has the same bits alone and in any batch.
// For each run of weights that share a scale (32, or twice 16), in order:
//   total = fma(float(dot), d * scale, total), dot = (u - offset) . q exactly
//   total = fma(m, scale * sum of q, total) of an affine kind
#pragma once
#include "activations.h"
#include "codes.h"
#include "scales.h"

namespace sc {

// Sums over the part of a group of activations that shares a scale of weights.
template <int Parts>
inline int32_t part_isum(const ActGroup& group, int part) {
  if (Parts == 1) return group.isum;
  return part == 0 ? group.isum_low : group.isum - group.isum_low;
}
template <int Parts>
inline float part_sum(const ActGroup& group, int part) {
  return Parts == 1 ? group.sum : group.scale * float(part_isum<Parts>(group, part));
}

// acc[r] += (row r0 + r of x) . one panel, for r < Rows.  Flat: a call in the loop would spill.
template <int KindOf, int Rows>
__attribute__((flatten)) inline void quantised_panel(const uint8_t* panel, const Act& x, int r0,
                                                    F16* acc) {
  constexpr Format f = kFormats[KindOf];
  constexpr int kBits = unsigned_bits(f), kLength = 8 / f.parts;
  constexpr int kOffset = kBits == 8 && kSignedDot8 ? 0 : f.offset;
  const size_t ahead = panel_bytes(KindOf, x.k);
  const uint8_t* codes = panel + head_bytes(KindOf, x.k);
  const uint8_t* row[Rows];
  for (int r = 0; r < Rows; ++r) row[r] = x.row(r0 + r);
  F16 total[Rows];
  for (int r = 0; r < Rows; ++r) total[r] = acc[r];
  Scales<KindOf> scales(panel, x.k);
  for (size_t at = 0; at < size_t(x.k / kGroup) * sizeof(ActGroup); at += sizeof(ActGroup)) {
    auto group = [&](int r) -> const ActGroup& {
      return *reinterpret_cast<const ActGroup*>(row[r] + at);
    };
    for (int i = 0; i < f.bits; ++i) prefetch_far(codes + 64 * i + ahead);
    scales.next();
    unrolled<f.parts>([&](auto part) {
      I16 dot[Rows];
      for (int r = 0; r < Rows; ++r) {
        dot[r] = set1_i32(kOffset ? -kOffset * part_isum<f.parts>(group(r), part) : 0);
      }
      unrolled<kLength>([&](auto i) {
        constexpr int j = part * kLength + i;
        const B64 w = code_row<KindOf, j>(codes);
        for (int r = 0; r < Rows; ++r) {
          dot[r] = dot4<kBits>(dot[r], w, load_i32(group(r).q + 4 * j));
        }
      });
      for (int r = 0; r < Rows; ++r) {
        total[r] = fma(to_float(dot[r]), mul(scales.d[part], set1(group(r).scale)), total[r]);
        if constexpr (f.is_affine) {
          total[r] = fma(scales.m[part], set1(part_sum<f.parts>(group(r), part)), total[r]);
        }
      }
    });
    codes += group_bytes(KindOf);
  }
  for (int r = 0; r < Rows; ++r) acc[r] = total[r];
}

template <int KindOf>
inline F16 load_weights(const uint8_t* panel, size_t i) {
  if constexpr (KindOf == kFloat) return load(reinterpret_cast<const float*>(panel) + i * kPanel);
  else if constexpr (KindOf == kHalf) {
    return load_half(reinterpret_cast<const half_t*>(panel) + i * kPanel);
  } else {
    return load_bf16(reinterpret_cast<const bf16_t*>(panel) + i * kPanel);
  }
}

template <int KindOf, int Rows>
inline void float_panel(const uint8_t* panel, const Act& x, int r0, F16* acc) {
  const size_t ahead = panel_bytes(KindOf, x.k), width = size_t(x.k);
  const float* f = x.f + size_t(r0) * width;
  F16 total[Rows];
  for (int r = 0; r < Rows; ++r) total[r] = acc[r];
  for (size_t i = 0; i < width; ++i) {
    F16 w = load_weights<KindOf>(panel, i);
    prefetch_far(panel + ahead + i * kPanel * (KindOf == kFloat ? 4 : 2));
    for (int r = 0; r < Rows; ++r) total[r] = fma(w, set1(f[size_t(r) * width + i]), total[r]);
  }
  for (int r = 0; r < Rows; ++r) acc[r] = total[r];
}

template <int KindOf, int Rows>
inline void panel_rows(const uint8_t* panel, const Act& x, int r0, F16* acc) {
  if constexpr (is_quantised(KindOf)) quantised_panel<KindOf, Rows>(panel, x, r0, acc);
  else float_panel<KindOf, Rows>(panel, x, r0, acc);
}

// Requires rows <= kRowsPerKernel.
template <int KindOf, int Rows = kRowsPerKernel>
inline void panel_up_to(const uint8_t* panel, const Act& x, int r0, int rows, F16* acc) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return panel_up_to<KindOf, Rows - 1>(panel, x, r0, rows, acc);
  }
  panel_rows<KindOf, Rows>(panel, x, r0, acc);
}

template <int KindOf>
inline void panel_tile(const uint8_t* panel, const Act& x, int r0, int rows, F16* acc) {
  for (int r = 0; r < rows; r += kRowsPerKernel) {
    int n = rows - r < kRowsPerKernel ? rows - r : kRowsPerKernel;
    panel_up_to<KindOf>(panel, x, r0 + r, n, acc + r);
  }
}

// out[r] = (row r0 + r of x) . panel p + bias, for at most 8 rows.
inline void multiply(const Matrix& w, int p, const Act& x, int r0, int rows, F16* out) {
  F16 start = w.bias ? load(w.bias + p * kPanel) : set1(0.0f);
  for (int r = 0; r < rows; ++r) out[r] = start;
  const uint8_t* panel = w.panel(p);
  with_kind(w.kind, [&](auto kind) { panel_tile<kind>(panel, x, r0, rows, out); });
}

}  // namespace sc
