// Attention over the paged KV cache, in blocks of query rows and tiles of keys.
//
// Cache of a layer, half precision, in tiles of 16 tokens (a block is one or more tiles):
//   keys   [tile][kv head][head_dim][16]    so that a lane is a token
//   values [tile][kv head][16][head_dim]    so that a lane is a dimension
//
// Invariant: a query row processes its keys in spans of 64 at absolute positions, with one fixed
// sequence of operations (a running maximum per span).  So its result does not depend on the other
// rows of its block, on how the prompt is split, or on where its cache blocks lie.  Keys that a row
// may not see get probability exactly 0 and change nothing.
#pragma once
#include <algorithm>

#include "functions.h"
#include "activations.h"

namespace sc {

inline constexpr int kTokens = 16;  // tokens of a cache tile
inline constexpr int kSpan = 64;    // keys of one online-softmax step
inline constexpr int kSpanTiles = kSpan / kTokens;
inline constexpr int kBlockRows = 32;  // query rows of a block: tokens x heads of a group
inline constexpr int kMaxHeadDim = 256;

struct KvCache {
  half_t* keys = nullptr;
  half_t* values = nullptr;
  int heads = 0, dim = 0, tiles_per_block = 1, blocks = 0;

  half_t* key_tile(int tile, int head) const {
    return keys + (size_t(tile) * size_t(heads) + size_t(head)) * size_t(dim) * kTokens;
  }
  half_t* value_tile(int tile, int head) const {
    return values + (size_t(tile) * size_t(heads) + size_t(head)) * size_t(dim) * kTokens;
  }
  // Numbers beyond the range of half precision are clamped.  An infinity would outlive its sequence
  // in the block, and a probability of 0 times infinity is NaN.
  void put(int64_t slot, int head, const float* k, const float* v) const {
    int tile = int(slot / kTokens), lane = int(slot % kTokens);
    half_t* to = key_tile(tile, head);
    for (int d = 0; d < dim; d += 16) {
      half_t h[16];
      store_half(h, clamp(load(k + d)));
      for (int i = 0; i < 16; ++i) to[(d + i) * kTokens + lane] = h[i];
      store_half(value_tile(tile, head) + lane * dim + d, clamp(load(v + d)));
    }
  }
  static F16 clamp(F16 x) { return min(max(x, set1(-65504.0f)), set1(65504.0f)); }
};

// Scratch memory of one thread.
struct AttentionScratch {
  alignas(64) float q[kMaxHeadDim * kBlockRows];    // [d][row], scaled
  alignas(64) float scores[kBlockRows * kSpan];     // then probabilities
  alignas(64) float out[kBlockRows * kMaxHeadDim];  // [row][d]
  alignas(64) float sums[kBlockRows * 16];          // lanes of the row's sum of exponentials
  float top[kBlockRows];
  int position[kBlockRows];
};

// Scores of `Rows` query rows against the keys of `Tiles` tiles.
// `ahead`, if not null, are the tiles of the same size that are needed next.  They are prefetched
// line by line while this span is computed, so that memory and arithmetic overlap.
template <int Rows, int Tiles>
inline void scores_rows(const half_t* const* keys, const half_t* const* ahead, int dim,
                        const float* q, float* out) {
  F16 acc[Rows][Tiles];
  for (int r = 0; r < Rows; ++r)
    for (int t = 0; t < Tiles; ++t) acc[r][t] = set1(0.0f);
  for (int d = 0; d < dim; ++d) {
    F16 k[Tiles];
    for (int t = 0; t < Tiles; ++t) k[t] = load_half(keys[t] + d * kTokens);
    if (ahead && d % 2 == 0) {
      for (int t = 0; t < Tiles; ++t) prefetch(ahead[t] + d * kTokens);
    }
    for (int r = 0; r < Rows; ++r) {
      F16 qr = set1(q[d * kBlockRows + r]);
      for (int t = 0; t < Tiles; ++t) acc[r][t] = fma(qr, k[t], acc[r][t]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int t = 0; t < Tiles; ++t) store(out + r * kSpan + t * kTokens, acc[r][t]);
}

template <int Rows = kQueryRows>
inline void scores_up_to(int rows, const half_t* const* keys, const half_t* const* ahead, int tiles,
                         int dim, const float* q, float* out) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return scores_up_to<Rows - 1>(rows, keys, ahead, tiles, dim, q, out);
  }
  constexpr int kTiles = Rows <= 3 ? 4 : 2;  // enough independent sums to hide the latency
  int t = 0;
  for (; t + kTiles <= tiles; t += kTiles) {
    scores_rows<Rows, kTiles>(keys + t, ahead ? ahead + t : nullptr, dim, q, out + t * kTokens);
  }
  for (; t < tiles; ++t) {
    scores_rows<Rows, 1>(keys + t, ahead ? ahead + t : nullptr, dim, q, out + t * kTokens);
  }
}

// out[r][0..16 Width) += p[r][key] * value[key] over the span's keys.
template <int Rows, int Width>
inline void values_rows(const half_t* const* values, const half_t* const* ahead, int tiles, int dim,
                        const float* p, float* out) {
  F16 acc[Rows][Width];
  for (int r = 0; r < Rows; ++r)
    for (int w = 0; w < Width; ++w) acc[r][w] = load(out + r * kMaxHeadDim + w * 16);
  for (int t = 0; t < tiles; ++t) {
    for (int i = 0; i < kTokens; ++i) {
      F16 v[Width];
      for (int w = 0; w < Width; ++w) v[w] = load_half(values[t] + i * dim + w * 16);
      if (ahead) {
        for (int w = 0; w < Width; w += 2) prefetch(ahead[t] + i * dim + w * 16);
      }
      for (int r = 0; r < Rows; ++r) {
        F16 pr = set1(p[r * kSpan + t * kTokens + i]);
        for (int w = 0; w < Width; ++w) acc[r][w] = fma(pr, v[w], acc[r][w]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int w = 0; w < Width; ++w) store(out + r * kMaxHeadDim + w * 16, acc[r][w]);
}

template <int Rows = kQueryRows>
inline void values_up_to(int rows, const half_t* const* values, const half_t* const* ahead,
                         int tiles, int dim, const float* p, float* out) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return values_up_to<Rows - 1>(rows, values, ahead, tiles, dim, p, out);
  }
  const half_t *at[kSpanTiles], *next[kSpanTiles];
  for (int d = 0; d < dim;) {
    for (int t = 0; t < tiles; ++t) {
      at[t] = values[t] + d;
      next[t] = ahead ? ahead[t] + d : nullptr;
    }
    if (dim - d >= 64) {
      values_rows<Rows, 4>(at, ahead ? next : nullptr, tiles, dim, p, out + d);
      d += 64;
    } else {
      values_rows<Rows, 2>(at, ahead ? next : nullptr, tiles, dim, p, out + d);
      d += 32;
    }
  }
}

// Which keys a query sees, and the cap of its scores.
struct View {
  int window;  // number of keys that a query sees, its own included; 0: all
  float cap;   // argument of soft_cap; 0: no cap
};

// Replaces the scores of one span by exp(score - maximum), and rescales the earlier output to the
// new maximum.
inline void softmax_row(AttentionScratch& s, int r, int start, int tiles, View view, int dim) {
  float* row = s.scores + r * kSpan;
  const int last = s.position[r], first = view.window > 0 ? last - view.window + 1 : 0;
  F16 x[kSpanTiles], top = set1(s.top[r]);
  for (int t = 0; t < tiles; ++t) {
    int base = start + t * kTokens;
    x[t] = load(row + t * kTokens);
    if (view.cap != 0.0f) x[t] = soft_cap(x[t], view.cap);
    if (base + kTokens - 1 > last || base < first) {
      int from = std::min(kTokens, std::max(0, first - base));
      int to = std::min(kTokens, std::max(0, last + 1 - base));
      x[t] = keep_lanes(x[t], from, to, -INFINITY);
    }
    top = max(x[t], top);
  }
  float new_top = reduce_max(top);
  F16 total = load(s.sums + r * 16);
  if (new_top != s.top[r]) {
    F16 shrink = exp(set1(s.top[r] - new_top));
    total = mul(total, shrink);
    float* out = s.out + r * kMaxHeadDim;
    for (int d = 0; d < dim; d += 16) store(out + d, mul(load(out + d), shrink));
    s.top[r] = new_top;
  }
  for (int t = 0; t < tiles; ++t) {
    F16 p = exp(sub(x[t], set1(new_top)));
    store(row + t * kTokens, p);
    total = add(total, p);
  }
  store(s.sums + r * 16, total);
}

// Finds the tiles of a sequence, in order.
struct BlockTable {
  const KvCache& cache;
  const int32_t* blocks;
  int head;

  int tile(int position) const {
    int logical = position / kTokens, per_block = cache.tiles_per_block;
    return blocks[logical / per_block] * per_block + logical % per_block;
  }
  // Keys of the span at `start`.  Tiles past position `last` repeat the last tile.
  void keys(int start, int last, const half_t** out) const {
    for (int t = 0; t < kSpanTiles; ++t) {
      out[t] = cache.key_tile(tile(std::min(start + t * kTokens, last)), head);
    }
  }
  void values(int start, int last, const half_t** out) const {
    for (int t = 0; t < kSpanTiles; ++t) {
      out[t] = cache.value_tile(tile(std::min(start + t * kTokens, last)), head);
    }
  }
  static int first_span(int position, int window) {
    return window > 0 ? std::max(0, position - window + 1) / kSpan * kSpan : 0;
  }
};

// Writes softmax(q K) V to s.out[row][0..dim).  The caller has set s.q and s.position for `rows`
// rows.  `after`: keys of the span that the caller needs next, or null.
inline void attend(AttentionScratch& s, const BlockTable& table, int rows, View view,
                   const half_t* const* after) {
  const int dim = table.cache.dim;
  int first = s.position[0], last = s.position[0];
  for (int r = 1; r < rows; ++r) {
    first = std::min(first, s.position[r]);
    last = std::max(last, s.position[r]);
  }
  for (int r = 0; r < rows; ++r) {
    s.top[r] = -1e30f;  // below any score, and finite so that no NaN arises
    store(s.sums + r * 16, set1(0.0f));
    for (int d = 0; d < dim; d += 16) store(s.out + r * kMaxHeadDim + d, set1(0.0f));
  }
  const half_t *keys[kSpanTiles], *values[kSpanTiles], *next[kSpanTiles];
  int start = BlockTable::first_span(first, view.window);
  table.keys(start, last, keys);
  for (; start <= last; start += kSpan) {
    const int tiles = std::min(kSpan, last + kTokens - start) / kTokens;
    table.values(start, last, values);
    const bool more = start + kSpan <= last;
    if (more) table.keys(start + kSpan, last, next);
    const half_t* const* ahead = more ? next : after;
    for (int r = 0; r < rows; r += kQueryRows) {
      scores_up_to<>(std::min(kQueryRows, rows - r), keys, r == 0 ? values : nullptr, tiles, dim,
                     s.q + r, s.scores + r * kSpan);
    }
    for (int r = 0; r < rows; ++r) softmax_row(s, r, start, tiles, view, dim);
    for (int r = 0; r < rows; r += kQueryRows) {
      values_up_to<>(std::min(kQueryRows, rows - r), values, r == 0 ? ahead : nullptr, tiles, dim,
                     s.scores + r * kSpan, s.out + r * kMaxHeadDim);
    }
    std::copy(next, next + kSpanTiles, keys);
  }
  for (int r = 0; r < rows; ++r) {
    F16 inverse = set1(1.0f / reduce_add(load(s.sums + r * 16)));
    float* out = s.out + r * kMaxHeadDim;
    for (int d = 0; d < dim; d += 16) store(out + d, mul(load(out + d), inverse));
  }
}

}  // namespace sc
