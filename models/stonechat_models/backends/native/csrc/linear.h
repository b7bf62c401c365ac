// Runs one linear layer at a time, for models whose other operators run elsewhere.
//
// Rows are float32, row major.  They are quantised first: few rows by every member itself, which
// saves a barrier; many rows in a phase of their own.
#pragma once
#include <vector>

#include "panels.h"

namespace sc {

// Computes y[m][n] = x[m][k] W^T (+ bias) on a pool of threads, one call at a time.
class LinearTeam {
 public:
  explicit LinearTeam(Pool* pool) : pool_(*pool), own_(size_t(pool->size())) {}

  void run(const Matrix& w, const float* x, int m, float* y) {
    const bool own_rows = m <= kOwnRows;
    for (size_t i = 0; i < (own_rows ? own_.size() : 1); ++i) {
      own_[i].reserve(w.k, m, Forms(w));
    }
    auto multiply_panel = [&](int p, const RowBlock& rows) {
      F16 acc[kRowBlock];
      multiply(w, p, rows, acc);
      for (int r = 0; r < rows.count; ++r) {
        put_columns(y + size_t(rows.from + r) * size_t(w.n), p * kPanel, w.n, acc[r]);
      }
    };
    pool_.run([&](int member) {
      const Act& act = own_[own_rows ? size_t(member) : 0];
      auto quantise = [&](int r) { act.put_row(r, x + size_t(r) * size_t(w.k)); };
      if (own_rows) {
        for (int r = 0; r < m; ++r) quantise(r);
      } else {
        pool_.for_each(m, quantise);
      }
      each_panel(pool_, w.panels(), act, m, multiply_panel, kLastPhase);
    });
  }

 private:
  static constexpr int kOwnRows = 4;  // up to here, every member quantises all rows itself

  Pool& pool_;
  std::vector<ActBuffer> own_;  // of each member, or only the first for all
};

}  // namespace sc
