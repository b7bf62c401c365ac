// The codes of a group: 32 weights of each of the 16 columns of a panel.
//
// Unpacked, they are 8 rows of 64 bytes: byte [4 c + i] of row j is u of column c at k = 4 j + i.
// A code's bits lie in planes, one behind the other:
//   8 bits    8 lines of 64 bytes: row j is line j
//   4 bits    4 lines: the low nibbles of line j are row j, the high ones row j + 4
//   2 bits    2 lines: bits 2 s, 2 s + 1 of line l are row 4 l + s
//   1 bit     1 line: bit j is row j
// 6-bit codes have planes of their low 4 and their high 2 bits; 5 = 4 + 1 bits, and 3 = 2 + 1.
#pragma once
#include "matrix.h"
#include "simd.h"

namespace sc {

// u of a 4-bit code: its value + 128, or its value + 12.
alignas(16) inline constexpr uint8_t kNonLinear[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                       129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) inline constexpr uint8_t kFloats[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                    12, 11, 10, 9,  8,  6,  4,  0};

// Bits that u needs: the width of the product with it.
inline constexpr int unsigned_bits(const Format& f) {
  return f.table == Table::kNonLinear4 ? 8 : f.table == Table::kFloat4 ? 5 : f.bits;
}

// Row J of a group.
template <int KindOf, int J>
inline B64 code_row(const uint8_t* codes) {
  constexpr Format f = kFormats[KindOf];
  if constexpr (f.bits == 8) {
    return load_bytes(codes + 64 * J);
  } else if constexpr (f.bits >= 4) {
    const B64 low = shift < J<4 ? 0 : -4>(load_bytes(codes + J % 4 * 64));
    const uint8_t* high = codes + 4 * 64;
    if constexpr (f.bits == 4) {
      const B64 u = masked<15>(low);
      if constexpr (f.table == Table::kNonLinear4) return lookup(kNonLinear, u);
      else if constexpr (f.table == Table::kFloat4) return lookup(kFloats, u);
      else return u;
    } else if constexpr (f.bits == 5) {
      return masked<31>(merged<15>(low, shift<4 - J>(load_bytes(high))));
    } else {
      return masked<63>(merged<15>(low, shift<4 - J % 4 * 2>(load_bytes(high + J / 4 * 64))));
    }
  } else {
    const B64 low = shift<J % 4 * -2>(load_bytes(codes + J / 4 * 64));
    if constexpr (f.bits == 2) return masked<3>(low);
    else return masked<7>(merged<3>(low, shift<2 - J>(load_bytes(codes + 2 * 64))));
  }
}

// Byte i of each of 16 words, as floats.
inline F16 bytes_of_words(const uint8_t* words, int i) {
  const B64 all = load_bytes(words);
  if (i < 2) return i == 0 ? field<0, 8>(all) : field<8, 8>(all);
  return i == 2 ? field<16, 8>(all) : field<24, 8>(all);
}

// The groups of a panel in order, as they are packed.
template <int KindOf>
class PackedCodes {
 public:
  PackedCodes(const uint8_t* panel, int k)
      : codes_(panel + head_bytes(KindOf, k) - group_bytes(KindOf)),
        ahead_(panel_bytes(KindOf, k)) {}

  void next() {
    codes_ += group_bytes(KindOf);
    for (int i = 0; i < kFormats[KindOf].bits; ++i) prefetch_far(codes_ + 64 * i + ahead_);
  }
  template <int J>
  B64 row() const {
    return code_row<KindOf, J>(codes_);
  }
  // The 16 codes at k = `at` of the next block, as floats.
  F16 column(int at) const {
    alignas(64) uint8_t rows[8][64];
    const uint8_t* codes = codes_ + size_t(1 + at / kGroup) * group_bytes(KindOf);
    unrolled<8>([&](auto j) { store_bytes(rows[j], code_row<KindOf, j>(codes)); });
    return bytes_of_words(rows[at % kGroup / 4], at % 4);
  }

 private:
  const uint8_t* codes_;
  size_t ahead_;
};

// All 8 rows of a group.
template <int KindOf>
inline void unpack_group(const uint8_t* codes, B64* rows) {
  unrolled<8>([&](auto j) { rows[j] = code_row<KindOf, j>(codes); });
}

}  // namespace sc
