// Measures log-probabilities: of given tokens, and of the most likely ones.
#pragma once
#include <limits>

#include "draw.h"

namespace sc {

// Where the numbers of rows are written; bindings.py mirrors it.
struct Scores {
  int32_t tops;           // how many of the best tokens are wanted
  float *values, *peaks;  // [rows]: the given token's logit; the largest logit, NaN if one is NaN
  double* masses;         // [rows]: the sum of exp(logit - peak)
  int32_t* ranks;         // [rows]: 1 + how many logits are larger than the token's
  float* top_values;      // [rows][tops], the largest logits, best first
  int32_t* top_ids;       // [rows][tops]; equal logits in the order of their tokens
};

// The sum of exp(x - peak), with the bits that the weights of a draw would have.
inline double mass_of(const float* x, int vocab, float peak, SumTree& tree) {
  constexpr float least = -std::numeric_limits<float>::infinity();
  const F16 top = set1(peak);
  for (int i = 0; i < tree.width(); i += 16) {
    F16 v[kFanOut];
    for (int j = 0; j < kFanOut; ++j) {
      v[j] = exp(sub(load_row(x, vocab, j * tree.width() + i, least), top));
    }
    store(tree.first_sums() + i, fold(v, add));
  }
  return tree.finish();
}

inline int32_t rank_of(const float* x, int vocab, float value) {
  int32_t larger = 0;
  for (int i = 0; i < vocab; ++i) larger += x[i] > value;
  return larger + 1;
}

inline void find_best(const float* x, int vocab, int count, float* values, int32_t* ids) {
  constexpr int kWindow = 64;
  constexpr float least = -std::numeric_limits<float>::infinity();
  int found = 0;
  for (int start = 0; start < vocab; start += kWindow) {
    F16 top = set1(least);
    for (int i = 0; i < kWindow; i += 16) top = max(top, load_row(x, vocab, start + i, least));
    if (found == count && !(reduce_max(top) > values[count - 1])) continue;
    for (int i = start; i < std::min(start + kWindow, vocab); ++i) {
      if (found == count && !(x[i] > values[count - 1])) continue;
      int at = found < count ? found++ : count - 1;
      for (; at > 0 && x[i] > values[at - 1]; --at) {
        values[at] = values[at - 1];
        ids[at] = ids[at - 1];
      }
      values[at] = x[i];
      ids[at] = i;
    }
  }
}

// Writes row r of `out`: the scores of `token` in x[vocab], whose largest logit is `peak`.
inline void score_row(const float* x, int vocab, int64_t token, float peak, SumTree& tree, size_t r,
                      const Scores& out) {
  out.values[r] = x[token];
  out.peaks[r] = peak;
  out.masses[r] = peak == peak ? mass_of(x, vocab, peak, tree) : double(peak);
  out.ranks[r] = rank_of(x, vocab, x[token]);
  const size_t tops = size_t(out.tops);
  if (tops) find_best(x, vocab, out.tops, out.top_values + r * tops, out.top_ids + r * tops);
}

}  // namespace sc
