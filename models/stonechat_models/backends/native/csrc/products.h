// Products of activations with panels of weights.
//
// Invariant: every output element is computed by one fixed sequence of operations over k, whatever
// the number of rows, the thread or the tile.  So a row has the same bits alone and in any batch.
// For each group of 32 weights in blocks of 32, in order:
//   total = fma(float(dot), d * scale, total), dot = (u - offset) . q exactly
//   total = fma(m, scale * sum of q, total) of an affine kind
// (block_products.h: weights in blocks of 256.)
// Few rows read the codes of a panel in registers.  For many rows they are unpacked in memory
// first, a chunk at a time.
#pragma once
#include "block_products.h"
#include "float_products.h"
#include "row_block.h"
#include "tile_products.h"
#include "unpacked.h"

namespace sc {

// The groups of a panel in order, as they are packed.
template <int KindOf>
class PackedGroups {
 public:
  PackedGroups(const uint8_t* panel, int k) : codes_(panel, k), scales_(panel, k) {}

  void next() {
    codes_.next();
    scales_.next();
  }
  template <int J>
  B64 row() const {
    return codes_.template row<J>();
  }
  F16 d() const { return scales_.d[0]; }
  F16 m() const { return scales_.m[0]; }

 private:
  PackedCodes<KindOf> codes_;
  Scales<KindOf> scales_;
};

// The groups of a chunk in order.
template <int KindOf>
class UnpackedGroups {
 public:
  explicit UnpackedGroups(const Unpacked& chunk) : chunk_(chunk) {}

  void next() { ++group_; }
  template <int J>
  B64 row() const {
    return load_bytes(chunk_.codes[group_][J]);
  }
  F16 d() const { return load(chunk_.d[group_]); }
  F16 m() const { return load(chunk_.m[group_]); }

 private:
  const Unpacked& chunk_;
  int group_ = -1;
};

// acc[r] += the groups of activations from row[r] on . as many groups of weights.  Flattened,
// because gcc does not always inline the bodies of unrolled loops by itself.
template <int KindOf, int Rows, class Groups>
__attribute__((flatten)) inline void add_groups(Groups&& weights, const uint8_t* const* row,
                                               int groups, F16* acc) {
  constexpr Format f = kFormats[KindOf];
  constexpr int kBits = unsigned_bits(f);
  constexpr int kOffset = kBits == 8 && kSignedDot8 ? 0 : f.offset;
  F16 total[Rows];
  for (int r = 0; r < Rows; ++r) total[r] = acc[r];
  for (size_t at = 0; at < size_t(groups) * sizeof(ActGroup); at += sizeof(ActGroup)) {
    auto group = [&](int r) -> const ActGroup& {
      return *reinterpret_cast<const ActGroup*>(row[r] + at);
    };
    weights.next();
    I16 dot[Rows];
    for (int r = 0; r < Rows; ++r) dot[r] = set1_i32(kOffset ? -kOffset * group(r).isum : 0);
    unrolled<8>([&](auto j) {
      const B64 w = weights.template row<j>();
      for (int r = 0; r < Rows; ++r) {
        dot[r] = dot4<kBits>(dot[r], w, load_i32(group(r).q + 4 * j));
      }
    });
    const F16 d = weights.d();
    for (int r = 0; r < Rows; ++r) {
      total[r] = fma(to_float(dot[r]), mul(d, set1(group(r).scale)), total[r]);
      if constexpr (f.is_affine) total[r] = fma(weights.m(), set1(group(r).sum), total[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) acc[r] = total[r];
}

// Requires rows <= kRowsPerKernel.
template <int KindOf, int Rows = kRowsPerKernel>
inline void few_rows(const uint8_t* panel, const RowBlock& rows, F16* out) {
  if constexpr (Rows > 1) {
    if (rows.count < Rows) return few_rows<KindOf, Rows - 1>(panel, rows, out);
  }
  const uint8_t* row[Rows];
  for (int r = 0; r < Rows; ++r) row[r] = rows.x.row(rows.from + r);
  add_groups<KindOf, Rows>(PackedGroups<KindOf>(panel, rows.x.k), row, rows.x.k / kGroup, out);
}

template <int KindOf>
inline void many_rows(const uint8_t* panel, const RowBlock& rows, F16* out) {
  const int groups = rows.x.k / kGroup;
  Unpacker<KindOf, true> unpacker(panel, rows.x.k);
  Unpacked chunk;
  for (int g = 0; g < groups; g += kChunk) {
    const int count = std::min(kChunk, groups - g);
    unpacker.next(count, chunk, [](B64 u) { return u; });
    for (int first = 0; first < rows.count; first += kRowsPerKernel) {
      const uint8_t* row[kRowsPerKernel];
      for (int r = 0; r < kRowsPerKernel; ++r) {  // after the last row: itself again
        row[r] = rows.x.row(rows.from + std::min(first + r, rows.count - 1)) +
                 size_t(g) * sizeof(ActGroup);
      }
      add_groups<KindOf, kRowsPerKernel>(UnpackedGroups<KindOf>(chunk), row, count, out + first);
    }
  }
}

template <int KindOf>
inline void quantised_panel(const uint8_t* panel, const RowBlock& rows, F16* out) {
#if SC_AMX
  if (rows.count >= kMinTileRows && has_tiles()) return tile_panel<KindOf>(panel, rows, out);
#endif
  if (rows.count <= kRowsPerKernel) few_rows<KindOf>(panel, rows, out);
  else many_rows<KindOf>(panel, rows, out);
}

// out[r] = (row r of the block) . panel p + bias.  `out` has room for kRowBlock rows, because the
// last tile is computed as a whole.
inline void multiply(const Matrix& w, int p, const RowBlock& rows, F16* out) {
  const int whole = (rows.count + kTileRows - 1) / kTileRows * kTileRows;
  const F16 start = w.bias ? load(w.bias + p * kPanel) : set1(0.0f);
  for (int r = 0; r < whole; ++r) out[r] = start;
  const uint8_t* panel = w.panel(p);
  with_kind(w.kind, [&](auto kind) {
    if constexpr (has_large_blocks(kind)) block_panel<kind>(panel, rows, out);
    else if constexpr (is_quantised(kind)) quantised_panel<kind>(panel, rows, out);
    else float_panel<kind>(panel, rows, out);
  });
}

}  // namespace sc
