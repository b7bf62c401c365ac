// Products of many rows with a panel, on the tiles of AMX.  They have the bits of products.h: the
// dots are exact integers, and the steps after them are the same.
//
// A tile of sums is 16 rows x 16 columns.  Two groups are multiplied and stored, then both are
// scaled and added, while the processor runs ahead with the next two.
//
// The codes of the next panel are prefetched a few lines at a time between the products.  Prefetched
// all at once, as they are unpacked, they keep the core from reading its caches until they arrive.
#pragma once
#include "amx.h"
#include "row_block.h"
#include "unpacked.h"

#if SC_AMX

namespace sc {

inline constexpr int kMinTileRows = 9;  // fewer rows are faster without tiles
inline constexpr TileShapes kGroupTiles(kGroup, 8);

// Each of 16 sums has a variable of its own, because gcc keeps an array of them in memory.
#define SC_EACH_ROW(M) \
  M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define SC_LOAD(r) F16 total##r = out[r];
#define SC_ADD(r) \
  total##r = fma(to_float(load_i16(dots[r])), mul(d, set1(x[g].scale[r])), total##r);
#define SC_ADD_MINIMA(r) total##r = fma(m, set1(x[g].sum[r]), total##r);
#define SC_STORE(r) out[r] = total##r;

// dots = 16 rows of x times a group of weights, in tile Sum.
template <int Sum>
inline void multiply_group(const TileGroup& x, const uint8_t* codes, int32_t (*dots)[kPanel]) {
  tile_zero<Sum>();
  tile_load<4 + Sum>(x.q, kGroup);
  tile_load<6 + Sum>(codes, 64);
  tile_dot_int8<Sum, 4 + Sum, 6 + Sum>();
  tile_store<Sum>(dots, sizeof(dots[0]));
}

// out[r] += row r of 16 times `groups` of weights.  Beside each pair of groups it prefetches `Lines`
// from `ahead` on, and it returns where these end.
template <bool IsAffine, int Lines>
inline const uint8_t* add_tile(const TileGroup* x, const Unpacked& w, int groups,
                               const uint8_t* ahead, F16* out) {
  alignas(64) int32_t pair[2][kTileRows][kPanel];
  SC_EACH_ROW(SC_LOAD)
  for (int g = 0; g < groups;) {
    multiply_group<0>(x[g], w.codes[g][0], pair[0]);
    if (g + 1 < groups) multiply_group<1>(x[g + 1], w.codes[g + 1][0], pair[1]);
    unrolled<Lines>([&](auto i) { prefetch_far(ahead + 64 * i); });
    ahead += 64 * Lines;
    for (int end = std::min(g + 2, groups); g < end; ++g) {
      const int32_t(*dots)[kPanel] = pair[g % 2];
      const F16 d = load(w.d[g]);
      SC_EACH_ROW(SC_ADD)
      if constexpr (IsAffine) {
        const F16 m = load(w.m[g]);
        SC_EACH_ROW(SC_ADD_MINIMA)
      }
    }
  }
  SC_EACH_ROW(SC_STORE)
  return ahead;
}

#undef SC_EACH_ROW
#undef SC_LOAD
#undef SC_ADD
#undef SC_ADD_MINIMA
#undef SC_STORE

// out[r] += row r of the block times a panel.  `out` has room for whole tiles.
template <int KindOf>
inline void tile_panel(const uint8_t* panel, const RowBlock& rows, F16* out) {
  constexpr Format f = kFormats[KindOf];
  const TileGroup* x = rows.tiles();
  const int groups = rows.x.k / kGroup;
  Unpacker<KindOf, false> unpacker(panel, rows.x.k);
  const uint8_t* ahead = panel + panel_bytes(KindOf, rows.x.k) + head_bytes(KindOf, rows.x.k);
  Unpacked chunk;
  use_tiles(kGroupTiles);
  for (int g = 0; g < groups; g += kChunk) {
    const int count = std::min(kChunk, groups - g);
    unpacker.next(count, chunk, [](B64 u) { return minus<f.offset>(u); });
    for (int r = 0; r < rows.count; r += kTileRows) {
      const TileGroup* tile = x + size_t(r / kTileRows) * size_t(groups) + g;
      auto add = [&](auto lines) {
        ahead = add_tile<f.is_affine, lines>(tile, chunk, count, ahead, out + r);
      };
      if (rows.count <= kTileRows) add(Number<2 * f.bits>());
      else if (r < 2 * kTileRows) add(Number<f.bits>());
      else add(Number<0>());
    }
  }
}

}  // namespace sc

#endif
