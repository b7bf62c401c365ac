// A decoder-only transformer of the Llama family: one call runs one step for all its rows.
//
// The step is one job of the thread pool; members share out the items of each phase through a
// work queue and meet at barriers.  Phases of a layer:
//   norm + quantise | q k v products | rotary + cache write | attention + quantise |
//   output product + residual | norm + quantise | gate, up, SwiGLU + quantise | down + residual
// With few rows every member norms all rows for itself, and with one token a sequence the rotary
// phase is part of attention's items, which saves barriers.
#pragma once
#include <chrono>
#include <memory>

#include "attention.h"
#include "matrix.h"
#include "pool.h"

namespace sc {

// Mirrored by ctypes in library.py: keep the order.
struct Config {
  int32_t layers, hidden, heads, kv_heads, head_dim, mlp, vocab;
  int32_t rotary_dim;
  float rms_eps, attention_scale, rotary_scale;
  const float* inverse_frequencies;  // [rotary_dim / 2]
};

struct Layer {
  Matrix q, k, v, o, gate, up, down;
  const float *attention_norm, *mlp_norm;  // [hidden]
  const float *q_norm, *k_norm;            // [head_dim], or null
  int32_t window;                          // keys a query sees, itself included; 0: all
  int32_t rotary;                          // 0: no rotary embedding in this layer
};

// What the time of a step goes to; the order is that of PARTS in library.py.
enum Part : int { kNorms, kQkv, kAttention, kOutput, kGateUp, kDown, kHead, kParts };

struct Batch {
  int32_t tokens, sequences, block_width, outputs;
  const int64_t *token_ids, *positions, *slots;
  const int32_t *query_start, *block_table;
  const int64_t* logits_index;
  float* logits;  // [outputs][vocab]
};

// Root mean square of a row, as the factor 1 / sqrt(mean + eps).
inline float inverse_rms(const float* x, int n, float eps) {
  F16 squares = set1(0.0f);
  for (int i = 0; i < n; i += 16) {
    F16 v = load(x + i);
    squares = fma(v, v, squares);
  }
  return 1.0f / std::sqrt(reduce_add(squares) / float(n) + eps);
}

inline F16 silu(F16 x) { return div(x, add(set1(1.0f), exp(sub(set1(0.0f), x)))); }

class Model {
 public:
  Model(const Config& config, int threads)
      : c_(config), pool_(threads), scratch_(new AttentionScratch[size_t(pool_.size())]) {
    frequencies_.assign(config.inverse_frequencies,
                        config.inverse_frequencies + config.rotary_dim / 2);
    layers.resize(size_t(config.layers));
    caches.resize(size_t(config.layers));
  }

  std::vector<Layer> layers;
  std::vector<KvCache> caches;
  Matrix embedding, head;
  const float* final_norm = nullptr;


  // Seconds spent in each part so far, as member 0 sees it: its waits for the others included.
  const double* seconds() const { return seconds_; }

  void forward(const Batch& batch) {
    batch_ = &batch;
    decode_only_ = batch.tokens == batch.sequences;
    own_norms_ = batch.tokens <= kOwnNormRows;
    reserve();
    queue_.reset(c_.layers * 8 + 8);
    pool_.run([](void* self, int member) { static_cast<Model*>(self)->run(member); }, this);
  }

 private:
  static constexpr int kOwnNormRows = 8;
  static constexpr int kRowBlock = 128;  // rows whose activations stay in the L2 cache

  int q_size() const { return c_.heads * c_.head_dim; }
  int kv_size() const { return c_.kv_heads * c_.head_dim; }
  int qkv_size() const { return q_size() + 2 * kv_size(); }

  // ------------------------------------------------------------- memory

  static bool wants_floats(const Matrix& m) { return !is_quantised(m.kind); }

  void reserve() {
    int rows = std::max(batch_->tokens, batch_->outputs);
    if (rows <= capacity_) return;
    capacity_ = (rows + kTileRows - 1) / kTileRows * kTileRows;
    bool in = wants_floats(head), out = false, mid = false;
    for (const Layer& l : layers) {
      in |= wants_floats(l.q) || wants_floats(l.k) || wants_floats(l.v) || wants_floats(l.gate) ||
            wants_floats(l.up);
      out |= wants_floats(l.o);
      mid |= wants_floats(l.down);
    }
    const size_t n = size_t(capacity_);
    hidden_.assign(n * size_t(c_.hidden), 0.0f);
    qkv_.assign(n * size_t(qkv_size()), 0.0f);
    rope_.assign(n * size_t(c_.rotary_dim), 0.0f);
    place(&in_, &in_memory_, c_.hidden, capacity_, in);
    place(&attended_, &attended_memory_, q_size(), capacity_, out);
    place(&mlp_, &mlp_memory_, c_.mlp, capacity_, mid);
    own_.resize(size_t(pool_.size()));
    own_memory_.resize(size_t(pool_.size()));
    for (size_t i = 0; i < own_.size(); ++i) {
      place(&own_[i], &own_memory_[i], c_.hidden, kOwnNormRows, in);
    }
  }

  static void place(Act* act, std::vector<uint8_t>* memory, int k, int rows, bool floats) {
    memory->assign(Act::bytes(k, rows, floats), 0);
    act->place(memory->data(), k, rows, floats);
  }

  // ------------------------------------------------------------- the step

  void run(int member) {
    int phase = 0;
    if (member == 0) mark_ = Clock::now();
    embed(phase++);
    pool_.barrier();
    for (size_t i = 0; i < layers.size(); ++i) {
      const Layer& l = layers[i];
      const KvCache& cache = caches[i];
      const Act& x = norm_rows(l.attention_norm, member, phase++);
      spent(member, kNorms);
      project_qkv(l, x, phase++);
      pool_.barrier();
      spent(member, kQkv);
      if (!decode_only_) {
        for (int t; queue_.next(phase, batch_->tokens, &t);) {
          for (int h = 0; h < c_.kv_heads; ++h) rotate_and_store(l, cache, t, h);
        }
        pool_.barrier();
      }
      ++phase;
      attention(l, cache, scratch_[size_t(member)], phase++);
      pool_.barrier();
      spent(member, kAttention);
      add_product(l.o, attended_, phase++);
      pool_.barrier();
      spent(member, kOutput);
      const Act& y = norm_rows(l.mlp_norm, member, phase++);
      spent(member, kNorms);
      gate_up(l, y, phase++);
      pool_.barrier();
      spent(member, kGateUp);
      add_product(l.down, mlp_, phase++);
      pool_.barrier();
      spent(member, kDown);
    }
    if (batch_->outputs == 0) return;
    output(phase);
    pool_.barrier();
    spent(member, kHead);
  }

  void spent(int member, Part part) {
    if (member != 0) return;
    Clock::time_point now = Clock::now();
    seconds_[part] += std::chrono::duration<double>(now - mark_).count();
    mark_ = now;
  }

  void embed(int phase) {
    const int half = c_.rotary_dim / 2;
    for (int t; queue_.next(phase, batch_->tokens, &t);) {
      read_row(embedding, int(batch_->token_ids[t]), hidden_.data() + size_t(t) * size_t(c_.hidden));
      float* rope = rope_.data() + size_t(t) * size_t(c_.rotary_dim);
      for (int i = 0; i < half; ++i) {
        float angle = float(batch_->positions[t]) * frequencies_[size_t(i)];
        rope[i] = std::cos(angle) * c_.rotary_scale;
        rope[half + i] = std::sin(angle) * c_.rotary_scale;
      }
    }
  }

  void norm_row(const float* x, const float* weight, const Act& to, int row) const {
    F16 factor = set1(inverse_rms(x, c_.hidden, c_.rms_eps));
    for (int g = 0; g * kGroup < c_.hidden; ++g) {
      const int i = g * kGroup;
      to.put(row, g, mul(mul(load(x + i), factor), load(weight + i)),
             mul(mul(load(x + i + 16), factor), load(weight + i + 16)));
    }
  }

  const Act& norm_rows(const float* weight, int member, int phase) {
    const float* x = hidden_.data();
    if (own_norms_) {
      const Act& own = own_[size_t(member)];
      for (int t = 0; t < batch_->tokens; ++t) norm_row(x + size_t(t * c_.hidden), weight, own, t);
      return own;
    }
    for (int t; queue_.next(phase, batch_->tokens, &t);) {
      norm_row(x + size_t(t) * size_t(c_.hidden), weight, in_, t);
    }
    pool_.barrier();
    return in_;
  }

  // Calls body(panel, first row, rows) for all panels and tiles of rows.  An item is a run of panels for a block
  // of rows; a panel meets all row tiles of its block while it is in the L1 cache.
  template <class Body>
  void each_panel(int phase, int panels, int rows, Body body) {
    const int chunk = std::max(1, std::min(32, panels / (pool_.size() * 6)));
    const int chunks = (panels + chunk - 1) / chunk, blocks = (rows + kRowBlock - 1) / kRowBlock;
    for (int item; queue_.next(phase, chunks * blocks, &item);) {
      const int row0 = item / chunks * kRowBlock, row1 = std::min(rows, row0 + kRowBlock);
      const int p0 = item % chunks * chunk, p1 = std::min(panels, p0 + chunk);
      for (int p = p0; p < p1; ++p) {
        for (int r = row0; r < row1; r += kTileRows) {
          body(p, r, std::min(kTileRows, row1 - r));
        }
      }
    }
  }

  // Columns p * 16 ... of a row-major output; the last panel may be partly padding.
  static void put_columns(float* out, int column, int columns, F16 x) {
    if (column + kPanel <= columns) return store(out + column, x);
    float t[kPanel];
    store(t, x);
    for (int i = 0; column + i < columns; ++i) out[column + i] = t[i];
  }

  void project_qkv(const Layer& l, const Act& x, int phase) {
    const Matrix* parts[3] = {&l.q, &l.k, &l.v};
    const int starts[3] = {0, q_size(), q_size() + kv_size()};
    const int nq = l.q.panels(), nk = l.k.panels();
    each_panel(phase, nq + nk + l.v.panels(), batch_->tokens, [&](int p, int r0, int rows) {
      const int part = p < nq ? 0 : p < nq + nk ? 1 : 2;
      const int panel = p - (part == 0 ? 0 : part == 1 ? nq : nq + nk);
      F16 acc[kTileRows];
      multiply(*parts[part], panel, x, r0, rows, acc);
      float* out = qkv_.data() + size_t(r0) * size_t(qkv_size()) + starts[part];
      for (int r = 0; r < rows; ++r) {
        store(out + size_t(r) * size_t(qkv_size()) + panel * kPanel, acc[r]);
      }
    });
  }

  void add_product(const Matrix& w, const Act& x, int phase) {
    const size_t width = size_t(c_.hidden);
    each_panel(phase, w.panels(), batch_->tokens, [&](int p, int r0, int rows) {
      F16 acc[kTileRows];
      multiply(w, p, x, r0, rows, acc);
      for (int r = 0; r < rows; ++r) {
        float* out = hidden_.data() + size_t(r0 + r) * width + p * kPanel;
        store(out, add(load(out), acc[r]));
      }
    });
  }

  // A unit is 32 columns of gate and of up: one group of the activations that `down` reads.
  void gate_up(const Layer& l, const Act& x, int phase) {
    each_panel(phase, c_.mlp / kGroup, batch_->tokens, [&](int g, int r0, int rows) {
      F16 gate[2][kTileRows], up[2][kTileRows];
      for (int i = 0; i < 2; ++i) {
        multiply(l.gate, 2 * g + i, x, r0, rows, gate[i]);
        multiply(l.up, 2 * g + i, x, r0, rows, up[i]);
      }
      for (int r = 0; r < rows; ++r) {
        mlp_.put(r0 + r, g, mul(silu(gate[0][r]), up[0][r]),
                 mul(silu(gate[1][r]), up[1][r]));
      }
    });
  }

  void output(int phase) {
    for (int i; queue_.next(phase, batch_->outputs, &i);) {
      const size_t row = size_t(batch_->logits_index[i]);
      norm_row(hidden_.data() + row * size_t(c_.hidden), final_norm, in_, i);
    }
    pool_.barrier();
    each_panel(phase + 1, head.panels(), batch_->outputs, [&](int p, int r0, int rows) {
      F16 acc[kTileRows];
      multiply(head, p, in_, r0, rows, acc);
      for (int r = 0; r < rows; ++r) {
        float* out = batch_->logits + size_t(r0 + r) * size_t(c_.vocab);
        put_columns(out, p * kPanel, c_.vocab, acc[r]);
      }
    });
  }

  // ------------------------------------------------------------- attention

  void rotate(float* __restrict x, const float* __restrict rope) const {
    const int half = c_.rotary_dim / 2;
    for (int i = 0; i < half; ++i) {
      float a = x[i], b = x[i + half];
      x[i] = a * rope[i] - b * rope[half + i];
      x[i + half] = b * rope[i] + a * rope[half + i];
    }
  }

  void norm_head(float* x, const float* weight) const {
    F16 factor = set1(inverse_rms(x, c_.head_dim, c_.rms_eps));
    for (int i = 0; i < c_.head_dim; i += 16) {
      store(x + i, mul(mul(load(x + i), factor), load(weight + i)));
    }
  }

  // Query heads of group h in place; the key and the value into the cache.
  void rotate_and_store(const Layer& l, const KvCache& cache, int t, int h) {
    const int group = c_.heads / c_.kv_heads, dim = c_.head_dim;
    float* row = qkv_.data() + size_t(t) * size_t(qkv_size());
    float *key = row + q_size() + h * dim, *value = key + kv_size();
    const float* rope = rope_.data() + size_t(t) * size_t(c_.rotary_dim);
    for (int i = 0; i < group; ++i) {
      float* q = row + (h * group + i) * dim;
      if (l.q_norm) norm_head(q, l.q_norm);
      if (l.rotary) rotate(q, rope);
    }
    if (l.k_norm) norm_head(key, l.k_norm);
    if (l.rotary) rotate(key, rope);
    cache.put(batch_->slots[t], h, key, value);
  }

  struct Item {
    int sequence, head, from, to;  // query tokens from..to-1
  };

  const int32_t* blocks_of(int sequence) const {
    return batch_->block_table + size_t(sequence) * size_t(batch_->block_width);
  }

  void attention(const Layer& l, const KvCache& cache, AttentionScratch& s, int phase) {
    if (decode_only_) return attention_decode(l, cache, s, phase);
    const int group = c_.heads / c_.kv_heads;
    int step = 1;
    while (step * 2 * group <= kBlockRows) step *= 2;
    int base = 0, i = 0;  // items of the sequences before i
    for (int n; queue_.next(phase, INT32_MAX, &n);) {
      int items = 0, blocks = 0;
      for (; i < batch_->sequences; ++i, base += items) {
        const int tokens = batch_->query_start[i + 1] - batch_->query_start[i];
        blocks = (tokens + step - 1) / step, items = blocks * c_.kv_heads;
        if (n < base + items) break;
      }
      if (i == batch_->sequences) return;
      const int block = blocks - 1 - (n - base) / c_.kv_heads;  // the longest first
      const int from = batch_->query_start[i] + block * step;
      const int to = std::min(batch_->query_start[i + 1], from + step);
      attend_item(l, cache, s, {i, (n - base) % c_.kv_heads, from, to}, nullptr);
    }
  }

  // One token a sequence: the item also rotates its heads and writes the cache, and the keys that
  // the next item starts with are fetched meanwhile.
  void attention_decode(const Layer& l, const KvCache& cache, AttentionScratch& s, int phase) {
    const int items = batch_->sequences * c_.kv_heads;
    int n;
    bool more = queue_.next(phase, items, &n);
    while (more) {
      const Item item{n / c_.kv_heads, n % c_.kv_heads, n / c_.kv_heads, n / c_.kv_heads + 1};
      more = queue_.next(phase, items, &n);
      const half_t* after[kSpanTiles];
      if (more) {
        const int i = n / c_.kv_heads, last = int(batch_->positions[i]);
        const BlockTable table{cache, blocks_of(i), n % c_.kv_heads};
        table.keys(BlockTable::first_span(last, l.window), last, after);
      }
      rotate_and_store(l, cache, item.from, item.head);
      attend_item(l, cache, s, item, more ? after : nullptr);
    }
  }

  void attend_item(const Layer& l, const KvCache& cache, AttentionScratch& s, const Item& item,
                   const half_t* const* after) {
    const int group = c_.heads / c_.kv_heads, dim = c_.head_dim;
    const int rows = (item.to - item.from) * group;
    for (int r = 0; r < rows; ++r) {
      const int t = item.from + r / group, head = item.head * group + r % group;
      const float* q = qkv_.data() + size_t(t) * size_t(qkv_size()) + head * dim;
      for (int d = 0; d < dim; ++d) s.q[d * kBlockRows + r] = q[d] * c_.attention_scale;
      s.position[r] = int(batch_->positions[t]);
    }
    attend(s, {cache, blocks_of(item.sequence), item.head}, rows, l.window, after);
    for (int r = 0; r < rows; ++r) {
      const int t = item.from + r / group, head = item.head * group + r % group;
      const float* out = s.out + r * kMaxHeadDim;
      for (int d = 0; d < dim; d += kGroup) {
        attended_.put(t, (head * dim + d) / kGroup, load(out + d), load(out + d + 16));
      }
    }
  }

  using Clock = std::chrono::steady_clock;

  Config c_;
  Clock::time_point mark_;
  double seconds_[kParts] = {};
  Pool pool_;
  WorkQueue queue_;
  std::unique_ptr<AttentionScratch[]> scratch_;
  std::vector<float> frequencies_;
  const Batch* batch_ = nullptr;
  bool decode_only_ = false, own_norms_ = false;
  int capacity_ = 0;
  std::vector<float> hidden_, qkv_, rope_;
  Act in_, attended_, mlp_;
  std::vector<uint8_t> in_memory_, attended_memory_, mlp_memory_;
  std::vector<Act> own_;
  std::vector<std::vector<uint8_t>> own_memory_;
};

}  // namespace sc
