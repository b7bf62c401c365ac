// What the parts of a step share: the pool, the batch and the rows that flow from part to part.
//
// Row t belongs to token t of the batch.  All rows are row major:
//   hidden    [t][hidden]                        the sum of the embedding and all branches so far
//   rope      [t][table][cos, sin][rotary / 2]   factors of the rotary embedding
//   projected [t][q | k | v | z | a | b]         outputs of the products that a mixer reads
//   branch    [t][hidden]                        outputs that await their norm
//   input, attended, mixed, mlp                  what the products read (activations.h)
//
// Invariant: an item of a phase writes only its own rows or columns of these.  It reads what other
// items wrote only in later phases.
#pragma once
#include <vector>

#include "functions.h"
#include "layers.h"
#include "panels.h"

namespace sc {

struct Workspace {
  Workspace(const Config& config, int threads) : c(config), pool(threads) {}

  const Config c;
  Pool pool;
  const Batch* batch = nullptr;
  std::vector<float> hidden, rope, projected, branch;
  ActBuffer input, attended, mixed, mlp;

  int q_size() const { return c.heads * c.head_dim; }
  int kv_size() const { return c.kv_heads * c.head_dim; }
  int rope_size() const { return c.rotary_tables * c.rotary_dim; }

  float* hidden_row(int t) { return hidden.data() + size_t(t) * size_t(c.hidden); }
  float* rope_row(int t) { return rope.data() + size_t(t) * size_t(rope_size()); }
  float* projected_row(int t) { return projected.data() + size_t(t) * columns_; }
  float* branch_row(int t) { return branch.data() + size_t(t) * size_t(c.hidden); }

  // Allocates memory for `rows` rows, on the calling thread.
  void reserve(int rows, const std::vector<Layer>& layers, const Matrix& head) {
    Forms in(head), out, mid;
    bool out_norms = false;
    int mlp_size = 0, mixed_size = 0;
    columns_ = 0;
    for (const Layer& l : layers) {
      for (const Matrix* m : l.projections()) in.add(*m);
      for (const Matrix* m : {&l.gate, &l.up, &l.router}) in.add(*m);
      for (const Matrix* m : {&l.shared_gate, &l.shared_up, &l.shared_router}) in.add(*m);
      out.add(l.o);
      columns_ = std::max(columns_, size_t(l.projected_columns()));
      if (l.mixer != kAttention) mixed_size = l.o.k;
      mid.add(l.down);
      out_norms |= l.has_out_norms();
      if (!l.experts) mlp_size = c.mlp;
    }
    const size_t n = size_t(rows);
    hidden.assign(n * size_t(c.hidden), 0.0f);
    rope.assign(n * size_t(rope_size()), 0.0f);
    projected.assign(n * columns_, 0.0f);
    if (out_norms) branch.assign(n * size_t(c.hidden), 0.0f);
    input.reserve(c.hidden, rows, in);
    attended.reserve(q_size(), rows, out);
    mixed.reserve(mixed_size, rows, out);
    mlp.reserve(mlp_size, rows, mid);
    own_inputs_.resize(size_t(pool.size()));
    for (ActBuffer& own : own_inputs_) own.reserve(c.hidden, kOwnRows, in);
  }

  // Norms a hidden row and stores it as row `to_row` of `to`.
  void norm_row(int t, const float* weight, const Act& to, int to_row) {
    const float* x = hidden_row(t);
    if (weight == nullptr) return to.put_row(to_row, x);
    const F16 factor = set1(inverse_rms(x, c.hidden, c.rms_eps));
    for (int i = 0; i < c.hidden; i += kGroup) {
      to.put(to_row, i / kGroup, mul(mul(load(x + i), factor), load(weight + i)),
             mul(mul(load(x + i + 16), factor), load(weight + i + 16)));
    }
    to.finish(to_row);
  }

  // Norms all hidden rows and returns the result.  With few rows, every member does it for itself:
  // that saves a phase.
  const Act& norm_rows(const float* weight, int member) {
    if (batch->tokens <= kOwnRows) {
      const Act& own = own_inputs_[size_t(member)];
      for (int t = 0; t < batch->tokens; ++t) norm_row(t, weight, own, t);
      return own;
    }
    pool.for_each(batch->tokens, [&](int t) { norm_row(t, weight, input, t); });
    return input;
  }

  // A phase that ends rows whose values were put by several items, if that takes one.
  void finish_rows(const Act& x, int rows) {
    if (x.forms.blocks) pool.for_each(rows, [&](int r) { x.finish(r); });
  }

  // Multiplies the normed rows `x` by the matrices whose outputs the layer's mixer reads.
  void project(const Layer& l, const Act& x) {
    const auto matrices = l.projections();
    const int panels = l.projected_columns() / kPanel;
    each_panel(pool, panels, x, batch->tokens, [&](int p, const RowBlock& rows) {
      size_t part = 0;
      int panel = p;
      for (; panel >= matrices[part]->panels(); ++part) panel -= matrices[part]->panels();
      F16 acc[kRowBlock];
      multiply(*matrices[part], panel, rows, acc);
      for (int r = 0; r < rows.count; ++r) {
        store(projected_row(rows.from + r) + p * kPanel, acc[r]);
      }
    });
  }

  // Adds x W^T, times the residual scale, to the hidden rows.  A `norm` that is not null is applied
  // first, in a second phase.
  void add_product(const Matrix& w, const Act& x, const float* norm) {
    const F16 scale = set1(c.residual_scale);
    finish_rows(x, batch->tokens);
    each_panel(pool, w.panels(), x, batch->tokens, [&](int p, const RowBlock& rows) {
      F16 acc[kRowBlock];
      multiply(w, p, rows, acc);
      for (int r = 0; r < rows.count; ++r) {
        const int t = rows.from + r;
        float* to = (norm ? branch_row(t) : hidden_row(t)) + p * kPanel;
        store(to, norm ? acc[r] : fma(acc[r], scale, load(to)));
      }
    });
    if (norm == nullptr) return;
    pool.for_each(batch->tokens, [&](int t) {
      float *from = branch_row(t), *to = hidden_row(t);
      norm_in_place(from, norm, c.hidden, c.rms_eps);
      for (int i = 0; i < c.hidden; i += 16) {
        store(to + i, fma(load(from + i), scale, load(to + i)));
      }
    });
  }

 private:
  static constexpr int kOwnRows = 8;  // up to here, every member norms all rows itself

  size_t columns_ = 0;                 // of a row of `projected`
  std::vector<ActBuffer> own_inputs_;  // of each member
};

}  // namespace sc
