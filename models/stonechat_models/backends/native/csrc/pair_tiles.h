// Products of bfloat16 weights on the tiles of AMX, for any number of rows.
//
// An activation is split into two bfloat16 numbers, x ~ first + second, which keep 16 of its 24 bits.
// Invariant: for each output, in order of k, 32 weights at a time:
//   a = a + first . w, b = b + second . w, each dot as the instruction computes it
// and the output is a + b.  `a` begins at the bias.  So a row has the same bits in any batch.
//
// A panel is [k / 2][16][2], which is how the instruction reads weights.
#pragma once
#include "row_block.h"

namespace sc {

// Whether a panel of this kind stores its weights in pairs.
inline constexpr bool has_pairs([[maybe_unused]] int kind) {
#if SC_AMX
  return kind == kBf16;
#else
  return false;
#endif
}

// The index in a panel of a float kind of weight i of column c.
inline constexpr size_t float_index(int kind, size_t i, size_t c) {
  return has_pairs(kind) ? i / 2 * 2 * kPanel + 2 * c + i % 2 : i * kPanel + c;
}

#if SC_AMX

// Adds 32 weights, in tile 6, to the sums of a row tile.
template <int First, int Second>
inline void add_pairs(const PairGroup& x) {
  tile_load<4>(x.first, 64);
  tile_dot_pairs<First, 4, 6>();
  tile_load<5>(x.second, 64);
  tile_dot_pairs<Second, 5, 6>();
}

inline void add_rows(const F16 (*more)[kTileRows], int rows, F16* out) {
  for (int i = 0; i < rows; ++i) out[i] = add(out[i], more[i / kTileRows][i % kTileRows]);
}

// out[r] += row r of one or two tiles of rows times a panel.  x: [tile][group].
template <int Tiles>
inline void add_pair_tiles(const uint8_t* panel, const PairGroup* x, int groups, int rows,
                           F16* out) {
  constexpr size_t kBytes = kGroup * kPanel * sizeof(bf16_t);  // of a group of weights
  const uint8_t* ahead = panel + size_t(groups) * kBytes;
  F16 second[Tiles][kTileRows];
  tile_load<0>(out, 64);
  tile_zero<1>();
  if constexpr (Tiles == 2) {
    tile_load<2>(out + kTileRows, 64);
    tile_zero<3>();
  }
  for (int g = 0; g < groups; ++g, panel += kBytes) {
    tile_load<6>(panel, 64);
    for (size_t i = 0; i < kBytes; i += 64) prefetch_far(ahead + size_t(g) * kBytes + i);
    add_pairs<0, 1>(x[g]);
    if constexpr (Tiles == 2) add_pairs<2, 3>(x[groups + g]);
  }
  tile_store<0>(out, 64);
  tile_store<1>(second[0], 64);
  if constexpr (Tiles == 2) {
    tile_store<2>(out + kTileRows, 64);
    tile_store<3>(second[1], 64);
  }
  add_rows(second, rows, out);
}

// out[r] += row r of the block times a panel.  `out` has room for whole tiles.
inline void pair_panel(const uint8_t* panel, const RowBlock& rows, F16* out) {
  const int groups = rows.x.k / kGroup;
  const PairGroup* x = rows.pairs();
  use_tiles(kRowShapes[size_t(std::min(rows.count, kTileRows)) - 1]);
  for (int r = 0; r < rows.count; r += 2 * kTileRows, x += 2 * groups) {
    const int left = std::min(rows.count - r, 2 * kTileRows);
    if (left > kTileRows) add_pair_tiles<2>(panel, x, groups, left, out + r);
    else add_pair_tiles<1>(panel, x, groups, left, out + r);
  }
}

#endif

}  // namespace sc
