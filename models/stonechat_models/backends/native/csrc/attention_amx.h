// The matrix products of attention on AMX: the same as those of attention_products.h for 16 query
// rows at a time.  Rows that are not there are multiplied too; their sums mean nothing.
//
// Bytes give the same sums; sums of bfloat16 products differ from those of dot2 in their rounding.
#pragma once
#include "amx.h"
#include "attention_products.h"

namespace sc {

inline constexpr int kQueryTile = 16;     // query rows of a product
inline constexpr int kAmxTiles = 4;       // cache tiles of a product: 64 tokens
inline constexpr int kAmxWords = 16;      // words of an operand row that a register holds

// Scratch memory of one thread: the values of a span, [token / (tokens of a word)][dim] words.
struct AmxValues {
  alignas(64) uint8_t words[kSpan * kMaxHeadDim * 2];
};

#if SC_AMX

inline constexpr size_t kOperandPitch = size_t(kWords) * 4, kSumPitch = size_t(kWidth) * 4;

// out[16 rows][16 Lanes] = sum over `parts` of 16 words of a times b[lane], which has `pitch`
// bytes between words.
inline void multiply_pairs(const int32_t* a, const uint8_t* const* b, size_t pitch, int parts,
                           int lanes, float* out) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int i = 0; i < parts; ++i) {
    const size_t at = size_t(i) * kAmxWords * pitch;
    tile_load<4>(a + i * kAmxWords, kOperandPitch);
    tile_load<5>(b[0] + at, pitch);
    tile_dot_pairs<0, 4, 5>();
    tile_load<6>(b[1] + at, pitch);
    tile_dot_pairs<1, 4, 6>();
    if (lanes <= 2) continue;
    tile_load<7>(b[2] + at, pitch);
    tile_dot_pairs<2, 4, 7>();
    tile_load<5>(b[3] + at, pitch);
    tile_dot_pairs<3, 4, 5>();
  }
  tile_store<0>(out, kSumPitch);
  tile_store<1>(out + 16, kSumPitch);
  if (lanes <= 2) return;
  tile_store<2>(out + 32, kSumPitch);
  tile_store<3>(out + 48, kSumPitch);
}

// The same for two lanes of bytes, for both digits.
inline void multiply_bytes(const int32_t* a, const uint8_t* const* b, size_t pitch, int parts,
                           float* out) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int i = 0; i < parts; ++i) {
    const size_t at = size_t(i) * kAmxWords * pitch;
    tile_load<4>(a + i * kAmxWords, 2 * kOperandPitch);
    tile_load<5>(a + kWords + i * kAmxWords, 2 * kOperandPitch);
    tile_load<6>(b[0] + at, pitch);
    tile_dot_bytes<0, 4, 6>();
    tile_dot_bytes<1, 5, 6>();
    tile_load<7>(b[1] + at, pitch);
    tile_dot_bytes<2, 4, 7>();
    tile_dot_bytes<3, 5, 7>();
  }
  tile_store<0>(out, 2 * kSumPitch);
  tile_store<1>(out + kWidth, 2 * kSumPitch);
  tile_store<2>(out + 16, 2 * kSumPitch);
  tile_store<3>(out + kWidth + 16, 2 * kSumPitch);
}

inline void multiply_lanes(Pairs, const int32_t* a, const uint8_t* const* b, size_t pitch,
                           int parts, int lanes, float* out) {
  multiply_pairs(a, b, pitch, parts, lanes, out);
}
inline void multiply_lanes(Bytes, const int32_t* a, const uint8_t* const* b, size_t pitch,
                           int parts, int lanes, float* out) {
  for (int l = 0; l < lanes; l += 2) multiply_bytes(a, b + l, pitch, parts, out + l * 16);
}

template <class F>
struct AmxProducts {
  static constexpr int kSteps = kTokens / F::kPerWord;  // of a tile's values

  // Requires that from and to are multiples of kAmxTiles, as below, and that operand rows have
  // zeros up to a multiple of kAmxWords.
  static void keys(const KeySpan& span, int from, int to, int dim, const int32_t* a, float* out,
                   bool fetch) {
    const int steps = dim / F::kPerWord, parts = (steps + kAmxWords - 1) / kAmxWords;
    const size_t part = size_t(steps) * 64;
    for (int t = from; t < to; t += kAmxTiles) {
      for (int i = t; fetch && i < t + kAmxTiles; ++i) fetch_part(span.records[i] + part, part);
      multiply_lanes(F{}, a, span.records + t, 64, parts, kAmxTiles, out + t * kTokens);
    }
  }

  // Brings the values of a span into one piece.  The keys of span `next`, if not null, are
  // prefetched on the way.
  static void gather(const KeySpan& span, const KeySpan* next, int from, int to, int dim,
                     AmxValues& to_values) {
    const size_t part = size_t(dim) * 4 * kSteps;
    for (int t = from; t < to; ++t) {
      if (next) fetch_part(next->records[t], part);
      std::memcpy(to_values.words + size_t(t) * part, span.records[t] + part, part);
    }
  }

  static void values(const AmxValues& gathered, int from, int to, int dim, const int32_t* a,
                     float* out) {
    const size_t pitch = size_t(dim) * 4;
    const uint8_t* start = gathered.words + size_t(from * kSteps) * pitch;
    const int parts = (to - from) * kSteps / kAmxWords;
    for (int d = 0; d < dim; d += 64) {
      const uint8_t* b[4];
      for (int l = 0; l < 4; ++l) b[l] = start + size_t(d) * 4 + size_t(l) * 64;
      multiply_lanes(F{}, a + from * kSteps, b, pitch, parts, dim - d >= 64 ? 4 : 2, out + d);
    }
  }

  static void fetch_part(const uint8_t* p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) prefetch_far(p + i);
  }
};
#endif

}  // namespace sc
