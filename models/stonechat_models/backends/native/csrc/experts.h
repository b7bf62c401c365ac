// The second half of a layer with experts.
//
// A slot is one row at one of its experts.  Slots are sorted by expert (routing.h), so each expert
// multiplies a run of them.  Phases:
//   router product | choice | grouping | gathering | gate, up | down | weighted sum
// Rows of the buffers:
//   router_logits_ [t][expert]
//   routed_        [slot]           copies of the rows that the experts read
//   mlp_           [slot]           what the experts' `down` reads
//   outputs_       [slot][hidden]
#pragma once
#include <vector>

#include "feed_forward.h"
#include "routing.h"

namespace sc {

class Experts {
 public:
  explicit Experts(Workspace& workspace) : w_(workspace) {}

  // Allocates memory for `rows` rows, on the calling thread.
  void reserve(int rows, const std::vector<Layer>& layers) {
    int experts = 0;
    Forms in, mid;
    for (const Layer& l : layers) {
      if (!l.experts) continue;
      experts = std::max(experts, l.experts);
      in.add(l.gate);
      in.add(l.up);
      mid.add(l.down);
    }
    if (experts == 0) return;
    const int slots = rows * w_.c.experts_per_token;
    routing_.reserve(rows, w_.c.experts_per_token, experts);
    router_logits_.assign(size_t(rows) * size_t(experts), 0.0f);
    routed_.reserve(w_.c.hidden, slots, in);
    mlp_.reserve(w_.c.expert_mlp, slots, mid);
    outputs_.assign(size_t(slots) * size_t(w_.c.hidden), 0.0f);
  }

  // Chooses the experts of the normed rows `x` and computes what their `down` reads.
  void gate_up(const Layer& l, const Act& x) {
    const int tokens = w_.batch->tokens;
    each_panel(w_.pool, l.router.panels(), x, tokens, [&](int p, const RowBlock& rows) {
      F16 acc[kRowBlock];
      multiply(l.router, p, rows, acc);
      for (int r = 0; r < rows.count; ++r) {
        put_columns(logits(l, rows.from + r), p * kPanel, l.experts, acc[r]);
      }
    });
    w_.pool.for_each(
        tokens, [&](int t) { routing_.choose(t, logits(l, t), l.experts, w_.c.scale_chosen); });
    w_.pool.for_each(1, [&](int) { routing_.group(tokens, l.experts, kRowBlock); });
    w_.pool.for_each(tokens * w_.c.experts_per_token,
                     [&](int slot) { routed_.copy(slot, x, routing_.row_of(slot)); });
    const int groups = w_.c.expert_mlp / kGroup;
    each_expert_panel(groups, routed_, [&](int expert, int g, const RowBlock& rows) {
      gate_up_panels<false>(l.gate, l.up, 2 * (expert * groups + g), rows, mlp_, g);
    });
  }

  // Adds the weighted outputs of the rows' experts to the hidden rows.
  void down(const Layer& l) {
    const int panels = w_.c.hidden / kPanel;
    w_.finish_rows(mlp_, w_.batch->tokens * w_.c.experts_per_token);
    each_expert_panel(panels, mlp_, [&](int expert, int p, const RowBlock& rows) {
      F16 acc[kRowBlock];
      multiply(l.down, expert * panels + p, rows, acc);
      for (int r = 0; r < rows.count; ++r) store(output(rows.from + r) + p * kPanel, acc[r]);
    });
    w_.pool.for_each(w_.batch->tokens, [&](int t) { add_outputs(t); });
  }

 private:
  float* logits(const Layer& l, int t) {
    return router_logits_.data() + size_t(t) * size_t(l.experts);
  }
  float* output(int slot) { return outputs_.data() + size_t(slot) * size_t(w_.c.hidden); }

  // One phase, like each_panel: calls body(expert, panel, slots) for the slots of each expert, which
  // are rows of x.
  template <class Body>
  void each_expert_panel(int panels, const Act& x, Body body) {
    const auto& blocks = routing_.blocks();
    const int chunk = panels_per_item(w_.pool, panels, 2);
    const int chunks = (panels + chunk - 1) / chunk;
    w_.pool.for_each(chunks * int(blocks.size()), [&](int item) {
      const Routing::Block& b = blocks[size_t(item / chunks)];
      const int panel = item % chunks * chunk;
      const RowBlock slots(x, b.from, b.to - b.from);
      for (int p = panel; p < std::min(panels, panel + chunk); ++p) body(b.expert, p, slots);
    });
  }

  // Adds the outputs of the experts of row t, in the experts' order.
  void add_outputs(int t) {
    float* to = w_.hidden_row(t);
    for (int i = 0; i < w_.c.hidden; i += 16) {
      F16 total = set1(0.0f);
      for (int k = 0; k < w_.c.experts_per_token; ++k) {
        const F16 weight = set1(routing_.weight_of(t, k));
        total = fma(load(output(routing_.slot_of(t, k)) + i), weight, total);
      }
      store(to + i, fma(total, set1(w_.c.residual_scale), load(to + i)));
    }
  }

  Workspace& w_;
  Routing routing_;
  std::vector<float> router_logits_, outputs_;
  ActBuffer routed_, mlp_;
};

}  // namespace sc
