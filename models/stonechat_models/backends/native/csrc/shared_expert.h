// The expert that every row passes through beside the chosen ones, weighted by a gate of its own.
//
// Phases: gate, up, activation + quantise, and the weights | down + residual.
#pragma once
#include <cmath>
#include <vector>

#include "feed_forward.h"

namespace sc {

class SharedExpert {
 public:
  explicit SharedExpert(Workspace& workspace) : w_(workspace) {}

  // Allocates memory for `rows` rows, on the calling thread.
  void reserve(int rows, const std::vector<Layer>& layers) {
    int size = 0;
    Forms mid;
    for (const Layer& l : layers) {
      if (!l.has_shared_expert()) continue;
      size = l.shared_down.k;
      mid.add(l.shared_down);
    }
    if (size == 0) return;
    mlp_.reserve(size, rows, mid);
    weights_.assign(size_t(rows), 0.0f);
  }

  // Computes what `shared_down` reads, and the weight of each of the normed rows `x`.
  void gate_up(const Layer& l, const Act& x) {
    const int groups = l.shared_down.k / kGroup;
    each_panel(w_.pool, groups + 1, x, w_.batch->tokens, [&](int g, const RowBlock& rows) {
      if (g < groups) {
        return gate_up_panels<false>(l.shared_gate, l.shared_up, 2 * g, rows, mlp_, g);
      }
      F16 acc[kRowBlock];
      multiply(l.shared_router, 0, rows, acc);
      for (int r = 0; r < rows.count; ++r) {
        float logits[kPanel];
        store(logits, acc[r]);
        weights_[size_t(rows.from + r)] = 1.0f / (1.0f + std::exp(-logits[0]));
      }
    });
  }

  // Adds the weighted outputs to the hidden rows.
  void down(const Layer& l) {
    const int panels = l.shared_down.panels();
    w_.finish_rows(mlp_, w_.batch->tokens);
    each_panel(w_.pool, panels, mlp_, w_.batch->tokens, [&](int p, const RowBlock& rows) {
      F16 acc[kRowBlock];
      multiply(l.shared_down, p, rows, acc);
      for (int r = 0; r < rows.count; ++r) {
        float* to = w_.hidden_row(rows.from + r) + p * kPanel;
        const F16 weight = set1(weights_[size_t(rows.from + r)] * w_.c.residual_scale);
        store(to, fma(acc[r], weight, load(to)));
      }
    });
  }

 private:
  Workspace& w_;
  ActBuffer mlp_;
  std::vector<float> weights_;
};

}  // namespace sc
