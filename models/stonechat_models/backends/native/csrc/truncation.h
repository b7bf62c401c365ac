// Finds the thresholds of top_k and top_p on a row of weights, as sampling/truncation.py does.
//
// A token is kept if its weight is at least the threshold, so ties are kept together.  A threshold
// that lies within the heaviest 256 tokens is found among them; any other one in a histogram.
#pragma once
#include <algorithm>
#include <functional>
#include <vector>

#include "draw.h"

namespace sc {

inline constexpr int kTops = 256;

class Truncation {
 public:
  void reserve(int vocab) {
    vocab_ = vocab;
    maxima_.resize(size_t(padded_width(vocab) / kFanOut));
    tops_.reserve(size_t(std::max(vocab, kTops)));
    sorted_.reserve(size_t(padded_width(vocab)));
  }

  // [padded_width / 16], which the caller fills: entry i is the largest weight of the tokens j with
  // j mod (padded_width / 16) == i.
  float* maxima() { return maxima_.data(); }

  // Finds the heaviest tokens.  Only the groups with the largest maxima can have them.
  void find_tops(const float* weights) {
    sorted_ = maxima_;
    std::nth_element(sorted_.begin(), sorted_.begin() + (kTops - 1), sorted_.end(), std::greater<>());
    const float least = sorted_[kTops - 1];
    tops_.clear();
    const int groups = int(maxima_.size());
    for (int i = 0; i < groups; ++i) {
      if (maxima_[size_t(i)] < least || maxima_[size_t(i)] == 0.0f) continue;
      for (int j = i; j < vocab_; j += groups)
        if (weights[j] >= least && weights[j] > 0.0f) tops_.push_back(weights[j]);
    }
    tops_.resize(std::max(tops_.size(), size_t(kTops)), 0.0f);
    std::partial_sort(tops_.begin(), tops_.begin() + kTops, tops_.end(), std::greater<>());
    tops_.resize(kTops);
  }

  // Forgets the tops that an earlier threshold has removed.
  void cut_tops(float threshold) {
    for (float& x : tops_)
      if (!(x >= threshold)) x = 0.0f;
  }

  // The `count`-th largest weight.
  float top_k(const float* weights, int count) {
    if (count <= kTops) return tops_[size_t(count - 1)];
    return select(weights, double(count), [](float) { return 1.0; });
  }

  // The smallest weight of the nucleus: of the heaviest tokens that have `share` of `total`.
  float top_p(const float* weights, double share, double total) {
    const double target = share * total;
    double prefix = 0.0;
    for (int i = 0; i < kTops; ++i) {
      prefix += double(tops_[size_t(i)]);
      if (prefix >= target) return tops_[size_t(i)];
    }
    return select(weights, -share, [](float x) { return double(x); });
  }

 private:
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
  std::vector<float> maxima_, tops_, sorted_;
  double histogram_[kDigits];
};

}  // namespace sc
