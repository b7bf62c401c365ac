// A block of rows of activations that is multiplied by panels, one after the other.
#pragma once
#include <algorithm>
#include <vector>

#include "activations.h"
#include "amx.h"

namespace sc {

inline constexpr int kRowBlock = 128;  // rows of a block, at most
inline constexpr int kTileRows = 16;   // rows of a tile (amx.h)

// A group of 16 rows, in the order in which tiles are loaded.
struct alignas(64) TileGroup {
  int8_t q[kTileRows][kGroup];
  float scale[kTileRows];
  float sum[kTileRows];
};

struct RowBlock {
  RowBlock(const Act& activations, int first, int rows)
      : x(activations), from(first), count(rows) {}

  const Act& x;
  const int from, count;

  // The rows as [tile][group].  They are copied at the first call; the memory belongs to the thread
  // and serves its next block.
  const TileGroup* tiles() const {
    if (tiles_ == nullptr) tiles_ = copy_tiles();
    return tiles_;
  }

 private:
  const TileGroup* copy_tiles() const {
    thread_local std::vector<TileGroup> memory;
    const int tiles = (count + kTileRows - 1) / kTileRows, groups = x.k / kGroup;
    if (memory.size() < size_t(tiles * groups)) memory.resize(size_t(tiles * groups));
    for (int t = 0; t < tiles; ++t) {
      for (int g = 0; g < groups; ++g) copy_group(t, g, &memory[size_t(t * groups + g)]);
    }
    return memory.data();
  }

  // The last row also fills the rest of the last tile.
  void copy_group(int tile, int g, TileGroup* to) const {
    for (int i = 0; i < kTileRows; ++i) {
      const ActGroup& group = x.group(from + std::min(tile * kTileRows + i, count - 1), g);
      std::memcpy(to->q[i], group.q, kGroup);
      to->scale[i] = group.scale;
      to->sum[i] = group.sum;
    }
  }

  mutable const TileGroup* tiles_ = nullptr;
};

}  // namespace sc
