// Draws a token from a row of weights by inverse CDF, with the sums of sampling/inverse_cdf.py.
//
// The sums are a tree of fan-out 16 over interleaved tokens: entry i of the next level is the sum of
// all j with j mod (width / 16) == i, folded in halves.  They are elementwise additions only, so the
// number of threads and of rows changes no bit.  A row is padded with zeros to a multiple of 4096.
#pragma once
#include <algorithm>
#include <vector>

#include "simd.h"

namespace sc {

inline constexpr int kFanOut = 16;
inline constexpr int kRowMultiple = kFanOut * kFanOut * kFanOut;
inline constexpr int kMostRoots = 64;

inline int padded_width(int vocab) { return (vocab + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }

// Sixteen entries of a row of n from i on; `other` stands for those past its end.
inline F16 load_row(const float* row, int n, int i, float other) {
  if (i + 16 <= n) return load(row + i);
  if (i >= n) return set1(other);
  float t[16];
  for (int j = 0; j < 16; ++j) t[j] = i + j < n ? row[i + j] : other;
  return load(t);
}

inline void store_row(float* row, int n, int i, F16 x) {
  if (i + 16 <= n) return store(row + i, x);
  float t[16];
  store(t, x);
  for (int j = 0; i + j < n; ++j) row[i + j] = t[j];
}

// Reduces sixteen vectors to one by halves: combine(0, 8), combine(1, 9), ...
template <class Combine>
inline F16 fold(F16* v, Combine combine) {
  for (int half = kFanOut / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) v[j] = combine(v[j], v[j + half]);
  return v[0];
}

class SumTree {
 public:
  // Makes room for the sums of `vocab` weights.
  void reserve(int vocab) {
    vocab_ = vocab;
    widths_.assign(1, padded_width(vocab));
    size_t size = 0;
    while (widths_.back() > kMostRoots && widths_.back() % kFanOut == 0) {
      widths_.push_back(widths_.back() / kFanOut);
      size += size_t(widths_.back());
    }
    sums_.resize(size);
  }

  int width() const { return widths_[0] / kFanOut; }
  float* first_sums() { return sums_.data(); }  // [width()], which the caller fills

  // Adds up the levels above the first sums, and returns the sum of all.
  double finish() {
    float* from = sums_.data();
    for (size_t level = 2; level < widths_.size(); ++level) {
      const int n = widths_[level];
      float* to = from + widths_[level - 1];
      for (int i = 0; i < n; i += 16) {
        F16 v[kFanOut];
        for (int j = 0; j < kFanOut; ++j) v[j] = load_row(from, widths_[level - 1], j * n + i, 0.0f);
        store_row(to, n, i, fold(v, add));
      }
      from = to;
    }
    return root_sum(from, widths_.back());
  }

  // Returns the token at `target`, 0 < target < the sum of all.  A weight of zero is never drawn
  // unless all are zero.  `weight(token)` gives the weights again.
  template <class Weight>
  int draw(double target, Weight weight) const {
    const float* level = sums_.data() + sums_.size() - size_t(widths_.back());
    int index = pick(widths_.back(), target, [&](int i) { return double(level[i]); });
    for (size_t above = widths_.size() - 1; above-- > 0;) {
      const int n = widths_[above], stride = n / kFanOut, first = index;
      if (above) level -= n;
      auto child = [&](int i) {
        const int at = first + i * stride;
        if (above) return double(level[at]);
        return at < vocab_ ? double(weight(at)) : 0.0;
      };
      index += stride * pick(kFanOut, target, child);
    }
    return std::min(index, vocab_ - 1);
  }

 private:
  double root_sum(const float* roots, int n) {
    std::vector<double> sums(roots, roots + n);
    while (sums.size() > 1) {
      const size_t half = sums.size() / 2;
      for (size_t i = 0; i < half; ++i) sums[half + i] += sums[i];
      sums.erase(sums.begin(), sums.begin() + long(half));
    }
    return sums[0];
  }

  // Returns the first positive entry whose prefix sum exceeds `target`, else the last positive one,
  // and takes the sum of the entries before it from `target`.
  template <class Entry>
  static int pick(int n, double& target, Entry entry) {
    double prefix = 0.0, before = 0.0;
    int found = 0;
    for (int i = 0; i < n; ++i) {
      const double x = entry(i);
      prefix += x;
      if (x > 0.0) {
        found = i;
        before = prefix - x;
        if (prefix > target) break;
      }
    }
    target = std::max(target - before, 0.0);
    return found;
  }

  int vocab_ = 0;
  std::vector<int> widths_;
  std::vector<float> sums_;  // the levels above the weights, one behind the other
};

}  // namespace sc
