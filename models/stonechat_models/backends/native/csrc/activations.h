// Activations, in the forms that the products read.
//
//   groups   32 int8 values q with x ~ scale * q, for weights in blocks of 32
//   blocks   256 of them, for weights in blocks of 256; outliers are set apart
//   floats   for float weights; blocks are made of them too
//
// A quantised row is one stream: its groups, then its blocks, each with the scale and the sums that
// the products need.  So threads that write different rows share no cache line.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "matrix.h"
#include "simd.h"

namespace sc {

// A group of quantised activations.
struct alignas(16) ActGroup {
  int8_t q[kGroup];
  float scale;
  float sum;     // scale * isum
  int32_t isum;  // sum of q
};
static_assert(sizeof(ActGroup) == 48);

inline constexpr int kMostOutliers = 8;  // of a block

// A value far above the rest of its block, which stays a float.
struct Outlier {
  float value;
  uint8_t at;   // its place in the block, where q is 0
  uint8_t row;  // in a tile (row_block.h)
};

// A block of them.
struct ActBlock {
  int8_t q[kBlock];
  float scale;
  int32_t num_outliers;
  float short_sums[kBlock / 16];     // of each 16 values q: integers
  float long_sums[kBlock / kGroup];  // of each 32
  Outlier outliers[kMostOutliers];
};

// Rows of k values.
struct Act {
  int k = 0;
  uint8_t* rows = nullptr;  // row r: at r * stride
  size_t stride = 0;        // an odd number of cache lines: rows fall into different cache sets
  size_t blocks_at = 0;     // bytes of a row's groups
  Forms forms;
  float* f = nullptr;  // [row][k], or null

  static size_t groups_bytes(int k, const Forms& forms) {
    return forms.groups ? size_t(k / kGroup) * sizeof(ActGroup) : 0;
  }
  static size_t blocks_bytes(int k, const Forms& forms) {
    return forms.blocks ? size_t(k / kBlock) * sizeof(ActBlock) : 0;
  }
  static size_t row_stride(int k, const Forms& forms) {
    return ((groups_bytes(k, forms) + blocks_bytes(k, forms) + 63) / 64 | 1) * 64;
  }
  static bool keeps_floats(const Forms& forms) { return forms.floats || forms.blocks; }
  static size_t bytes(int k, int rows, const Forms& forms) {
    const size_t floats = keeps_floats(forms) ? size_t(k) * 4 : 0;
    return size_t(rows) * (row_stride(k, forms) + floats) + 64;
  }

  void place(uint8_t* memory, int k_, int num_rows, const Forms& forms_) {
    memory += (64 - reinterpret_cast<size_t>(memory) % 64) % 64;
    k = k_;
    forms = forms_;
    rows = memory;
    stride = row_stride(k, forms);
    blocks_at = groups_bytes(k, forms);
    float* floats = reinterpret_cast<float*>(memory + size_t(num_rows) * stride);
    f = keeps_floats(forms) ? floats : nullptr;
  }

  uint8_t* row(int r) const { return rows + size_t(r) * stride; }
  ActGroup* groups(int r) const { return reinterpret_cast<ActGroup*>(row(r)); }
  ActBlock* blocks(int r) const { return reinterpret_cast<ActBlock*>(row(r) + blocks_at); }

  // Copies a row of activations that have at least these forms.
  void copy(int row_to, const Act& from, int row_from) const {
    std::memcpy(groups(row_to), from.groups(row_from), groups_bytes(k, forms));
    std::memcpy(blocks(row_to), from.blocks(row_from), blocks_bytes(k, forms));
    if (f == nullptr) return;
    const size_t width = size_t(k);
    std::memcpy(f + size_t(row_to) * width, from.f + size_t(row_from) * width, width * 4);
  }

  // Stores values 32 g .. 32 g + 31 of a row.  `finish` ends a row.
  void put(int row, int g, F16 lo, F16 hi) const {
    if (f != nullptr) {
      float* to = f + size_t(row) * size_t(k) + size_t(g) * kGroup;
      store(to, lo);
      store(to + 16, hi);
    }
    if (forms.groups) put_group(lo, hi, groups(row)[g]);
  }

  // Makes the blocks of a row whose values have all been put.
  void finish(int row) const {
    if (!forms.blocks) return;
    const float* x = f + size_t(row) * size_t(k);
    for (int b = 0; b < k / kBlock; ++b) put_block(x + size_t(b) * kBlock, blocks(row)[b]);
  }

  // Stores all k values of a row, and finishes it.
  void put_row(int row, const float* x) const {
    for (int i = 0; i < k; i += kGroup) put(row, i / kGroup, load(x + i), load(x + i + 16));
    finish(row);
  }

 private:
  // What values up to `top` are multiplied by.  Where 127 / top may overflow, they count as zeros.
  static F16 inverse_scale(float top) { return set1(top > 1e-36f ? 127.0f / top : 0.0f); }

  // The scale of values up to `top`, which have this sum as integers.  It is NaN if one of them is.
  static float scale_of(float top, float total) { return top / 127.0f + 0.0f * total; }

  static void put_group(F16 lo, F16 hi, ActGroup& out) {
    float top = reduce_max(max(abs(lo), abs(hi)));
    F16 inverse = inverse_scale(top);
    F16 q_lo = round(mul(lo, inverse)), q_hi = round(mul(hi, inverse));
    const float total = reduce_add(add(q_lo, q_hi));  // of integers: exact
    store_i8(out.q, q_lo);
    store_i8(out.q + 16, q_hi);
    out.scale = scale_of(top, total);
    out.sum = out.scale * total;
    out.isum = total == total ? int32_t(total) : 0;  // a scale that is NaN makes NaN of all
  }

  // The largest and the mean magnitude of a block.
  struct Sizes {
    explicit Sizes(const float* x) {
      F16 tops = set1(0.0f), sums = set1(0.0f);
      for (int i = 0; i < kBlock; i += 16) {
        const F16 size = abs(load(x + i));
        tops = max(tops, size);
        sums = add(sums, size);
      }
      top = reduce_max(tops);
      mean = reduce_add(sums) / kBlock;
    }
    bool has_outlier() const { return top > kFar * mean; }

    float top, mean;
  };
  static constexpr float kFar = 10.0f;  // times the mean magnitude: an outlier

  // Moves the outliers of a block from x to `out`, the largest first.  Returns the largest
  // magnitude that stays.
  static float take_outliers(float* x, float top, ActBlock& out) {
    for (;;) {
      int at = 0;
      while (std::fabs(x[at]) != top) ++at;
      out.outliers[out.num_outliers++] = {x[at], uint8_t(at), 0};
      x[at] = 0.0f;
      const Sizes sizes(x);
      top = sizes.top;
      if (!sizes.has_outlier() || out.num_outliers == kMostOutliers) return top;
    }
  }

  static void put_block(const float* x, ActBlock& out) {
    const Sizes sizes(x);
    float top = sizes.top, rest[kBlock];
    out.num_outliers = 0;
    if (sizes.has_outlier()) {
      std::memcpy(rest, x, sizeof(rest));
      x = rest;
      top = take_outliers(rest, top, out);
    }
    const F16 inverse = inverse_scale(top);
    for (int i = 0; i < kBlock / 16; ++i) {
      const F16 q = round(mul(load(x + 16 * i), inverse));
      store_i8(out.q + 16 * i, q);
      out.short_sums[i] = reduce_add(q);
    }
    float total = 0.0f;
    for (int i = 0; i < kBlock / kGroup; ++i) {
      out.long_sums[i] = out.short_sums[2 * i] + out.short_sums[2 * i + 1];
      total += out.long_sums[i];
    }
    out.scale = scale_of(top, total);
  }
};

// Rows of activations with their own memory, which only grows.
struct ActBuffer : Act {
  ActBuffer() = default;
  ActBuffer(ActBuffer&&) = default;  // a copy would point into the memory of the original

  void reserve(int columns, int num_rows, const Forms& needed) {
    const size_t size = bytes(columns, num_rows, needed);
    if (memory.size() < size) memory.assign(size, 0);
    place(memory.data(), columns, num_rows, needed);
  }

  std::vector<uint8_t> memory;
};

}  // namespace sc
