// Repacks rows of weights from the layout of a file into panels (matrix.h).
//
// Rows of blocks keep their bits: only their order changes.  Rows of floats are stored as another
// float kind, or quantised to Q8_0 or Q4_1.
#pragma once
#include "blocks.h"
#include "encode.h"
#include "pair_tiles.h"

namespace sc {

struct PackJob {
  int kind, source, n, k;
  const uint8_t* rows;  // row i of W is at rows + row_index[i] * stride
  size_t stride;        // bytes
  const int32_t* row_index;
  uint8_t* out;

  const uint8_t* row(int i) const { return rows + size_t(row_index[i]) * stride; }
};

inline float read_float(int source, const uint8_t* row, size_t i) {
  if (source == kFloat) return float_of(uint32_t(load_i32(row + 4 * i)));
  uint16_t h;
  std::memcpy(&h, row + 2 * i, 2);
  return source == kHalf ? half_value(h) : bf16_to_float(h);
}

// Writes a row into column c of a panel of a float kind.
inline void pack_float_row(const PackJob& job, const uint8_t* row, size_t c, uint8_t* panel) {
  const size_t width = job.kind == kFloat ? 4 : 2;
  for (size_t i = 0; i < size_t(job.k); ++i) {
    uint8_t* to = panel + float_index(job.kind, i, c) * width;
    if (job.kind == job.source) {
      std::memcpy(to, row + i * width, width);
      continue;
    }
    const float w = read_float(job.source, row, i);
    const uint16_t h = job.kind == kHalf ? to_half(w) : float_to_bf16(w);
    std::memcpy(to, job.kind == kFloat ? static_cast<const void*>(&w) : &h, width);
  }
}

// Quantises a row of floats into column c of a panel.
template <int KindOf>
inline void encode_row(const PackJob& job, const uint8_t* row, size_t c, uint8_t* panel) {
  uint8_t* codes = panel + head_bytes(KindOf, job.k);
  for (size_t g = 0; g < size_t(job.k / kGroup); ++g, codes += group_bytes(KindOf)) {
    float w[kGroup];
    for (size_t i = 0; i < kGroup; ++i) w[i] = read_float(job.source, row, g * kGroup + i);
    GroupCodes group{};
    if constexpr (KindOf == kQ8_0) encode_int8(w, &group);
    else encode_affine4(w, &group);
    uint32_t words[8];
    std::memcpy(words, group.code, kGroup);
    half_t* d = reinterpret_cast<half_t*>(panel + g * size_t(kFormats[KindOf].head) * kPanel) + c;
    d[0] = group.d;
    if constexpr (kFormats[KindOf].is_affine) d[kPanel] = group.m;
    put_codes<kFormats[KindOf].bits>(words, codes + 4 * c);
  }
}

template <int KindOf>
inline void pack_blocks(const PackJob& job, int from, int columns, uint8_t* panel) {
  constexpr Format f = kFormats[KindOf];
  uint8_t* codes = panel + head_bytes(KindOf, job.k);
  for (size_t b = 0; b < size_t(job.k / f.block); ++b) {
    for (int c = 0; c < columns; ++c) {
      const uint8_t* block = job.row(from + c) + b * row_bytes(KindOf, f.block);
      copy_head<KindOf>(block, size_t(c), panel + b * size_t(f.head) * kPanel);
      for (int g = 0; g < f.block / kGroup; ++g) {
        uint32_t words[8];
        read_codes<KindOf>(block, g, words);
        put_codes<f.bits>(words, codes + size_t(g) * group_bytes(KindOf) + 4 * c);
      }
    }
    codes += f.block / kGroup * group_bytes(KindOf);
  }
}

inline void pack_panel(const PackJob& job, int p) {
  const size_t bytes = panel_bytes(job.kind, job.k);
  uint8_t* panel = job.out + size_t(p) * bytes;
  const int from = p * kPanel, columns = std::min(kPanel, job.n - from);
  if (columns < kPanel) std::memset(panel, 0, bytes);
  with_kind(job.kind, [&](auto kind) {
    if constexpr (is_quantised(kind)) {
      if (job.source == kind) return pack_blocks<kind>(job, from, columns, panel);
    }
    for (int c = 0; c < columns; ++c) {
      const uint8_t* row = job.row(from + c);
      if constexpr (!is_quantised(kind)) pack_float_row(job, row, size_t(c), panel);
      else if constexpr (kind == kQ8_0 || kind == kQ4_1)
        encode_row<kind>(job, row, size_t(c), panel);
    }
  });
}

}  // namespace sc
