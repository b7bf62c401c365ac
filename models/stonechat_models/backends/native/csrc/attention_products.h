// The matrix products of attention: queries by keys, and probabilities by values.
//
// Both multiply operand rows by cached words of 4 bytes.  An operand row has as many words as the
// product has steps; a step multiplies one word of each operand row by 16 lanes of the cache.
//   Pairs  a word is two bfloat16 numbers; sums are floats
//   Bytes  a word is four bytes; sums are exact integers.  Two operand rows, 2r and 2r + 1, hold
//          the digits of query row r: number = 128 * first + second.
//
#pragma once
#include "kv_cache.h"

namespace sc {

inline constexpr int kSpan = 256;  // keys that a row processes at a time
inline constexpr int kSpanTiles = kSpan / kTokens;
inline constexpr int kWords = 128;  // words from operand row to operand row
inline constexpr int kWidth = 256;  // sums from row to row
static_assert(kWords >= kMaxHeadDim / 2 && kWords >= kSpan / 2);
static_assert(kWidth >= kMaxHeadDim && kWidth >= kSpan);

struct Pairs {
  using Sum = F16;
  static constexpr int kFormat = kKvBf16, kPerWord = 2, kDigits = 1;
};
struct Bytes {
  using Sum = I16;
  static constexpr int kFormat = kKvInt8, kPerWord = 4, kDigits = 2;
};

// The records of a span's tiles, of one head.  Tiles past the last key repeat the last tile.
struct KeySpan {
  int start = 0;
  int tiles = 0;  // up to the last key
  const uint8_t* records[kSpanTiles];
};

// Prefetches the records of a span bit by bit, while the thread works at another one.
class Ahead {
 public:
  // `span`: null, or what the thread needs next; `bytes`: of a record
  Ahead(const KeySpan* span, size_t bytes) : span_(span), lines_(int((bytes + 63) / 64)) {}

  const KeySpan* span() const { return span_; }

  // Goes on as far as `part` of `parts` of the span.
  void reach(int part, int parts) {
    if (span_ == nullptr) return;
    for (int left = span_->tiles * lines_ * part / parts - done_; left > 0;) {
      const int line = done_ % lines_, n = std::min(left, lines_ - line);
      const uint8_t* p = span_->records[done_ / lines_] + size_t(line) * 64;
      for (int i = 0; i < n; ++i) prefetch_far(p + i * 64);
      done_ += n, left -= n;
    }
  }

 private:
  const KeySpan* span_;
  const int lines_;  // of a record
  int done_ = 0;
};

template <class Sum, int Rows, int Lanes>
struct Sums {
  Sum acc[Rows][Lanes] = {};

  // `pitch`: bytes between steps of `b`; `ahead`, if not null, is prefetched at the same places.
  void add(const uint8_t* const* b, const uint8_t* const* ahead, size_t pitch, int steps,
           const int32_t* a) {
    for (int j = 0; j < steps; ++j) {
      B64 w[Lanes];
      for (int l = 0; l < Lanes; ++l) w[l] = load_bytes(b[l] + size_t(j) * pitch);
      if (ahead) {
        for (int l = 0; l < Lanes; ++l) prefetch(ahead[l] + size_t(j) * pitch);
      }
      for (int r = 0; r < Rows; ++r) {
        const int32_t x = a[r * kWords + j];
        for (int l = 0; l < Lanes; ++l) acc[r][l] = dot(acc[r][l], w[l], x);
      }
    }
  }
  void put(float* out) const {
    for (int r = 0; r < Rows; ++r)
      for (int l = 0; l < Lanes; ++l) store_sums(out + r * kWidth + l * 16, acc[r][l]);
  }
};

// Writes the products of operand rows a[0..Rows) and the keys of the tiles from..to-1 to `out`.
// The values of the span are prefetched on the way if `fetch` is set.
template <class F, int Rows>
inline void key_rows(const KeySpan& span, int from, int to, int dim, const int32_t* a, float* out,
                     bool fetch) {
  constexpr int kLanes = Rows <= 3 ? 4 : 2;  // enough independent sums to hide the latency
  const int steps = dim / F::kPerWord;
  const uint8_t* ahead[kSpanTiles];
  for (int t = from; t < to; ++t) ahead[t] = span.records[t] + size_t(steps) * 64;
  int t = from;
  for (; t + kLanes <= to; t += kLanes) {
    Sums<typename F::Sum, Rows, kLanes> sums;
    sums.add(span.records + t, fetch ? ahead + t : nullptr, 64, steps, a);
    sums.put(out + t * kTokens);
  }
  for (; t < to; ++t) {
    Sums<typename F::Sum, Rows, 1> sums;
    sums.add(span.records + t, fetch ? ahead + t : nullptr, 64, steps, a);
    sums.put(out + t * kTokens);
  }
}

// Dimensions d .. d + 16 Lanes of the products of operand rows a[0..Rows) and the values of the
// tiles from..to-1.
template <class F, int Rows, int Lanes>
inline void value_lanes(const KeySpan& span, const KeySpan* next, int from, int to, int dim, int d,
                        const int32_t* a, float* out) {
  constexpr int kSteps = kTokens / F::kPerWord;
  const size_t pitch = size_t(dim) * 4, values = size_t(dim) * 4 * kSteps;
  Sums<typename F::Sum, Rows, Lanes> sums;
  for (int t = from; t < to; ++t) {
    const uint8_t *b[Lanes], *ahead[Lanes];
    for (int l = 0; l < Lanes; ++l) {
      b[l] = span.records[t] + values + size_t(d) * 4 + size_t(l) * 64;
      ahead[l] = next ? next->records[t] + size_t(d) * 4 + size_t(l) * 64 : nullptr;
    }
    sums.add(b, next ? ahead : nullptr, pitch, kSteps, a + t * kSteps);
  }
  sums.put(out + d);
}

// The same for all dimensions.  The keys of span `next`, if not null, are prefetched on the way.
template <class F, int Rows>
inline void value_rows(const KeySpan& span, const KeySpan* next, int from, int to, int dim,
                       const int32_t* a, float* out) {
  int d = 0;
  for (; d + 64 <= dim; d += 64) value_lanes<F, Rows, 4>(span, next, from, to, dim, d, a, out);
  for (; d < dim; d += 32) value_lanes<F, Rows, 2>(span, next, from, to, dim, d, a, out);
}

// Calls body with the largest tile of rows that is at most Rows and `rows`, as a constant.
template <int Rows, class Body>
inline void with_rows(int rows, Body body) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return with_rows<Rows - 1>(rows, body);
  }
  body(std::integral_constant<int, Rows>{});
}

// Products of `rows` operand rows, in tiles that fit into registers.
template <class F>
struct Products {
  static void keys(const KeySpan& span, int from, int to, int dim, int rows, const int32_t* a,
                   float* out, bool fetch) {
    for (int r = 0; r < rows; r += kQueryRows) {
      with_rows<kQueryRows>(std::min(kQueryRows, rows - r), [&](auto n) {
        key_rows<F, n>(span, from, to, dim, a + r * kWords, out + r * kWidth, fetch && r == 0);
      });
    }
  }
  static void values(const KeySpan& span, const KeySpan* next, int from, int to, int dim, int rows,
                     const int32_t* a, float* out) {
    for (int r = 0; r < rows; r += kQueryRows) {
      with_rows<kQueryRows>(std::min(kQueryRows, rows - r), [&](auto n) {
        value_rows<F, n>(span, r == 0 ? next : nullptr, from, to, dim, a + r * kWords,
                         out + r * kWidth);
      });
    }
  }
};

}  // namespace sc
