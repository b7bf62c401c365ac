// Loops of a pool's members over the panels of a matrix.
//
// An item is a run of panels for a block of rows, whose activations stay in the L2 cache.
//
// Invariant: each pair of a panel and a row is in one item, so items write different outputs.
#pragma once
#include <algorithm>
#include <optional>

#include "products.h"
#include "pool.h"

namespace sc {

inline constexpr int kMaxChunk = 32;  // panels of an item, at most
inline constexpr int kBlockValues = 1 << 18;  // activations of a block: 0.4 MB

// How many panels make an item, so that there are at least `items_per_member` of each row block.
inline int panels_per_item(const Pool& pool, int panels, int items_per_member) {
  return std::max(1, std::min(kMaxChunk, panels / (pool.size() * items_per_member)));
}

// Rows of a block whose rows have k values.
inline int rows_per_block(int k) {
  const int rows = kBlockValues / k / kTileRows * kTileRows;
  return std::max(kTileRows, std::min(kRowBlock, rows));
}

// One phase: calls body(panel, block) for all panels and all blocks of the first `rows` rows of x.
template <class Body>
inline void each_panel(Pool& pool, int panels, const Act& x, int rows, Body body,
                       bool is_last = false) {
  const int chunk = panels_per_item(pool, panels, 6), chunks = (panels + chunk - 1) / chunk;
  const int size = rows_per_block(x.k), blocks = (rows + size - 1) / size;
  std::optional<RowBlock> block;  // of the calling member, which may copy it for its tiles
  auto item_panels = [&](int item) {
    const int row = item / chunks * size, panel = item % chunks * chunk;
    if (!block || block->from != row) block.emplace(x, row, std::min(size, rows - row));
    for (int p = panel; p < std::min(panels, panel + chunk); ++p) body(p, *block);
  };
  pool.for_each(chunks * blocks, item_panels, is_last);
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
