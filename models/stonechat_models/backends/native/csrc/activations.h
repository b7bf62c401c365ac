// Quantised activations.
//
// A row consists of groups of 48 bytes: 32 int8 values q with x ~ scale * q, then the scale and the
// sums that the products need.  So a row is written as one stream, and threads that write different
// rows share no cache line.
#pragma once
#include <cstring>
#include <vector>

#include "matrix.h"
#include "simd.h"

namespace sc {

// A group of quantised activations.
struct ActGroup {
  int8_t q[kGroup];
  float scale;
  float sum;         // scale * isum
  int32_t isum;      // sum of q
  int32_t isum_low;  // sum of the first 16
};
static_assert(sizeof(ActGroup) == 48);

// Rows of k values: quantised and, if a float matrix reads them, also as floats.
struct Act {
  int k = 0;
  uint8_t* groups = nullptr;  // row r, group g: ActGroup at r * stride + g * 48
  size_t stride = 0;          // an odd number of cache lines: rows fall into different cache sets
  float* f = nullptr;         // [row][k], or null

  static size_t row_stride(int k) {
    size_t lines = (size_t(k / kGroup) * sizeof(ActGroup) + 63) / 64;
    return (lines | 1) * 64;
  }
  static size_t bytes(int k, int rows, bool floats) {
    return size_t(rows) * (row_stride(k) + (floats ? size_t(k) * 4 : 0)) + 64;
  }

  void place(uint8_t* memory, int k_, int rows, bool floats) {
    memory += (64 - reinterpret_cast<size_t>(memory) % 64) % 64;
    k = k_;
    groups = memory;
    stride = row_stride(k);
    f = floats ? reinterpret_cast<float*>(memory + size_t(rows) * stride) : nullptr;
  }

  const uint8_t* row(int r) const { return groups + size_t(r) * stride; }
  const ActGroup& group(int r, int g) const {
    return reinterpret_cast<const ActGroup*>(row(r))[g];
  }

  void copy(int row_to, const Act& from, int row_from) const {
    std::memcpy(groups + size_t(row_to) * stride, from.row(row_from), stride);
    if (f == nullptr) return;
    const size_t width = size_t(k);
    std::memcpy(f + size_t(row_to) * width, from.f + size_t(row_from) * width, width * 4);
  }

  // Stores group g (32 values) of a row.
  void put(int row, int g, F16 lo, F16 hi) const {
    float top = reduce_max(max(abs(lo), abs(hi)));
    F16 inverse = set1(top > 0.0f ? 127.0f / top : 0.0f);
    F16 q_lo = round(mul(lo, inverse)), q_hi = round(mul(hi, inverse));
    float low = reduce_add(q_lo), total = low + reduce_add(q_hi);  // integers: exact
    auto* out = reinterpret_cast<ActGroup*>(groups + size_t(row) * stride) + g;
    store_i8(out->q, q_lo);
    store_i8(out->q + 16, q_hi);
    out->scale = top / 127.0f;
    out->sum = out->scale * total;
    out->isum = int32_t(total);
    out->isum_low = int32_t(low);
    if (f != nullptr) {
      float* to = f + size_t(row) * size_t(k) + size_t(g) * kGroup;
      store(to, lo);
      store(to + 16, hi);
    }
  }

  // Stores all k values of a row.
  void put_row(int row, const float* x) const {
    for (int i = 0; i < k; i += kGroup) put(row, i / kGroup, load(x + i), load(x + i + 16));
  }
};

// Rows of activations with their own memory, which only grows.
struct ActBuffer : Act {
  ActBuffer() = default;
  ActBuffer(ActBuffer&&) = default;  // a copy would point into the memory of the original

  void reserve(int columns, int rows, bool floats) {
    const size_t needed = bytes(columns, rows, floats);
    if (memory.size() < needed) memory.assign(needed, 0);
    place(memory.data(), columns, rows, floats);
  }

  std::vector<uint8_t> memory;
};

}  // namespace sc
