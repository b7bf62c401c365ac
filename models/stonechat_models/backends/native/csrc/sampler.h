// Chooses a token for each row of logits: greedy, or a draw after top_k, min_p and top_p.
//
// It does what sampling/sampler.py does in PyTorch, with the same sums; only exp may differ in its
// last bits.  A row's token depends on that row alone.
#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "draw.h"
#include "pool.h"
#include "scores.h"
#include "truncation.h"

namespace sc {

// How a row is sampled; sampler.py mirrors it.
struct RowSettings {
  double temperature;  // 0: the largest logit
  double top_k;        // 0: off; below the size of the vocabulary
  double min_p;        // 0: off
  double top_p;        // 1: off
  double variate;      // inside (0, 1)
};

// Samples one row at a time.
class RowSampler {
 public:
  void reserve(int vocab) {
    if (vocab == vocab_) return;
    vocab_ = vocab;
    tree_.reserve(vocab);
    truncation_.reserve(vocab);
  }

  // Writes row r of `out`: the scores of `token` in x[vocab].
  void score(const float* x, int64_t token, size_t r, const Scores& out) {
    float peak;
    find_peak(x, peak);
    score_row(x, vocab_, token, peak, tree_, r, out);
  }

  // Returns a token for x[vocab].  `peak` is the largest logit.  It is NaN if a logit is; then, and
  // if it is infinite, the token is 0.  With top_k or top_p, x becomes the weights that are left.
  int sample(float* x, const RowSettings& row, float& peak) {
    const int first = find_peak(x, peak);
    if (!std::isfinite(peak)) return 0;
    if (row.temperature == 0.0) return first;
    const Weigh weigh{set1(peak), set1(float(row.temperature)), row.temperature != 1.0};
    if (row.top_k > 0.0 || row.top_p < 1.0) return cut_and_draw(x, weigh, row);
    return draw(x, weigh, row);
  }

 private:
  static constexpr int kBlock = 1024;

  // exp((x - peak) / temperature)
  struct Weigh {
    F16 peak, temperature;
    bool divides;

    F16 operator()(F16 x) const {
      const F16 d = sub(x, peak);
      return exp(divides ? div(d, temperature) : d);
    }
  };

  // Draws without writing the weights down: that takes longer than to compute some of them again.
  int draw(const float* x, const Weigh& weigh, const RowSettings& row) {
    const float floor = float(row.min_p);
    auto weight = [&](F16 logits) {
      const F16 w = weigh(logits);
      return floor > 0.0f ? zero_below(w, w, floor) : w;
    };
    each_group(x, [&](int, F16* v) {
      for (int j = 0; j < kFanOut; ++j) v[j] = weight(v[j]);
    });
    const double total = tree_.finish();
    return tree_.draw(row.variate * total, [&](int token) {
      float t[16];
      store(t, weight(set1(x[token])));
      return t[0];
    });
  }

  int cut_and_draw(float* x, const Weigh& weigh, const RowSettings& row) {
    write_weights(x, weigh);
    float floor = float(row.min_p);
    if (row.top_k > 0.0) floor = std::max(floor, truncation_.top_k(x, int(row.top_k)));
    if (floor > 0.0f) cut(x, floor);
    double total = tree_.finish();
    if (row.top_p < 1.0) {
      cut(x, truncation_.top_p(x, row.top_p, total));
      total = tree_.finish();
    }
    return tree_.draw(row.variate * total, [&](int token) { return x[token]; });
  }

  // Returns the first token with the largest logit.
  int find_peak(const float* x, float& peak) const {
    const float least = -std::numeric_limits<float>::infinity();
    F16 are_numbers[4];
    std::fill_n(are_numbers, 4, set1(1.0f));
    int block = 0;
    peak = least;
    for (int start = 0; start < vocab_; start += kBlock) {
      F16 top[4];
      std::fill_n(top, 4, set1(least));
      for (int i = start; i < std::min(start + kBlock, vocab_); i += 64) {
        for (int j = 0; j < 4; ++j) {
          const F16 v = load_row(x, vocab_, i + 16 * j, least);
          top[j] = max(top[j], v);
          are_numbers[j] = min(are_numbers[j], zero_below(set1(1.0f), v, least));
        }
      }
      const float largest = reduce_max(max(max(top[0], top[1]), max(top[2], top[3])));
      if (largest > peak) peak = largest, block = start;
    }
    for (F16 numbers : are_numbers) {
      if (reduce_max(sub(set1(0.0f), numbers)) == 0.0f) {
        peak = std::numeric_limits<float>::quiet_NaN();
      }
    }
    for (int i = block; i < std::min(block + kBlock, vocab_); ++i)
      if (x[i] == peak) return i;
    return 0;
  }

  // Makes weights of x, with the first sums and the groups' maxima.
  void write_weights(float* x, const Weigh& weigh) {
    float* maxima = truncation_.maxima();
    each_group(x, [&](int i, F16* v) {
      for (int j = 0; j < kFanOut; ++j) {
        v[j] = weigh(v[j]);
        store_row(x, vocab_, j * tree_.width() + i, v[j]);
      }
      F16 copy[kFanOut];
      std::copy_n(v, kFanOut, copy);
      store(maxima + i, fold(copy, max));
    });
  }

  // Zeroes the weights below the threshold, and computes the first sums again.
  void cut(float* x, float threshold) {
    each_group(x, [&](int i, F16* v) {
      for (int j = 0; j < kFanOut; ++j) {
        v[j] = zero_below(v[j], v[j], threshold);
        store_row(x, vocab_, j * tree_.width() + i, v[j]);
      }
    });
  }

  // Calls edit(i, v) with the sixteen vectors that are folded into the first sums from i on, and
  // stores their sum.
  template <class Edit>
  void each_group(const float* x, Edit edit) {
    for (int i = 0; i < tree_.width(); i += 16) {
      F16 v[kFanOut];
      for (int j = 0; j < kFanOut; ++j) {
        v[j] = load_row(x, vocab_, j * tree_.width() + i, -std::numeric_limits<float>::infinity());
      }
      edit(i, v);
      store(tree_.first_sums() + i, fold(v, add));
    }
  }

  int vocab_ = 0;
  SumTree tree_;
  Truncation truncation_;
};

// Samples rows on a pool of threads, one call at a time.
class Sampler {
 public:
  explicit Sampler(Pool* pool) : pool_(*pool), own_(size_t(pool->size())) {}

  // Writes a token and the largest logit for each row of logits[rows][vocab], which may be
  // overwritten.  Throws std::bad_alloc.
  void run(float* logits, int rows, int vocab, const RowSettings* settings, int64_t* tokens,
           float* peaks) {
    each_row(rows, vocab, [&](RowSampler& own, size_t r) {
      tokens[r] = own.sample(logits + r * size_t(vocab), settings[r], peaks[r]);
    });
  }

  // Writes the scores of tokens[rows], each inside the vocabulary.  Throws std::bad_alloc.
  void score(const float* logits, int rows, int vocab, const int64_t* tokens, const Scores& out) {
    each_row(rows, vocab, [&](RowSampler& own, size_t r) {
      own.score(logits + r * size_t(vocab), tokens[r], r, out);
    });
  }

 private:
  template <class Body>
  void each_row(int rows, int vocab, Body body) {
    for (RowSampler& own : own_) own.reserve(vocab);
    if (rows == 1) return body(own_[0], 0);
    pool_.run([&](int member) {
      RowSampler& own = own_[size_t(member)];
      pool_.for_each(rows, [&](int r) { body(own, size_t(r)); }, kLastPhase);
    });
  }

  Pool& pool_;
  std::vector<RowSampler> own_;  // of each member
};

}  // namespace sc
