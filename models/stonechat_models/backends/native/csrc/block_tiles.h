// Products of many rows with weights in blocks of 256, on the tiles of AMX.  They have the bits of
// block_products.h, since all sums within a block are exact.
//
// Each code is multiplied by the scale of its run while it is unpacked, so that one run of tile
// products adds up a whole block.  A product that takes more than 8 bits is split into two digits,
// each of which has a tile of sums.
#pragma once
#include "amx.h"
#include "codes.h"
#include "row_block.h"
#include "scales.h"

#if SC_AMX

namespace sc {

inline constexpr int kMinBlockRows = 9;  // fewer rows are faster without tiles

// How u * scale becomes bytes.
//   kByte     it is below 256
//   kHalves   the scale is split: u times its low 3 bits, and u times the bits above
//   kBytes    the product of u - offset and the scale is split into two bytes
enum class Split { kByte, kHalves, kBytes };

inline constexpr Split split_of(int kind) {
  if (kind == kQ2_K) return Split::kByte;
  return kind == kQ4_K || kind == kQ5_K ? Split::kHalves : Split::kBytes;
}

// How much higher the second digit is.
inline constexpr int digit_bits(Split split) { return split == Split::kHalves ? 3 : 8; }

// A block of weights in the order in which tiles are loaded.
struct ScaledBlock {
  alignas(64) uint8_t digits[2][kBlock / kGroup][8][64];  // the low ones, the high ones
  alignas(64) bf16_t minima[2][8][kPanel][2];  // of runs 2 i, 2 i + 1; twice, for both parts of sums
  F16 d, least;
};

// Both halves of each lane.
inline __m512i in_both_halves(__m512i a) {
  return _mm512_or_si512(_mm512_slli_epi32(a, 16),
                         _mm512_and_si512(a, _mm512_set1_epi32(0xffff)));
}

// Multiplies unpacked codes by the scales of a run.
template <int KindOf>
class Scaler {
 public:
  explicit Scaler(const float* scale) {
    const __m512i both = in_both_halves(to_int(load(scale)).v);
    if constexpr (kSplit == Split::kByte) {
      a_ = both;
    } else if constexpr (kSplit == Split::kHalves) {
      a_ = _mm512_and_si512(both, _mm512_set1_epi16(7));
      b_ = _mm512_srli_epi16(both, 3);
    } else {
      a_ = _mm512_and_si512(both, _mm512_set1_epi16(255));
      b_ = _mm512_slli_epi16(both, 8);
      offset_ = _mm512_mullo_epi16(both, _mm512_set1_epi16(kFormats[KindOf].offset));
    }
  }

  void scale(B64 u, uint8_t* low, uint8_t* high) const {
    if constexpr (kSplit == Split::kBytes) {
      const __m512i even = _mm512_sub_epi16(_mm512_maddubs_epi16(u.v, a_), offset_);
      const __m512i odd = _mm512_sub_epi16(_mm512_maddubs_epi16(u.v, b_), offset_);
      constexpr __mmask64 kOdd = 0xaaaaaaaaaaaaaaaa;
      _mm512_store_si512(low, _mm512_mask_mov_epi8(even, kOdd, _mm512_slli_epi16(odd, 8)));
      _mm512_store_si512(high, _mm512_mask_mov_epi8(_mm512_srli_epi16(even, 8), kOdd, odd));
    } else {  // the products of neighbouring bytes do not meet
      _mm512_store_si512(low, _mm512_mullo_epi16(u.v, a_));
      if constexpr (kSplit == Split::kHalves) {
        _mm512_store_si512(high, _mm512_mullo_epi16(u.v, b_));
      }
    }
  }

 private:
  static constexpr Split kSplit = split_of(KindOf);

  __m512i a_, b_, offset_;
};

inline constexpr int kBlockSteps = 2 * kBlock / 64;  // of the products of a block

// The codes of the next panel are prefetched a few lines at a time: a core that waits for many at once
// cannot read its own caches until they arrive.  Beside each step of the first products of a block:
template <int KindOf>
inline constexpr int kStepLines = std::min(4, kFormats[KindOf].bits);
// And while each of its groups is unpacked:
template <int KindOf>
inline constexpr int kGroupLines = kFormats[KindOf].bits - kStepLines<KindOf>;
static_assert(kBlockSteps == kBlock / kGroup);

// Unpacks a block and scales its codes.
template <int KindOf>
inline void scale_block(const uint8_t* codes, const BlockScales<KindOf>& scales,
                        const uint8_t*& ahead, ScaledBlock& to) {
  constexpr int kParts = kFormats[KindOf].parts, kLength = 8 / kParts;
  for (int g = 0; g < kBlock / kGroup; ++g, codes += group_bytes(KindOf)) {
    unrolled<kGroupLines<KindOf>>([&](auto i) { prefetch_far(ahead + 64 * i); });
    ahead += 64 * kGroupLines<KindOf>;
    unrolled<kParts>([&](auto part) {
      const Scaler<KindOf> scaler(scales.scale + (g * kParts + part) * kPanel);
      unrolled<kLength>([&](auto i) {
        constexpr int j = part * kLength + i;
        scaler.scale(code_row<KindOf, j>(codes), to.digits[0][g][j], to.digits[1][g][j]);
      });
    });
  }
  to.d = scales.d;
  if constexpr (kFormats[KindOf].is_affine) {
    to.least = scales.least;
    for (int i = 0; i < 8; ++i) {
      const float* even = scales.minimum + i * kParts * kPanel;
      const __m512i a = _mm512_castps_si512(load(even).v);
      const __m512i b = _mm512_castps_si512(load(even + (kParts - 1) * kPanel).v);
      const __m512i pair = _mm512_mask_mov_epi16(_mm512_srli_epi32(a, 16), 0xaaaaaaaa, b);
      _mm512_store_si512(to.minima[0][i], pair);
      _mm512_store_si512(to.minima[1][i], pair);
    }
  }
}

// One or two tiles of rows that have been multiplied by a block, but not added to their outputs.
struct PendingSums {
  alignas(64) int32_t digits[2][2][kTileRows][kPanel];  // [tile][low, high]
  alignas(64) float minima[2][kTileRows][kPanel];
  F16 d, least;
  const TileBlock* x[2];  // of each tile
  int rows = 0;
  F16* out;
};

// out[r] += the outliers of the first `rows` rows of a tile times their weights.
template <int KindOf>
inline void add_outliers(const TileBlock& x, const ScaledBlock& w,
                         const BlockScales<KindOf>& scales, int rows, F16* out) {
  constexpr Split kSplit = split_of(KindOf);
  for (int i = 0; i < x.num_outliers && x.outliers[i].row < rows; ++i) {
    const Outlier& outlier = x.outliers[i];
    const int g = outlier.at / kGroup, j = outlier.at % kGroup / 4;
    const __m128i up = _mm_cvtsi32_si128(24 - outlier.at % 4 * 8);  // the byte becomes the highest
    const __m512i low = _mm512_sll_epi32(load_bytes(w.digits[0][g][j]).v, up);
    __m512i scaled = _mm512_srli_epi32(low, 24);
    if constexpr (kSplit != Split::kByte) {
      const __m512i high = _mm512_sll_epi32(load_bytes(w.digits[1][g][j]).v, up);
      const __m512i digit = kSplit == Split::kBytes ? _mm512_srai_epi32(high, 24)
                                                    : _mm512_srli_epi32(high, 24);
      scaled = _mm512_add_epi32(scaled, _mm512_slli_epi32(digit, digit_bits(kSplit)));
    }
    const F16 weight = scales.weight(to_float({scaled}), scales.run_of(outlier.at) * kPanel);
    out[outlier.row] = fma(set1(outlier.value), weight, out[outlier.row]);
  }
}

// Adds the sums of `Rows` rows, which are in one tile.
template <int KindOf, int Rows>
inline void add_rows(const PendingSums& sums, int first) {
  constexpr Split kSplit = split_of(KindOf);
  const int tile = first / kTileRows;
  F16* out = sums.out + first;
  const float* scale = sums.x[tile]->scale + first % kTileRows;
  const auto(*digits)[kTileRows][kPanel] = sums.digits[tile];
  for (int r = 0; r < Rows; ++r) {
    const int i = first % kTileRows + r;
    __m512i total = load_i16(digits[0][i]).v;
    if constexpr (kSplit != Split::kByte) {
      const __m512i high = load_i16(digits[1][i]).v;
      total = _mm512_add_epi32(total, _mm512_slli_epi32(high, digit_bits(kSplit)));
    }
    F16 value = mul(sums.d, to_float({total}));
    if constexpr (kFormats[KindOf].is_affine) {
      value = fma(sums.least, load(sums.minima[tile][i]), value);
    }
    out[r] = fma(set1(scale[r]), value, out[r]);
  }
}

// Multiplies one or two tiles of rows by a block: x, and the tile `next` blocks on.  Calls
// other_work(i) after step i of the products, since vectors and tiles work at the same time; all of it
// is done before `to` is written.
template <int KindOf, int Tiles, class Work>
inline void multiply_block(const TileBlock* x, int next, const ScaledBlock& w, PendingSums& to,
                           Work other_work) {
  constexpr Split kSplit = split_of(KindOf);
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int i = 0; i < kBlock / 64; ++i) {
    tile_load<4>(x->q[i], 64);
    tile_load<6>(w.digits[0][2 * i], 64);
    tile_dot_bytes<0, 4, 6>();
    if constexpr (Tiles == 2) {
      tile_load<5>(x[next].q[i], 64);
      tile_dot_bytes<2, 5, 6>();
    }
    other_work(2 * i);
    if constexpr (kSplit != Split::kByte) tile_load<7>(w.digits[1][2 * i], 64);
    if constexpr (kSplit == Split::kHalves) {
      tile_dot_bytes<1, 4, 7>();
      if constexpr (Tiles == 2) tile_dot_bytes<3, 5, 7>();
    } else if constexpr (kSplit == Split::kBytes) {
      tile_dot_int8<1, 4, 7>();
      if constexpr (Tiles == 2) tile_dot_int8<3, 5, 7>();
    }
    other_work(2 * i + 1);
  }
  tile_store<0>(to.digits[0][0], 64);
  if constexpr (kSplit != Split::kByte) tile_store<1>(to.digits[0][1], 64);
  if constexpr (Tiles == 2) {
    tile_store<2>(to.digits[1][0], 64);
    if constexpr (kSplit != Split::kByte) tile_store<3>(to.digits[1][1], 64);
  }
  if constexpr (kFormats[KindOf].is_affine) {
    tile_load<6>(w.minima, 64);
    tile_load<4>(x->sums, 64);
    tile_zero<0>();
    tile_dot_pairs<0, 4, 6>();
    tile_store<0>(to.minima[0], 64);
    if constexpr (Tiles == 2) {
      tile_load<5>(x[next].sums, 64);
      tile_zero<2>();
      tile_dot_pairs<2, 5, 6>();
      tile_store<2>(to.minima[1], 64);
    }
  }
}

// out[r] += row r of the block of rows times a panel.  `out` has room for whole tiles.
template <int KindOf>
inline void tile_blocks(const uint8_t* panel, const RowBlock& rows, F16* out) {
  constexpr size_t kBytes = kBlock / kGroup * group_bytes(KindOf);
  const int k = rows.x.k, blocks = k / kBlock;
  const TileBlock* x = rows.blocks();
  const uint8_t* codes = panel + head_bytes(KindOf, k);
  const uint8_t* ahead = codes + panel_bytes(KindOf, k);
  BlockHeads<KindOf> heads(panel, k);
  ScaledBlock w;
  PendingSums sums;
  use_tiles(kRowShapes[size_t(std::min(rows.count, kTileRows)) - 1]);
  for (int b = 0; b < blocks; ++b, codes += kBytes) {
    const BlockScales<KindOf>& scales = heads.next();
    scale_block<KindOf>(codes, scales, ahead, w);
    for (int r = 0; r < rows.count; r += 2 * kTileRows) {
      const TileBlock* tile = x + r / kTileRows * blocks + b;
      const int count = std::min(rows.count - r, 2 * kTileRows);
      auto add_last = [&](int step) {
        if (r == 0) {
          unrolled<kStepLines<KindOf>>([&](auto i) { prefetch_far(ahead + 64 * i); });
          ahead += 64 * kStepLines<KindOf>;
        }
        if (sums.rows == 2 * kTileRows) return add_rows<KindOf, 4>(sums, step * 4);
        for (int i = step; i < sums.rows; i += kBlockSteps) add_rows<KindOf, 1>(sums, i);
      };
      if (count > kTileRows) multiply_block<KindOf, 2>(tile, blocks, w, sums, add_last);
      else multiply_block<KindOf, 1>(tile, blocks, w, sums, add_last);
      for (int i = 0; i * kTileRows < count; ++i) {
        const int first = i * kTileRows;
        add_outliers<KindOf>(tile[i * blocks], w, scales, count - first, out + r + first);
      }
      sums.x[0] = tile;
      sums.x[1] = tile + blocks;
      sums.d = w.d;
      sums.least = w.least;
      sums.rows = count;
      sums.out = out + r;
    }
  }
  for (int i = 0; i < sums.rows; ++i) add_rows<KindOf, 1>(sums, i);
}

}  // namespace sc

#endif
