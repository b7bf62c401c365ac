// Runs one linear layer at a time, for models whose other operators run elsewhere.
#pragma once
#include <algorithm>
#include <vector>

#include "matrix.h"
#include "pool.h"

namespace sc {

// Computes y[m][n] = x[m][k] W^T (+ bias) on a pool of threads, one call at a time.
class LinearTeam {
 public:
  explicit LinearTeam(Pool* pool) : pool_(*pool), own_(size_t(pool->size())) {}

  void run(const Matrix& w, const float* x, int m, float* y) {
    w_ = &w, x_ = x, m_ = m, y_ = y;
    own_rows_ = m <= kOwnRows;
    queue_.reset(2);
    for (size_t i = 0; i < (own_rows_ ? own_.size() : 1); ++i) {
      std::vector<uint8_t>& memory = own_[i].memory;
      const size_t bytes = Act::bytes(w.k, m, !is_quantised(w.kind));
      if (memory.size() < bytes) memory.resize(bytes);
      own_[i].act.place(memory.data(), w.k, m, !is_quantised(w.kind));
    }
    pool_.run([](void* self, int member) { static_cast<LinearTeam*>(self)->work(member); }, this);
  }

 private:
  static constexpr int kOwnRows = 4;     // up to here, each member quantises all rows itself
  static constexpr int kRowBlock = 128;  // rows whose activations stay in the L2 cache

  struct Own {
    std::vector<uint8_t> memory;
    Act act;
  };

  void work(int member) {
    const Act& act = own_[own_rows_ ? size_t(member) : 0].act;
    if (own_rows_) {
      for (int r = 0; r < m_; ++r) quantise(act, r);
    } else {
      for (int r; queue_.next(0, m_, &r);) quantise(act, r);
      pool_.barrier();
    }
    const int panels = w_->panels(), blocks = (m_ + kRowBlock - 1) / kRowBlock;
    const int chunk = std::max(1, std::min(32, panels / (pool_.size() * 6)));
    const int chunks = (panels + chunk - 1) / chunk;
    for (int item; queue_.next(1, chunks * blocks, &item);) {
      const int row0 = item / chunks * kRowBlock, row1 = std::min(m_, row0 + kRowBlock);
      const int p0 = item % chunks * chunk, p1 = std::min(panels, p0 + chunk);
      for (int p = p0; p < p1; ++p) {
        for (int r = row0; r < row1; r += kTileRows) tile(act, p, r, std::min(kTileRows, row1 - r));
      }
    }
  }

  void quantise(const Act& act, int r) const {
    const float* row = x_ + size_t(r) * size_t(w_->k);
    for (int i = 0; i < w_->k; i += kGroup)
      act.put(r, i / kGroup, load(row + i), load(row + i + 16));
  }

  void tile(const Act& act, int p, int r0, int rows) const {
    F16 acc[kTileRows];
    multiply(*w_, p, act, r0, rows, acc);
    const int column = p * kPanel, columns = std::min(kPanel, w_->n - column);
    for (int r = 0; r < rows; ++r) {
      float* out = y_ + size_t(r0 + r) * size_t(w_->n) + column;
      if (columns == kPanel) {
        store(out, acc[r]);
        continue;
      }
      float t[kPanel];
      store(t, acc[r]);
      std::copy(t, t + columns, out);
    }
  }

  Pool& pool_;
  WorkQueue queue_;
  std::vector<Own> own_;
  const Matrix* w_ = nullptr;
  const float* x_ = nullptr;
  float* y_ = nullptr;
  int m_ = 0;
  bool own_rows_ = false;
};

}  // namespace sc
