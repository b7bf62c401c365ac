// Loops of a pool's members over the panels of a matrix.
//
// An item is a run of panels for a block of rows.  A panel is multiplied by all row tiles of its
// block while it is in the L1 cache, and the activations of the block stay in the L2 cache.
//
// Invariant: each pair of a panel and a row is in one item, so items write different outputs.
#pragma once
#include <algorithm>

#include "products.h"
#include "pool.h"

namespace sc {

inline constexpr int kRowBlock = 128;  // rows of a block
inline constexpr int kMaxChunk = 32;   // panels of an item, at most

// How many panels make an item, so that there are at least `items_per_member` of each row block.
inline int panels_per_item(const Pool& pool, int panels, int items_per_member) {
  return std::max(1, std::min(kMaxChunk, panels / (pool.size() * items_per_member)));
}

// Calls body(panel, first row, rows) for the tiles of rows from..to-1 and the panels of one item.
template <class Body>
inline void each_tile(int panel_from, int panel_to, int from, int to, Body body) {
  for (int p = panel_from; p < panel_to; ++p) {
    for (int r = from; r < to; r += kTileRows) body(p, r, std::min(kTileRows, to - r));
  }
}

// One phase: calls body(panel, first row, rows) for all panels and tiles of rows.
template <class Body>
inline void each_panel(Pool& pool, int panels, int rows, Body body, bool is_last = false) {
  const int chunk = panels_per_item(pool, panels, 6);
  const int chunks = (panels + chunk - 1) / chunk, blocks = (rows + kRowBlock - 1) / kRowBlock;
  auto item_tiles = [&](int item) {
    const int row = item / chunks * kRowBlock, panel = item % chunks * chunk;
    each_tile(panel, std::min(panels, panel + chunk), row, std::min(rows, row + kRowBlock), body);
  };
  pool.for_each(chunks * blocks, item_tiles, is_last);
}

// Stores 16 columns from `column` on in a row of `columns` columns.  The last panel may be partly
// padding, which is not stored.
inline void put_columns(float* out, int column, int columns, F16 x) {
  if (column + kPanel <= columns) return store(out + column, x);
  float t[kPanel];
  store(t, x);
  for (int i = 0; column + i < columns; ++i) out[column + i] = t[i];
}

}  // namespace sc
