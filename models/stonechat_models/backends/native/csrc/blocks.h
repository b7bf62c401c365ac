// Blocks of GGUF files: how their bits become those of a panel.
#pragma once
#include <cstring>

#include "matrix.h"
#include "simd.h"

namespace sc {

// Where a block has the fields of its head: first 16-bit numbers, then 32-bit words.
struct HeadFields {
  int halves, halves_at, words, words_at;
};

inline constexpr HeadFields head_fields(int kind) {
  switch (kind) {
    case kMXFP4: return {0, 0, 0, 0};
    case kQ4_1:
    case kQ5_1: return {2, 0, 0, 0};
    case kQ2_K: return {2, 80, 4, 0};
    case kQ3_K: return {1, 108, 3, 96};
    case kQ4_K:
    case kQ5_K: return {2, 0, 3, 4};
    case kQ6_K: return {1, 208, 4, 192};
    case kIQ4_XS: return {2, 0, 1, 4};
    default: return {1, 0, 0, 0};
  }
}

// Copies the head of a block into column c of a head of a panel (scales.h).
template <int KindOf>
inline void copy_head(const uint8_t* block, size_t c, uint8_t* head) {
  constexpr HeadFields f = head_fields(KindOf);
  if constexpr (KindOf == kMXFP4) head[c] = block[0];
  for (int i = 0; i < f.halves; ++i)
    std::memcpy(head + 32 * i + 2 * c, block + f.halves_at + 2 * i, 2);
  for (int i = 0; i < f.words; ++i) {
    const int32_t word = load_i32(block + f.words_at + 4 * i);
    constexpr int32_t kFlip = KindOf == kQ6_K ? int32_t(0x80808080u) : 0;
    store_i32(head + 32 * f.halves + 64 * i + 4 * c, word ^ kFlip);
  }
}

// Reads the codes of group g of a block: 4 codes, in bytes, in each word.
template <int KindOf>
inline void read_codes(const uint8_t* block, int g, uint32_t* words) {
  constexpr Format f = kFormats[KindOf];
  constexpr uint32_t k4 = 0x0f0f0f0fu, k2 = 0x03030303u, k1 = 0x01010101u;
  auto word = [](const uint8_t* p, int j) { return uint32_t(load_i32(p + 4 * j)); };
  const int half = g / 4, quarter = g % 4;
  for (int j = 0; j < 8; ++j) {
    if constexpr (KindOf == kQ8_0) {
      words[j] = word(block + 2, j) ^ 0x80808080u;
    } else if constexpr (f.block == 32 || KindOf == kIQ4_XS) {
      const uint8_t* low = block + (f.block == 32 ? f.head + (f.bits - 4) * 4 : 8 + 16 * g);
      words[j] = word(low, j % 4) >> (j / 4 * 4) & k4;
      if constexpr (f.bits == 5) {
        const uint32_t high = word(block + f.head, 0) >> (4 * j) & 15;
        words[j] |= (high * 0x00204081u & k1) << 4;  // bit i becomes bit 0 of byte i
      }
    } else if constexpr (KindOf == kQ4_K || KindOf == kQ5_K) {
      const uint8_t* low = block + 16 + (f.bits - 4) * 32 + g / 2 * 32;
      words[j] = word(low, j) >> (g % 2 * 4) & k4;
      if constexpr (f.bits == 5) words[j] |= (word(block + 16, j) >> g & k1) << 4;
    } else if constexpr (KindOf == kQ6_K) {
      words[j] = word(block + half * 64 + quarter % 2 * 32, j) >> (quarter / 2 * 4) & k4;
      words[j] |= (word(block + 128 + half * 32, j) >> (quarter * 2) & k2) << 4;
    } else {
      const uint8_t* low = block + (KindOf == kQ2_K ? 16 : 32) + half * 32;
      words[j] = word(low, j) >> (quarter * 2) & k2;
      if constexpr (KindOf == kQ3_K) words[j] |= (word(block, j) >> g & k1) << 2;
    }
  }
}

// Writes 8 words of 4 codes into the planes of a group (codes.h).  `to`: the column's 4 bytes of
// the first line.
template <int Bits>
inline void put_codes(const uint32_t* words, uint8_t* to) {
  constexpr uint32_t k4 = 0x0f0f0f0fu, k2 = 0x03030303u, k1 = 0x01010101u;
  auto put = [&](int line, uint32_t word) { store_i32(to + 64 * line, int32_t(word)); };
  // Bits from `shift` on: two for rows 4 line .. 4 line + 3, or one for all rows.
  auto pairs = [&](int line, int shift) {
    uint32_t all = 0;
    for (int s = 0; s < 4; ++s) all |= (words[4 * line + s] >> shift & k2) << (2 * s);
    return all;
  };
  auto singles = [&](int shift) {
    uint32_t all = 0;
    for (int j = 0; j < 8; ++j) all |= (words[j] >> shift & k1) << j;
    return all;
  };
  if constexpr (Bits == 8) {
    for (int j = 0; j < 8; ++j) put(j, words[j]);
  } else if constexpr (Bits >= 4) {
    for (int j = 0; j < 4; ++j) put(j, (words[j] & k4) | (words[j + 4] & k4) << 4);
    if constexpr (Bits == 5) put(4, singles(4));
    if constexpr (Bits == 6) put(4, pairs(0, 4)), put(5, pairs(1, 4));
  } else {
    put(0, pairs(0, 0)), put(1, pairs(1, 0));
    if constexpr (Bits == 3) put(2, singles(2));
  }
}

}  // namespace sc
