// Linear attention with the gated delta rule (Yang, Kautz and Hatamizadeh, arXiv 2412.06464).
//
// A head keeps a matrix M [key_dim][value_dim].  For each token, with key k and query q of length
// one, value v, a decay d in [0, 1] and a strength b in (0, 1):
//   M <- d M,   u = b (v - M^T k),   M <- M + k u^T,   output M^T q / sqrt(key_dim)
// Phases: convolution of queries, keys and values | heads, with the norm and gate of their outputs.
//
// Invariant: the columns of M do not depend on each other.  Each is updated by one fixed sequence
// of operations per token, whatever the number of tokens of a step.
#pragma once
#include <cmath>
#include <memory>

#include "short_convolution.h"

namespace sc {

class DeltaRule {
 public:
  explicit DeltaRule(Workspace& workspace)
      : w_(workspace), scratch_(new Scratch[size_t(workspace.pool.size())]) {}

  // Writes the normed and gated outputs of all heads to `mixed`.
  void run(const Layer& l, const States& states, int member) {
    const int channels = l.q.n + l.k.n + l.v.n, heads = w_.c.value_heads;
    each_run(w_, states, channels, [&](const Span& span, int from, int to) {
      auto input = [&](int t, int c) { return load(w_.projected_row(t) + c); };
      auto output = [&](int t, int c, F16 y) { store(w_.projected_row(t) + c, silu(y)); };
      convolve(l, w_.c.taps, channels, from, to, span, input, output, [](int) {});
    });
    w_.pool.for_each(w_.batch->sequences * heads, [&](int item) {
      const Span span = span_of(*w_.batch, states, item / heads);
      run_head(l, span, item % heads, scratch_[size_t(member)]);
    });
  }

 private:
  static constexpr int kTile = 8;  // tokens that are prepared together
  static constexpr int kMaxDim = 256;

  struct Token {
    alignas(64) float key[kMaxDim];
    alignas(64) float query[kMaxDim];
    float decay, strength, overlap;  // overlap: key . query
  };
  using Scratch = Token[kTile];

  int key_size() const { return w_.c.key_heads * w_.c.key_dim; }
  int value_column(int h) const { return 2 * key_size() + h * w_.c.value_dim; }

  void run_head(const Layer& l, const Span& span, int h, Scratch& tokens) const {
    const Config& c = w_.c;
    const int channels = l.q.n + l.k.n + l.v.n, size = c.key_dim * c.value_dim;
    float* memory = span.state + (c.taps - 1) * channels + size_t(h) * size_t(size);
    if (span.is_start) std::fill(memory, memory + size, 0.0f);
    for (int t = span.from; t < span.to; t += kTile) {
      const int n = std::min(kTile, span.to - t);
      for (int i = 0; i < n; ++i) prepare(l, t + i, h, tokens[i]);
      for (int d = 0; d < c.value_dim; d += kGroup) {
        for (int i = 0; i < n; ++i) {
          update(memory + d * c.key_dim, tokens[i], w_.projected_row(t + i) + value_column(h) + d);
        }
      }
      for (int i = 0; i < n; ++i) finish(l, t + i, h);
    }
  }

  void prepare(const Layer& l, int t, int h, Token& token) const {
    const Config& c = w_.c;
    const float* row = w_.projected_row(t);
    const int head = c.interleaved ? h % c.key_heads : h / (c.value_heads / c.key_heads);
    const float* query = row + head * c.key_dim;
    const float* gates = row + value_column(c.value_heads) + l.z.n;
    scale_to_one(query, 1.0f / std::sqrt(float(c.key_dim)), token.query);
    scale_to_one(query + key_size(), 1.0f, token.key);
    F16 overlap = set1(0.0f);
    for (int i = 0; i < c.key_dim; i += 16) {
      overlap = fma(load(token.key + i), load(token.query + i), overlap);
    }
    token.overlap = reduce_add(overlap);
    const float step = gates[h] + l.step_bias[h];
    token.decay = std::exp(l.decay[h] * (step > 20.0f ? step : std::log1p(std::exp(step))));
    token.strength = 1.0f / (1.0f + std::exp(-gates[l.a.panels() * kPanel + h]));
  }

  void scale_to_one(const float* x, float length, float* out) const {
    F16 squares = set1(0.0f);
    for (int i = 0; i < w_.c.key_dim; i += 16) squares = fma(load(x + i), load(x + i), squares);
    const F16 factor = set1(length / std::sqrt(reduce_add(squares) + 1e-6f));
    for (int i = 0; i < w_.c.key_dim; i += 16) store(out + i, mul(load(x + i), factor));
  }

  // Updates 32 columns of M by one token, and replaces its value by its output.
  void update(float* __restrict memory, const Token& token, float* __restrict value) const {
    const int rows = w_.c.key_dim;
    F16 known[4], read[4];  // even and odd rows apart: enough independent sums to hide the latency
    for (int j = 0; j < 4; ++j) known[j] = read[j] = set1(0.0f);
    for (int i = 0; i < rows; i += 2) {
      for (int j = 0; j < 4; ++j) {
        const F16 m = load(memory + i * kGroup + j * 16);
        known[j] = fma(m, set1(token.key[i + j / 2]), known[j]);
        read[j] = fma(m, set1(token.query[i + j / 2]), read[j]);
      }
    }
    const F16 decay = set1(token.decay), strength = set1(token.strength);
    F16 change[2];
    for (int j = 0; j < 2; ++j) {
      const F16 before = mul(decay, add(known[j], known[j + 2]));
      change[j] = mul(strength, sub(load(value + j * 16), before));
      const F16 kept = mul(decay, add(read[j], read[j + 2]));
      store(value + j * 16, fma(change[j], set1(token.overlap), kept));
    }
    for (int i = 0; i < rows; ++i) {
      const F16 k = set1(token.key[i]);
      for (int j = 0; j < 2; ++j) {
        float* m = memory + i * kGroup + j * 16;
        store(m, fma(k, change[j], mul(decay, load(m))));
      }
    }
  }

  void finish(const Layer& l, int t, int h) const {
    const int dim = w_.c.value_dim;
    const float *out = w_.projected_row(t) + value_column(h), *z = out + l.v.n;
    const F16 factor = set1(inverse_rms(out, dim, w_.c.rms_eps));
    auto columns = [&](int d) {
      return mul(mul(mul(load(out + d), factor), load(l.value_norm + d)), silu(load(z + d)));
    };
    for (int d = 0; d < dim; d += kGroup) {
      w_.mixed.put(t, (h * dim + d) / kGroup, columns(d), columns(d + 16));
    }
  }

  Workspace& w_;
  std::unique_ptr<Scratch[]> scratch_;  // of each member
};

}  // namespace sc
