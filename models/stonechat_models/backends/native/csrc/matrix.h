// Weight matrices, quantised activations, and their product.
//
// A matrix W[n, k] is cut into panels of 16 output columns, so that a vector lane is a column:
//   quantised kinds (groups g of 32 along k, half-precision scales):
//     d[g][16], (m[g][16] for kAffine4,) padding to 64 bytes, then the quantised values of each
//     group (`codes` in the source), as unsigned numbers u:
//     8 bits: 8 x 64 bytes, byte [4 c + i] of row j is u of column c at k = 4 j + i
//     4 bits: 4 x 64 bytes, the low nibbles of row j are 8-bit row 2 j, the high ones row 2 j + 1
//   float kinds: [k][16]
// A weight is d * (u - offset), or d * u + m for kAffine4.
//
// A row of activations consists of groups of 48 bytes: 32 int8 values q with x ~ scale * q, then
// the scale and two sums that the products need.  So a row is written as one stream, and threads
// that write different rows share no cache line.
//
// Invariant: every output element is computed by one fixed sequence of operations over k, whatever
// the number of rows, the thread or the tile.  So a row has the same bits alone and in any batch.
#pragma once
#include <cstddef>
#include <vector>

#include "simd.h"

namespace sc {

enum Kind : int { kAffine4 = 0, kSymmetric4 = 1, kInt8 = 2, kBf16 = 3, kHalf = 4, kFloat = 5 };
inline constexpr int kKinds = 6;
inline constexpr int kPanel = 16;    // output columns of a panel
inline constexpr int kGroup = 32;    // weights (and activations) that share a scale
inline constexpr int kTileRows = 8;  // rows that are multiplied by a panel together

inline bool is_quantised(int kind) { return kind <= kInt8; }
inline int code_bits(int kind) { return kind == kInt8 ? 8 : 4; }
inline int code_offset(int kind) { return kind == kInt8 ? 128 : kind == kSymmetric4 ? 8 : 0; }
inline size_t scale_bytes(int kind, int k) {
  size_t halves = size_t(k / kGroup) * kPanel * (kind == kAffine4 ? 2 : 1);
  return (halves * sizeof(half_t) + 63) / 64 * 64;
}
inline size_t panel_bytes(int kind, int k) {
  if (is_quantised(kind)) {
    return scale_bytes(kind, k) + size_t(k) * kPanel * size_t(code_bits(kind)) / 8;
  }
  return size_t(k) * kPanel * (kind == kFloat ? 4 : 2);
}

struct Matrix {
  int kind = 0, n = 0, k = 0;
  const uint8_t* data = nullptr;
  const float* bias = nullptr;  // [n rounded up to 16], or null

  int panels() const { return (n + kPanel - 1) / kPanel; }
  const uint8_t* panel(int p) const { return data + size_t(p) * panel_bytes(kind, k); }
};

// Whether the matrix multiplies activations as floats, not quantised ones.
inline bool wants_floats(const Matrix& w) { return !is_quantised(w.kind); }

// ---------------------------------------------------------------- activations

// A group of quantised activations.
struct ActGroup {
  int8_t q[kGroup];
  float scale;
  float sum;     // scale * (sum of q)
  int32_t isum;  // sum of q
  int32_t unused;
};
static_assert(sizeof(ActGroup) == 48);

// Rows of k values: quantised and, if a float matrix reads them, also as floats.
struct Act {
  int k = 0;
  uint8_t* groups = nullptr;  // row r, group g: ActGroup at r * stride + g * 48
  size_t stride = 0;          // an odd number of cache lines: rows fall into different cache sets
  float* f = nullptr;         // [row][k], or null

  static size_t row_stride(int k) {
    size_t lines = (size_t(k / kGroup) * sizeof(ActGroup) + 63) / 64;
    return (lines | 1) * 64;
  }
  static size_t bytes(int k, int rows, bool floats) {
    return size_t(rows) * (row_stride(k) + (floats ? size_t(k) * 4 : 0)) + 64;
  }

  void place(uint8_t* memory, int k_, int rows, bool floats) {
    memory += (64 - reinterpret_cast<size_t>(memory) % 64) % 64;
    k = k_;
    groups = memory;
    stride = row_stride(k);
    f = floats ? reinterpret_cast<float*>(memory + size_t(rows) * stride) : nullptr;
  }

  const uint8_t* row(int r) const { return groups + size_t(r) * stride; }

  void copy(int row_to, const Act& from, int row_from) const {
    std::memcpy(groups + size_t(row_to) * stride, from.row(row_from), stride);
    if (f == nullptr) return;
    const size_t width = size_t(k);
    std::memcpy(f + size_t(row_to) * width, from.f + size_t(row_from) * width, width * 4);
  }

  // Stores group g (32 values) of a row.
  void put(int row, int g, F16 lo, F16 hi) const {
    float top = reduce_max(max(abs(lo), abs(hi)));
    F16 inverse = set1(top > 0.0f ? 127.0f / top : 0.0f);
    F16 q_lo = round(mul(lo, inverse)), q_hi = round(mul(hi, inverse));
    float total = reduce_add(add(q_lo, q_hi));  // integers: exact
    auto* out = reinterpret_cast<ActGroup*>(groups + size_t(row) * stride) + g;
    store_i8(out->q, q_lo);
    store_i8(out->q + 16, q_hi);
    out->scale = top / 127.0f;
    out->sum = out->scale * total;
    out->isum = int32_t(total);
    if (f != nullptr) {
      float* to = f + size_t(row) * size_t(k) + size_t(g) * kGroup;
      store(to, lo);
      store(to + 16, hi);
    }
  }

  // Stores all k values of a row.
  void put_row(int row, const float* x) const {
    for (int i = 0; i < k; i += kGroup) put(row, i / kGroup, load(x + i), load(x + i + 16));
  }
};

// Rows of activations with their own memory, which only grows.
struct ActBuffer : Act {
  ActBuffer() = default;
  ActBuffer(ActBuffer&&) = default;  // a copy would point into the memory of the original

  void reserve(int columns, int rows, bool floats) {
    const size_t needed = bytes(columns, rows, floats);
    if (memory.size() < needed) memory.assign(needed, 0);
    place(memory.data(), columns, rows, floats);
  }

  std::vector<uint8_t> memory;
};

// ---------------------------------------------------------------- products

// acc[r] += (row r0 + r of x) . one panel, for r < Rows.
template <int KindOf, int Rows>
inline void quantised_panel(const uint8_t* panel, const Act& x, int r0, F16* acc) {
  constexpr int kBits = KindOf == kInt8 ? 8 : 4;
  constexpr int kOffset = (KindOf == kInt8 && kSignedDot8) ? 0
                          : KindOf == kInt8                ? 128
                          : KindOf == kSymmetric4          ? 8
                                                           : 0;
  const size_t groups = size_t(x.k / kGroup), ahead = panel_bytes(KindOf, x.k);
  const half_t* d = reinterpret_cast<const half_t*>(panel);
  const half_t* m = d + groups * kPanel;
  const uint8_t* codes = panel + scale_bytes(KindOf, x.k);
  const uint8_t* row[Rows];
  for (int r = 0; r < Rows; ++r) row[r] = x.row(r0 + r);
  F16 total[Rows];
  for (int r = 0; r < Rows; ++r) total[r] = acc[r];
  for (size_t g = 0; g < groups; ++g) {
    const size_t at = g * sizeof(ActGroup);
    auto group = [&](int r) { return reinterpret_cast<const ActGroup*>(row[r] + at); };
    I16 dot[Rows];
    for (int r = 0; r < Rows; ++r) dot[r] = set1_i32(kOffset ? -kOffset * group(r)->isum : 0);
    if constexpr (kBits == 8) {
      for (int j = 0; j < 8; ++j) {
        prefetch_far(codes + 64 * j + ahead);
        B64 w = load_bytes(codes + 64 * j);
        for (int r = 0; r < Rows; ++r) {
          dot[r] = dot4<8>(dot[r], w, load_i32(group(r)->q + 4 * j));
        }
      }
    } else {
      for (int j = 0; j < 4; ++j) {
        prefetch_far(codes + 64 * j + ahead);
        B64 both = load_bytes(codes + 64 * j);
        B64 w = low_nibbles(both);
        for (int r = 0; r < Rows; ++r) {
          dot[r] = dot4<4>(dot[r], w, load_i32(group(r)->q + 8 * j));
        }
        w = high_nibbles(both);
        for (int r = 0; r < Rows; ++r) {
          dot[r] = dot4<4>(dot[r], w, load_i32(group(r)->q + 8 * j + 4));
        }
      }
    }
    F16 dg = load_half(d);
    prefetch_far(reinterpret_cast<const uint8_t*>(d) + ahead);
    for (int r = 0; r < Rows; ++r) {
      total[r] = fma(to_float(dot[r]), mul(dg, set1(group(r)->scale)), total[r]);
    }
    if constexpr (KindOf == kAffine4) {
      F16 mg = load_half(m);
      prefetch_far(reinterpret_cast<const uint8_t*>(m) + ahead);
      for (int r = 0; r < Rows; ++r) total[r] = fma(mg, set1(group(r)->sum), total[r]);
      m += kPanel;
    }
    d += kPanel;
    codes += kBits * 64;
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
  if constexpr (KindOf <= kInt8) quantised_panel<KindOf, Rows>(panel, x, r0, acc);
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
  switch (w.kind) {
    case kAffine4: return panel_tile<kAffine4>(panel, x, r0, rows, out);
    case kSymmetric4: return panel_tile<kSymmetric4>(panel, x, r0, rows, out);
    case kInt8: return panel_tile<kInt8>(panel, x, r0, rows, out);
    case kBf16: return panel_tile<kBf16>(panel, x, r0, rows, out);
    case kHalf: return panel_tile<kHalf>(panel, x, r0, rows, out);
    default: return panel_tile<kFloat>(panel, x, r0, rows, out);
  }
}

// Writes row i of W as floats: an embedding lookup.
inline void read_row(const Matrix& w, int i, float* out) {
  const uint8_t* panel = w.panel(i / kPanel);
  const size_t c = size_t(i % kPanel), groups = size_t(w.k / kGroup);
  if (!is_quantised(w.kind)) {
    for (size_t j = 0; j < size_t(w.k); ++j) {
      if (w.kind == kFloat) out[j] = reinterpret_cast<const float*>(panel)[j * kPanel + c];
      else if (w.kind == kHalf) {
        out[j] = half_value(reinterpret_cast<const half_t*>(panel)[j * kPanel + c]);
      } else {
        out[j] = bf16_to_float(reinterpret_cast<const bf16_t*>(panel)[j * kPanel + c]);
      }
    }
    return;
  }
  const half_t* d = reinterpret_cast<const half_t*>(panel);
  const uint8_t* codes = panel + scale_bytes(w.kind, w.k);
  for (size_t g = 0; g < groups; ++g) {
    float scale = half_value(d[g * kPanel + c]);
    float low = w.kind == kAffine4 ? half_value(d[(groups + g) * kPanel + c]) : 0.0f;
    for (size_t j = 0; j < kGroup; ++j) {
      int code = w.kind == kInt8
                     ? codes[g * 512 + j / 4 * 64 + c * 4 + j % 4]
                     : codes[g * 256 + j / 8 * 64 + c * 4 + j % 4] >> (j / 4 % 2 * 4) & 15;
      out[g * kGroup + j] = scale * float(code - code_offset(w.kind)) + low;
    }
  }
}

}  // namespace sc
