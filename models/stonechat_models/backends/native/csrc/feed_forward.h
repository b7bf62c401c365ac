// The second half of a layer without experts: gate and up products, activation, down product.
//
// Phases: gate, up, activation + quantise | down + residual.
#pragma once
#include "workspace.h"

namespace sc {

// Computes 32 columns of gate and of up for a block of rows: group g of the activations `to` that
// the next matrix reads.  `panel`: the first of the two panels.
template <bool Gelu>
inline void gate_up_panels(const Matrix& gate_weights, const Matrix& up_weights, int panel,
                           const RowBlock& rows, const Act& to, int g) {
  F16 gate[2][kRowBlock], up[2][kRowBlock];
  for (int i = 0; i < 2; ++i) {
    multiply(gate_weights, panel + i, rows, gate[i]);
    multiply(up_weights, panel + i, rows, up[i]);
  }
  auto activate = [](F16 v) { return Gelu ? gelu_tanh(v) : silu(v); };
  for (int r = 0; r < rows.count; ++r) {
    to.put(rows.from + r, g, mul(activate(gate[0][r]), up[0][r]),
           mul(activate(gate[1][r]), up[1][r]));
  }
}

class FeedForward {
 public:
  explicit FeedForward(Workspace& workspace) : w_(workspace) {}

  void gate_up(const Layer& l, const Act& x) {
    const int groups = w_.c.mlp / kGroup;
    each_panel(w_.pool, groups, x, w_.batch->tokens, [&](int g, const RowBlock& rows) {
      const bool gelu = w_.c.activation == kGeluTanh;
      if (gelu) gate_up_panels<true>(l.gate, l.up, 2 * g, rows, w_.mlp, g);
      else gate_up_panels<false>(l.gate, l.up, 2 * g, rows, w_.mlp, g);
    });
  }

  void down(const Layer& l) { w_.add_product(l.down, w_.mlp, l.mlp_out_norm); }

 private:
  Workspace& w_;
};

}  // namespace sc
