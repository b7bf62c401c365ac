// A few groups of a panel with one byte for each code, to be multiplied by many rows.
#pragma once
#include "codes.h"
#include "scales.h"

namespace sc {

inline constexpr int kChunk = 16;  // groups that are unpacked together

struct Unpacked {
  alignas(64) uint8_t codes[kChunk][8][64];
  float d[kChunk][kPanel], m[kChunk][kPanel];
};

// Unpacks the groups of a panel, one chunk after the other, and prefetches the scales of the next
// panel.  `Fetches`: its codes too.
template <int KindOf, bool Fetches>
class Unpacker {
 public:
  static constexpr Format kFormat = kFormats[KindOf];

  Unpacker(const uint8_t* panel, int k)
      : codes_(panel + head_bytes(KindOf, k)), ahead_(panel_bytes(KindOf, k)), scales_(panel, k) {}

  // Unpacks the next `groups`.  change(row) is stored in the place of each row of codes.
  template <class Change>
  void next(int groups, Unpacked& to, Change change) {
    for (int g = 0; g < groups; ++g, codes_ += group_bytes(KindOf)) {
      B64 rows[8];
      unpack_group<KindOf>(codes_, rows);
      unrolled<8>([&](auto j) { store_bytes(to.codes[g][j], change(rows[j])); });
      for (int i = 0; Fetches && i < kFormat.bits; ++i) prefetch_far(codes_ + 64 * i + ahead_);
      scales_.next();
      store(to.d[g], scales_.d[0]);
      if constexpr (kFormat.is_affine) store(to.m[g], scales_.m[0]);
    }
  }

 private:
  const uint8_t* codes_;
  size_t ahead_;
  Scales<KindOf> scales_;
};

}  // namespace sc
