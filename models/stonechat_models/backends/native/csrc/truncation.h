// Finds the thresholds of top_k and top_p on a row of weights, as sampling/truncation.py does.
//
// A token is kept if its weight is at least the threshold, so ties are kept together.  A threshold
// that lies within the heaviest 64 or 256 tokens is found among them; any other in a histogram.
#pragma once
#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "draw.h"

namespace sc {

class Truncation {
 public:
  void reserve(int vocab) {
    vocab_ = vocab;
    maxima_.resize(size_t(padded_width(vocab) / kFanOut));
    outer_.resize(maxima_.size() / kFanOut);
    tops_.reserve(size_t(std::max(vocab, kMostTops)));
    sorted_.reserve(size_t(padded_width(vocab)));
  }

  // [padded_width / 16], which the caller fills: entry i is the largest weight of the tokens j with
  // j mod (padded_width / 16) == i.
  float* maxima() { return maxima_.data(); }

  // The `count`-th largest weight.
  float top_k(const float* weights, int count) {
    if (count > kMostTops) return select(weights, double(count), [](float) { return 1.0; });
    find_tops(weights, count > kFewTops ? kMostTops : kFewTops);
    return tops_[size_t(count - 1)];
  }

  // The smallest weight of the nucleus: of the heaviest tokens that have `share` of `total`.
  // Weights may have become zero since the maxima were filled.
  float top_p(const float* weights, double share, double total) {
    const double target = share * total;
    for (int count : {kFewTops, kMostTops}) {
      find_tops(weights, count);
      double prefix = 0.0;
      for (float top : tops_) {
        prefix += double(top);
        if (prefix >= target) return top;
      }
    }
    return select(weights, -share, [](float x) { return double(x); });
  }

 private:
  static constexpr int kFewTops = 64, kMostTops = 256;

  // Finds the `count` largest weights, in descending order.  Only groups whose maximum is among the
  // `count` largest maxima can have them.  The maxima are searched in groups themselves.
  void find_tops(const float* weights, int count) {
    const size_t groups = maxima_.size(), outer = outer_.size();
    for (size_t i = 0; i < outer; ++i) {
      outer_[i] = maxima_[i];
      for (size_t j = i; j < groups; j += outer) outer_[i] = std::max(outer_[i], maxima_[j]);
    }
    sorted_ = outer >= size_t(count) ? outer_ : maxima_;
    std::nth_element(sorted_.begin(), sorted_.begin() + (count - 1), sorted_.end(),
                     std::greater<>());
    const float least = std::max(sorted_[size_t(count - 1)], std::numeric_limits<float>::min());
    tops_.clear();
    for (size_t i = 0; i < outer; ++i) {
      if (outer_[i] < least) continue;
      for (size_t group = i; group < groups; group += outer) {
        if (maxima_[group] < least) continue;
        for (size_t j = group; j < size_t(vocab_); j += groups)
          if (weights[j] >= least) tops_.push_back(weights[j]);
      }
    }
    tops_.resize(std::max(tops_.size(), size_t(count)), 0.0f);
    std::partial_sort(tops_.begin(), tops_.begin() + count, tops_.end(), std::greater<>());
    tops_.resize(size_t(count));
  }

  static constexpr int kDigits = 1 << 10;
  static int digit(float x) { return int(bits_of(x) >> 20); }  // x is in [0, 1]

  // Returns the largest weight w so that the weights >= w amount to `target`, or to -target of all
  // if it is negative.
  template <class Amount>
  float select(const float* weights, double target, Amount amount) {
    std::fill_n(histogram_, kDigits, 0.0);
    for (int i = 0; i < vocab_; ++i) histogram_[digit(weights[i])] += amount(weights[i]);
    double all = 0.0, at_least = histogram_[kDigits - 1];
    for (int d = kDigits; d-- > 0;) all += histogram_[d];
    if (target < 0) target = -target * all;
    int bin = kDigits - 1;
    while (bin > 0 && at_least < target) at_least += histogram_[--bin];
    const double above = at_least - histogram_[bin];
    sorted_.clear();
    for (int i = 0; i < vocab_; ++i)
      if (digit(weights[i]) == bin) sorted_.push_back(weights[i]);
    std::sort(sorted_.begin(), sorted_.end(), std::greater<>());
    double sum = 0.0;
    for (float x : sorted_) {
      sum += amount(x);
      if (sum >= target - above) return x;
    }
    return sorted_.empty() ? 0.0f : sorted_.back();
  }

  int vocab_ = 0;
  std::vector<float> maxima_, outer_, tops_, sorted_;  // outer_: the maxima of 16 maxima
  double histogram_[kDigits];
};

}  // namespace sc
