// Products of many rows with a panel, on the tiles of AMX.  They have the bits of products.h: the
// dots are exact integers, and the steps after them are the same.
//
// A tile of sums is 16 rows x 16 columns.  While one is scaled and added, the next two are computed
// and stored: a tile's registers are free again only when its product is done.
#pragma once
#include "amx.h"
#include "row_block.h"
#include "unpacked.h"

#if SC_AMX

namespace sc {

inline constexpr int kMinTileRows = 8;  // fewer rows are faster without tiles

template <int Parts>
inline constexpr TileShapes kGroupShapes(kGroup / Parts, 8 / Parts);

// 16 rows, each with a variable of its own: gcc would keep an array of sums in memory.
#define SC_EACH_ROW(M) \
  M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)

// out[r] += rows 0..Rows-1 of one tile times `groups` of weights.
template <bool IsAffine, int Parts, int Rows>
inline void add_tile(const TileGroup* x, const Unpacked& w, int groups, F16* out) {
  alignas(64) int32_t dots[4][kTileRows][kPanel];
  const int steps = groups * Parts;
#define SC_LOAD(r) F16 total##r = out[r];
  SC_EACH_ROW(SC_LOAD)
  auto multiply = [&](auto tile, int i) {
    constexpr int kX = 4 + tile % 2, kW = 6 + tile % 2;
    const int g = i / Parts, part = i % Parts;
    tile_zero<tile>();
    tile_load<kX>(x[g].q[0] + kGroup / Parts * part, kGroup);
    tile_load<kW>(w.codes[g][8 / Parts * part], 64);
    tile_dot_int8<tile, kX, kW>();
  };
  auto save = [&](auto tile) { tile_store<tile>(dots[tile], sizeof(dots[0][0])); };
  multiply(Number<0>(), 0);
  if (steps > 1) multiply(Number<1>(), 1);
  save(Number<0>());
  for (int first = 0; first < steps; first += 4) {
    unrolled<4>([&](auto tile) {
      const int i = first + tile, g = i / Parts;
      if (i + 2 < steps) multiply(Number<(tile + 2) % 4>(), i + 2);
      if (i + 1 < steps) save(Number<(tile + 1) % 4>());
      if (i >= steps) return;
      const float* sum = Parts == 1 ? x[g].sum : x[g].part_sum[i % Parts];
      const F16 d = load(w.d[i]);
#define SC_ADD(r)  \
  if constexpr (r < Rows) {  \
    const F16 dot = to_float(load_i16(dots[tile][r])); \
    total##r = fma(dot, mul(d, set1(x[g].scale[r])), total##r); \
  }
      SC_EACH_ROW(SC_ADD)
      if constexpr (IsAffine) {
        const F16 m = load(w.m[i]);
#define SC_ADD_MINIMA(r) \
  if constexpr (r < Rows) total##r = fma(m, set1(sum[r]), total##r);
        SC_EACH_ROW(SC_ADD_MINIMA)
      }
    });
  }
#define SC_STORE(r) if constexpr (r < Rows) out[r] = total##r;
  SC_EACH_ROW(SC_STORE)
}

// out[r] += row r of the block times a panel.  `out` has room for whole tiles.
template <int KindOf>
inline void tile_panel(const uint8_t* panel, const RowBlock& rows, F16* out) {
  constexpr Format f = kFormats[KindOf];
  const TileGroup* x = rows.tiles();
  const int groups = rows.x.k / kGroup;
  Unpacker<KindOf> unpacker(panel, rows.x.k);
  Unpacked chunk;
  use_tiles(kGroupShapes<f.parts>);
  for (int g = 0; g < groups; g += kChunk) {
    const int count = std::min(kChunk, groups - g);
    unpacker.next(count, chunk, [](B64 u) { return minus<f.offset>(u); });
    for (int r = 0; r < rows.count; r += kTileRows) {
      const TileGroup* tile = x + size_t(r / kTileRows) * size_t(groups) + g;
      if (rows.count - r > 8) add_tile<f.is_affine, f.parts, 16>(tile, chunk, count, out + r);
      else add_tile<f.is_affine, f.parts, 8>(tile, chunk, count, out + r);
    }
  }
}

}  // namespace sc

#endif
