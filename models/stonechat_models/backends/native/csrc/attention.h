// Attention of a block of query rows over the paged KV cache.
//
// Invariant: a query row processes its keys in spans of 256 at absolute positions.  A span gives the
// largest score, the sum of the exponentials and the weighted values, each by one fixed sequence of
// operations.  The spans of a row are then merged in order.  So its result does not depend on the
// other rows of its block, on who computed which span, on how the prompt is split, or on where its
// cache blocks lie.  Keys that a row may not see get probability exactly 0 and change nothing; a
// span without visible keys changes nothing either.
//
// Scores are in units of log 2: probabilities are powers of two.
#pragma once
#include "attention_amx.h"
#include "functions.h"

namespace sc {

inline constexpr int kBlockRows = 64;  // query rows of a block: tokens x heads of a group
inline constexpr float kNoScore = -1e30f;  // below any score, and finite so that no NaN arises
inline constexpr float kLog2e = 1.44269504f;

// Which keys a query sees, and how its scores are scaled and capped.
struct View {
  int window;   // number of keys that a query sees up to its own, which counts; 0: all
  float cap;    // argument of soft_cap; 0: no cap
  float scale;  // of the products of queries and keys

  int first(int position) const { return window > 0 ? std::max(0, position - window + 1) : 0; }
  int first_span(int position) const { return first(position) / kSpan; }
};

// The result of the spans that a row has processed.
struct Partial {
  float top, sum;    // of the row's scores; of its exponentials
  float unused[14];  // keeps what follows aligned: the weighted values, float[dim]

  float* values() { return reinterpret_cast<float*>(this + 1); }
};

// Scratch memory of one thread.
struct AttentionScratch {
  alignas(64) int32_t q[kBlockRows * 2 * kWords];           // operand rows
  alignas(64) int32_t p[kQueryTile * 2 * kWords];           // operand rows
  alignas(64) float sums[kQueryTile * 2 * kWidth];          // scores, then weighted values
  alignas(64) float out[kBlockRows * kMaxHeadDim];          // weighted values of all spans so far
  alignas(64) float top[kBlockRows], sum[kBlockRows];       // of all spans so far
  alignas(64) float span_top[kQueryTile], span_sum[kQueryTile];
  float q_scale[kBlockRows], q_first[kBlockRows], q_second[kBlockRows];  // of Bytes, as of p
  float p_scale[kQueryTile], p_first[kQueryTile], p_second[kQueryTile];
  int first[kBlockRows], last[kBlockRows];                  // keys that each row sees
  AmxValues values;

  void clear(int rows, int dim) {
    for (int r = 0; r < rows; ++r) {
      top[r] = kNoScore, sum[r] = 0.0f;
      for (int d = 0; d < dim; d += 16) store(out + r * kMaxHeadDim + d, set1(0.0f));
    }
  }
};

// Digits of numbers for operand rows of Bytes.  Each is a multiple of largest / kLevels.
inline constexpr float kLevels = 127.0f * 128.0f;

struct Digits {
  F16 first_sum = set1(0.0f), second_sum = set1(0.0f);

  // Writes those of 16 numbers in units of `inverse`, at most kLevels of them.
  void put(F16 x, F16 inverse, int8_t* first, int8_t* second) {
    F16 n = round(mul(x, inverse));
    F16 high = round(mul(n, set1(1.0f / 128.0f)));
    F16 low = fma(high, set1(-128.0f), n);
    store_i8(first, high);
    store_i8(second, low);
    first_sum = add(first_sum, high);
    second_sum = add(second_sum, low);
  }
  // What unsigned codes add to the sums of products: they are 128 too large.
  static float surplus(F16 sum) { return kSignedDot8 ? 0.0f : 128.0f * reduce_add(sum); }
};

// Makes operand row r of a query.
inline void put_query(AttentionScratch& s, int r, const float* q, int dim, int format, View view) {
  const F16 scale = set1(view.cap == 0.0f ? view.scale * kLog2e : view.scale);
  if (format == kKvBf16) {
    auto* to = reinterpret_cast<bf16_t*>(s.q + r * kWords);
    for (int d = 0; d < dim; d += 16) store_bf16(to + d, mul(load(q + d), scale));
    return;
  }
  F16 top = set1(0.0f);
  for (int d = 0; d < dim; d += 16) top = max(abs(mul(load(q + d), scale)), top);
  const float largest = reduce_max(top);
  const F16 inverse = set1(largest > 0.0f ? kLevels / largest : 0.0f);
  auto* first = reinterpret_cast<int8_t*>(s.q + 2 * r * kWords);
  int8_t* second = first + kWords * 4;
  Digits digits;
  int d = 0;
  for (; d < dim; d += 16) {
    digits.put(mul(load(q + d), scale), inverse, first + d, second + d);
  }
  for (; d % (kAmxWords * 4); d += 16) {
    std::memset(first + d, 0, 16);
    std::memset(second + d, 0, 16);
  }
  s.q_scale[r] = largest / kLevels;
  s.q_first[r] = Digits::surplus(digits.first_sum);
  s.q_second[r] = Digits::surplus(digits.second_sum);
}

// The 16 numbers at `at` of the sums of row r: exact sums of both digits.
inline F16 digit_sums(const float* sums, int r, int at, float first, float second) {
  F16 high = sub(load_sums(sums + 2 * r * kWidth + at), set1(first));
  F16 low = sub(load_sums(sums + (2 * r + 1) * kWidth + at), set1(second));
  return fma(high, set1(128.0f), low);
}

// Scores, probabilities and results of a tile of rows, for each format.
template <class F>
struct Softmax {
  AttentionScratch& s;
  const KeySpan& span;
  View view;
  int dim;

  // Row r of the tile is row r0 + r of the block.  Its scores at the tiles from..to-1 become
  // probabilities: powers of two of the differences to the largest score.
  void run(int r0, int r, int from, int to) const {
    const int first = s.first[r0 + r], last = s.last[r0 + r];
    float* row = s.sums + r * kWidth * F::kDigits;
    F16 top = set1(kNoScore);
    for (int t = from; t < to; ++t) {
      const int base = span.start + t * kTokens;
      F16 x = score(r0 + r, r, t);
      if (view.cap != 0.0f) x = mul(soft_cap(x, view.cap), set1(kLog2e));
      if (base + kTokens - 1 > last || base < first) {
        const int begin = std::min(kTokens, std::max(0, first - base));
        const int end = std::min(kTokens, std::max(0, last + 1 - base));
        x = keep_lanes(x, begin, end, -INFINITY);
      }
      store(row + t * kTokens, x);
      top = max(x, top);
    }
    s.span_top[r] = reduce_max(top);
    s.span_sum[r] = probabilities(r, from, to, set1(s.span_top[r]));
  }

  // Weighted values d..d+15 of row r.
  F16 value(int r, int d) const {
    if constexpr (F::kDigits == 1) return load(s.sums + r * kWidth + d);
    else return mul(digit_sums(s.sums, r, d, s.p_first[r], s.p_second[r]), set1(s.p_scale[r]));
  }

 private:
  F16 score(int row, int r, int t) const {
    if constexpr (F::kDigits == 1) return load(s.sums + r * kWidth + t * kTokens);
    else {
      F16 x = digit_sums(s.sums, r, t * kTokens, s.q_first[row], s.q_second[row]);
      return mul(x, mul(load_half(scales(t)), set1(s.q_scale[row])));
    }
  }

  const half_t* scales(int t) const {
    return reinterpret_cast<const half_t*>(span.records[t] + 2 * part_bytes(kKvInt8, dim));
  }

  // Makes operand rows of the probabilities, and returns their sum.
  float probabilities(int r, int from, int to, F16 top) const {
    float* row = s.sums + r * kWidth * F::kDigits;
    F16 total = set1(0.0f);
    if constexpr (F::kDigits == 1) {
      auto* to_words = reinterpret_cast<bf16_t*>(s.p + r * kWords);
      for (int t = from; t < to; ++t) {
        F16 p = exp2(sub(load(row + t * kTokens), top));
        store_bf16(to_words + t * kTokens, p);
        total = add(total, p);
      }
      return reduce_add(total);
    }
    F16 most = set1(0.0f);  // the scales of the values are a part of the operands
    for (int t = from; t < to; ++t) {
      F16 p = exp2(sub(load(row + t * kTokens), top));
      total = add(total, p);
      p = mul(p, load_half(scales(t) + kTokens));
      store(row + t * kTokens, p);
      most = max(p, most);
    }
    const float largest = reduce_max(most);
    const F16 inverse = set1(largest > 0.0f ? kLevels / largest : 0.0f);
    auto* first = reinterpret_cast<int8_t*>(s.p + 2 * r * kWords);
    Digits digits;
    for (int t = from * kTokens; t < to * kTokens; t += kTokens) {
      digits.put(load(row + t), inverse, first + t, first + kWords * 4 + t);
    }
    s.p_scale[r] = largest / kLevels;
    s.p_first[r] = Digits::surplus(digits.first_sum);
    s.p_second[r] = Digits::surplus(digits.second_sum);
    return reduce_add(total);
  }
};

// Factors for two results with the largest scores a and b, when they become one.
struct Merge {
  F16 top, of_a, of_b;
  Merge(F16 a, F16 b) : top(max(a, b)), of_a(exp2(sub(a, top))), of_b(exp2(sub(b, top))) {}
  F16 sum(F16 a, F16 b) const { return fma(a, of_a, mul(b, of_b)); }
};

// Attention of the rows of a block over one span.
template <class F>
struct SpanAttention {
  AttentionScratch& s;
  const KeySpan& span;
  Ahead& ahead;
  int rows, dim;
  View view;

  // Merges the result into that of earlier spans.
  void run() const {
    bool is_first = true;
    for (int r0 = 0; r0 < rows; r0 += kQueryTile) {
      const int n = std::min(kQueryTile, rows - r0);
      const auto [from, to] = tiles(r0, r0 + n);
      if (from >= to) continue;
      multiply_keys(r0, n, from, to, is_first);
      const Softmax<F> softmax{s, span, view, dim};
      for (int r = 0; r < n; ++r) {
        softmax.run(r0, r, from, to);
        if (has_tiles()) ahead.reach(n + r + 1, 3 * n);
      }
      multiply_values(n, from, to, is_first);
      merge(softmax, r0, n);
      is_first = false;
    }
  }

 private:
  // The range of the tiles that the rows r0..r1-1 see.
  std::pair<int, int> tiles(int r0, int r1) const {
    int first = INT32_MAX, last = -1;
    for (int r = r0; r < r1; ++r) {
      first = std::min(first, s.first[r] - span.start);
      last = std::max(last, s.last[r] - span.start);
    }
    const int step = has_tiles() ? kAmxTiles : 1;
    const int to = last < 0 ? 0 : (std::min(last, kSpan - 1) / kTokens / step + 1) * step;
    return {std::max(0, first) / kTokens / step * step, to};
  }

  void multiply_keys(int r0, int n, int from, int to, bool is_first) const {
    const int32_t* q = s.q + r0 * kWords * F::kDigits;
#if SC_AMX
    if (has_tiles()) {
      AmxProducts<F>::use_shapes(rows);
      return AmxProducts<F>::keys(span, from, to, dim, q, s.sums, ahead);
    }
#endif
    Products<F>::keys(span, from, to, dim, n * F::kDigits, q, s.sums, is_first);
  }

  void multiply_values(int n, int from, int to, bool is_first) const {
#if SC_AMX
    if (has_tiles()) {
      if constexpr (F::kFormat == kKvBf16) {
        return AmxProducts<F>::values(span, from, to, dim, s.p, s.sums, ahead);
      } else {
        if (is_first) {
          const auto [first, last] = tiles(0, rows);
          AmxProducts<F>::gather(span, first, last, dim, s.values);
        }
        return AmxProducts<F>::values(s.values, from, to, dim, s.p, s.sums, ahead);
      }
    }
#endif
    const KeySpan* next = is_first ? ahead.span() : nullptr;
    Products<F>::values(span, next, from, to, dim, n * F::kDigits, s.p, s.sums);
  }

  void merge(const Softmax<F>& softmax, int r0, int n) const {
    const Merge merge(load(s.top + r0), load(s.span_top));
    alignas(64) float earlier[16], later[16];
    store(earlier, merge.of_a);
    store(later, merge.of_b);
    store(s.sum + r0, merge.sum(load(s.sum + r0), load(s.span_sum)));
    store(s.top + r0, merge.top);
    for (int r = 0; r < n; ++r) {
      float* out = s.out + (r0 + r) * kMaxHeadDim;
      const F16 a = set1(earlier[r]), b = set1(later[r]);
      for (int d = 0; d < dim; d += 16) {
        store(out + d, fma(load(out + d), a, mul(softmax.value(r, d), b)));
      }
    }
  }
};

}  // namespace sc
