// The second half of a layer without experts: gate and up products, activation, down product.
//
// Phases: gate, up, activation + quantise | down + residual.
#pragma once
#include "workspace.h"

namespace sc {

// Computes 32 columns of gate and of up for a tile of rows: group g of the activations `to` that
// the next matrix reads.  `panel`: the first of the two panels.
template <bool Gelu>
inline void gate_up_tile(const Matrix& gate_weights, const Matrix& up_weights, int panel,
                         const Act& x, int r0, int rows, const Act& to, int g) {
  F16 gate[2][kTileRows], up[2][kTileRows];
  for (int i = 0; i < 2; ++i) {
    multiply(gate_weights, panel + i, x, r0, rows, gate[i]);
    multiply(up_weights, panel + i, x, r0, rows, up[i]);
  }
  auto activate = [](F16 v) { return Gelu ? gelu_tanh(v) : silu(v); };
  for (int r = 0; r < rows; ++r) {
    to.put(r0 + r, g, mul(activate(gate[0][r]), up[0][r]), mul(activate(gate[1][r]), up[1][r]));
  }
}

class FeedForward {
 public:
  explicit FeedForward(Workspace& workspace) : w_(workspace) {}

  void gate_up(const Layer& l, const Act& x) {
    each_panel(w_.pool, w_.c.mlp / kGroup, w_.batch->tokens, [&](int g, int r0, int rows) {
      const bool gelu = w_.c.activation == kGeluTanh;
      if (gelu) gate_up_tile<true>(l.gate, l.up, 2 * g, x, r0, rows, w_.mlp, g);
      else gate_up_tile<false>(l.gate, l.up, 2 * g, x, r0, rows, w_.mlp, g);
    });
  }

  void down(const Layer& l) { w_.add_product(l.down, w_.mlp, l.mlp_out_norm); }

 private:
  Workspace& w_;
};

}  // namespace sc
