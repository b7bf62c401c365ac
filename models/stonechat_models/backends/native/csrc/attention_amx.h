// The matrix products of attention on AMX: the same as those of attention_products.h for 16 query
// rows at a time.  Rows that are not there are multiplied too; their sums mean nothing.
//
// Bytes give the same sums; sums of bfloat16 products differ from those of dot2 in their rounding.
// An instruction adds up the products of 16 words of keys, or of the values of one cache tile: that
// is the order of all sums of bfloat16, whatever the number of rows.
#pragma once
#include "amx.h"
#include "attention_products.h"

namespace sc {

inline constexpr int kQueryTile = 16;     // query rows of a product
inline constexpr int kAmxTiles = 4;       // cache tiles of a product: 64 tokens
inline constexpr int kAmxWords = 16;      // words of an operand row that a register holds

// Scratch memory of one thread: the values of a span in bytes, [token / 4][dim] words.
struct AmxValues {
  alignas(64) uint8_t words[kSpan * kMaxHeadDim];
};

#if SC_AMX

inline constexpr size_t kOperandPitch = size_t(kWords) * 4, kSumPitch = size_t(kWidth) * 4;

// Shapes for bfloat16: tiles 4 and 6 hold words of queries and keys, 5 and 7 those of probabilities
// and values.
constexpr TileShapes pair_shapes(int rows) {
  TileShapes shapes(64, 16, rows);
  shapes.bytes[5] = kTokens / 2 * 4;
  shapes.rows[7] = kTokens / 2;
  return shapes;
}
inline constexpr int kFewRows = 8;  // products of as few rows take half the time
inline constexpr TileShapes kPairTiles = pair_shapes(16), kFewPairTiles = pair_shapes(kFewRows);

inline void zero_sums() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
}

template <class F>
struct AmxProducts;

// Requires that from and to are multiples of kAmxTiles, as below, and that operand rows have zeros
// up to a multiple of kAmxWords.  What comes next is prefetched on the way: the first third beside
// the keys, the last one beside the values.
template <>
struct AmxProducts<Pairs> {
  static void use_shapes(int rows) { use_tiles(rows <= kFewRows ? kFewPairTiles : kPairTiles); }

  static void keys(const KeySpan& span, int from, int to, int dim, const int32_t* a, float* out,
                   Ahead& ahead) {
    for (int t = from; t < to; t += kAmxTiles) {
      zero_sums();
      for (int i = 0; i < dim / 2; i += kAmxWords) {
        tile_load<4>(a + i, kOperandPitch);
        add<4, 6>(span.records + t, size_t(i) * 64, 64, kAmxTiles);
      }
      ahead.reach(t - from + kAmxTiles, 3 * (to - from));
      store(out + t * kTokens, kAmxTiles);
    }
  }

  static void values(const KeySpan& span, int from, int to, int dim, const int32_t* a, float* out,
                     Ahead& ahead) {
    constexpr int kSteps = kTokens / 2;
    const size_t pitch = size_t(dim) * 4, first = pitch * kSteps;  // the values follow the keys
    for (int d = 0; d < dim; d += 64) {
      const int lanes = dim - d >= 64 ? 4 : 2;
      zero_sums();
      for (int t = from; t < to; ++t) {
        const uint8_t* b[4];
        for (int l = 0; l < 4; ++l) b[l] = span.records[t] + first + size_t(d) * 4 + size_t(l) * 64;
        tile_load<5>(a + t * kSteps, kOperandPitch);
        add<5, 7>(b, 0, pitch, lanes);
        ahead.reach(2 * (to - from) + t - from + 1, 3 * (to - from));
      }
      store(out + d, lanes);
    }
  }

 private:
  // Adds the products of tile X with the lanes at `at` of b, which pass through tile W.
  template <int X, int W>
  static void add(const uint8_t* const* b, size_t at, size_t pitch, int lanes) {
    tile_load<W>(b[0] + at, pitch);
    tile_dot_pairs<0, X, W>();
    tile_load<W>(b[1] + at, pitch);
    tile_dot_pairs<1, X, W>();
    if (lanes <= 2) return;
    tile_load<W>(b[2] + at, pitch);
    tile_dot_pairs<2, X, W>();
    tile_load<W>(b[3] + at, pitch);
    tile_dot_pairs<3, X, W>();
  }

  static void store(float* out, int lanes) {
    tile_store<0>(out, kSumPitch);
    tile_store<1>(out + 16, kSumPitch);
    if (lanes <= 2) return;
    tile_store<2>(out + 32, kSumPitch);
    tile_store<3>(out + 48, kSumPitch);
  }
};

// A cache tile has 4 words of values only, so those of a span are brought into one piece first.
template <>
struct AmxProducts<Bytes> {
  static constexpr int kSteps = kTokens / 4;  // of a cache tile's values

  static void use_shapes(int) { use_tiles(kWholeTiles); }

  static void keys(const KeySpan& span, int from, int to, int dim, const int32_t* a, float* out,
                   Ahead& ahead) {
    const int parts = (dim / 4 + kAmxWords - 1) / kAmxWords;
    for (int t = from; t < to; t += kAmxTiles) {
      multiply(a, span.records + t, 64, parts, kAmxTiles, out + t * kTokens);
      ahead.reach(t - from + kAmxTiles, 3 * (to - from));
    }
  }

  static void gather(const KeySpan& span, int from, int to, int dim, AmxValues& gathered) {
    const size_t part = size_t(dim) * 4 * kSteps;
    for (int t = from; t < to; ++t) {
      std::memcpy(gathered.words + size_t(t) * part, span.records[t] + part, part);
    }
  }

  static void values(const AmxValues& gathered, int from, int to, int dim, const int32_t* a,
                     float* out, Ahead& ahead) {
    const size_t pitch = size_t(dim) * 4;
    const uint8_t* start = gathered.words + size_t(from * kSteps) * pitch;
    const int parts = (to - from) * kSteps / kAmxWords;
    for (int d = 0; d < dim; d += 64) {
      const uint8_t* b[4];
      for (int l = 0; l < 4; ++l) b[l] = start + size_t(d) * 4 + size_t(l) * 64;
      multiply(a + from * kSteps, b, pitch, parts, dim - d >= 64 ? 4 : 2, out + d);
      ahead.reach(2 * dim + std::min(d + 64, dim), 3 * dim);
    }
  }

 private:
  // out[16 rows][16 lanes] = sum over `parts` of 16 words of a times b[lane], which has `pitch`
  // bytes between words, for both digits.
  static void multiply(const int32_t* a, const uint8_t* const* b, size_t pitch, int parts,
                       int lanes, float* out) {
    for (int l = 0; l < lanes; l += 2, b += 2, out += 32) {
      zero_sums();
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
  }
};
#endif

}  // namespace sc
