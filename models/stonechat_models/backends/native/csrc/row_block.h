// A block of rows of activations that is multiplied by panels, one after the other.
#pragma once
#include <algorithm>
#include <vector>

#include "activations.h"
#include "amx.h"
#include "simd_attention.h"

namespace sc {

inline constexpr int kRowBlock = 128;  // rows of a block, at most
inline constexpr int kTileRows = 16;   // rows of a tile (amx.h)

// A group of 16 rows, in the order in which tiles are loaded.
struct alignas(64) TileGroup {
  static constexpr int kValues = kGroup;
  static constexpr bool kIsWhole = true;
  int8_t q[kTileRows][kGroup];
  float scale[kTileRows];
  float sum[kTileRows];
};

// A block of 16 rows.
struct alignas(64) TileBlock {
  static constexpr int kValues = kBlock;
  static constexpr bool kIsWhole = false;
  int8_t q[kBlock / 64][kTileRows][64];
  bf16_t sums[kTileRows][2][kBlock / 16];  // each short sum, as a sum of two numbers
  float scale[kTileRows];
  int num_outliers;
  Outlier outliers[kTileRows * kMostOutliers];  // row by row
};

// 32 floats of each of 16 rows, as sums of two bfloat16 numbers (pair_tiles.h).
struct alignas(64) PairGroup {
  static constexpr int kValues = kGroup;
  static constexpr bool kIsWhole = false;
  bf16_t first[kTileRows][kGroup], second[kTileRows][kGroup];
};

struct RowBlock {
  RowBlock(const Act& activations, int first, int rows)
      : x(activations), from(first), count(rows) {}

  const Act& x;
  const int from, count;

  // The groups of the rows as [tile][group].  They are copied at the first call; the memory belongs
  // to the thread and serves its next block.
  const TileGroup* tiles() const {
    if (tiles_ == nullptr) tiles_ = copied<TileGroup>();
    return tiles_;
  }
  // The same for their blocks of 256, and for their floats.
  const TileBlock* blocks() const {
    if (blocks_ == nullptr) blocks_ = copied<TileBlock>();
    return blocks_;
  }
  const PairGroup* pairs() const {
    if (pairs_ == nullptr) pairs_ = copied<PairGroup>();
    return pairs_;
  }

 private:
  // The last row also fills the rest of the last tile.  An only tile may lack rows if not kIsWhole.
  template <class Group>
  const Group* copied() const {
    thread_local std::vector<Group> memory;
    const int tiles = (count + kTileRows - 1) / kTileRows, groups = x.k / Group::kValues;
    if (memory.size() < size_t(tiles * groups)) memory.resize(size_t(tiles * groups));
    const int rows = tiles > 1 || Group::kIsWhole ? tiles * kTileRows : count;
    for (int i = 0; i < rows; ++i) {
      const int row = from + std::min(i, count - 1);
      Group* to = &memory[size_t(i / kTileRows * groups)];
      for (int g = 0; g < groups; ++g) copy_row(row, g, i % kTileRows, to[g]);
    }
    return memory.data();
  }

  void copy_row(int row, int g, int i, TileGroup& to) const {
    const ActGroup& group = x.groups(row)[g];
    std::memcpy(to.q[i], group.q, kGroup);
    to.scale[i] = group.scale;
    to.sum[i] = group.sum;
  }

  void copy_row(int row, int b, int i, TileBlock& to) const {
    const ActBlock& block = x.blocks(row)[b];
    for (int j = 0; j < kBlock / 64; ++j) std::memcpy(to.q[j][i], block.q + 64 * j, 64);
    const F16 sums = load(block.short_sums);
    store_bf16(to.sums[i][0], sums);
    store_bf16(to.sums[i][1], sub(sums, load_bf16(to.sums[i][0])));
    to.scale[i] = block.scale;
    if (i == 0) to.num_outliers = 0;
    for (int j = 0; j < block.num_outliers; ++j) {
      Outlier& outlier = to.outliers[to.num_outliers++];
      outlier = block.outliers[j];
      outlier.row = uint8_t(i);
    }
  }

  void copy_row(int row, int g, int i, PairGroup& to) const {
    const float* f = x.f + size_t(row) * size_t(x.k) + size_t(g) * kGroup;
    for (int j = 0; j < kGroup; j += 16) {
      const F16 value = load(f + j);
      store_bf16(to.first[i] + j, value);
      store_bf16(to.second[i] + j, sub(value, load_bf16(to.first[i] + j)));
    }
  }

  mutable const TileGroup* tiles_ = nullptr;
  mutable const TileBlock* blocks_ = nullptr;
  mutable const PairGroup* pairs_ = nullptr;
};

}  // namespace sc
