// Typical sizes of the dimensions of a layer's keys, for an int8 cache.
//
// Biases and norms make some dimensions of a key much larger than the others, and one scale for all
// of them would leave few levels to the rest.  So keys are divided by these sizes before they are
// rounded, and queries are multiplied by them: the products stay the same.  The two dimensions of a
// rotary pair have one size.
#pragma once
#include <cmath>
#include <vector>

#include "layers.h"
#include "rows.h"

namespace sc {

// The mean square of an output of W without its bias, for inputs that are normed: of four rows.
inline float mean_square(const Matrix& w, const float* norm, int first, int rows) {
  std::vector<float> row(static_cast<size_t>(w.k));
  float total = 0.0f;
  for (int i = 0; i < 4; ++i) {
    read_row(w, first + i * rows / 4, row.data());
    for (size_t j = 0; j < row.size(); ++j) {
      const float x = row[j] * (norm ? norm[j] : 1.0f);
      total += x * x;
    }
  }
  return total / 4.0f;
}

// Returns float[KV head][dim], or nothing if the layer has neither biases nor norms of keys.
inline std::vector<float> key_sizes(const Layer& l, const Config& c) {
  std::vector<float> sizes;
  if (l.mixer != kAttention || (l.k.bias == nullptr && l.k_norm == nullptr)) return sizes;
  const int dim = c.head_dim, half = c.rotary_dim / 2;
  for (int head = 0; head < c.kv_heads; ++head) {
    const float level = l.k_norm ? 0.0f : mean_square(l.k, l.attention_norm, head * dim, dim);
    auto square = [&](int d) {
      const int row = head * dim + d;
      const float x = l.k_norm ? l.k_norm[l.whole_norms ? row : d] : l.k.bias[row];
      return std::max(x * x + level, 1e-6f);
    };
    for (int d = 0; d < dim; ++d) {
      const int other = d >= c.rotary_dim ? d : d < half ? d + half : d - half;
      sizes.push_back(std::sqrt(0.5f * (square(d) + square(other))));
    }
  }
  return sizes;
}

}  // namespace sc
