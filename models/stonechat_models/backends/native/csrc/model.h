// A decoder-only transformer like Llama: one call runs one step for all its rows.
//
// A step is one job of the thread pool.  The members take the items of each phase from a work queue
// and wait for each other at barriers.  Phases of a layer:
//   norm + quantise | q k v products | rotary + cache write | attention + quantise |
//   output product + residual | norm + quantise | gate, up, SwiGLU + quantise | down + residual
// With few rows, every member norms all rows itself.  With one token per sequence, the items of
// attention include the rotary phase.  Both save barriers.  Norms of outputs (Gemma) and of whole
// query and key rows (OLMo 2) are separate phases.  In layers with experts, the last two phases are
// replaced by:
//   router product | choice | grouping | gathering | gate, up | down | weighted sum
#pragma once
#include <chrono>
#include <memory>

#include "attention.h"
#include "functions.h"
#include "layers.h"
#include "matrix.h"
#include "pool.h"
#include "routing.h"

namespace sc {

class Model {
 public:
  Model(const Config& config, int threads)
      : c_(config), pool_(threads), scratch_(new AttentionScratch[size_t(pool_.size())]) {
    layers.resize(size_t(config.layers));
    caches.resize(size_t(config.layers));
  }

  std::vector<Layer> layers;
  std::vector<KvCache> caches;
  Matrix embedding, head;
  const float* final_norm = nullptr;

  // Seconds that member 0 has spent in each part so far, its waits for the others included.
  const double* seconds() const { return seconds_; }

  void forward(const Batch& batch) {
    batch_ = &batch;
    decode_only_ = batch.tokens == batch.sequences;
    own_norms_ = batch.tokens <= kOwnNormRows;
    reserve();
    queue_.reset(c_.layers * phases_ + 8);
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
    phases_ = 8;
    bool in = wants_floats(head), out = false, mid = false, out_norms = false;
    int experts = 0, mlp = 0;
    for (const Layer& l : layers) {
      in |= wants_floats(l.q) || wants_floats(l.k) || wants_floats(l.v) || wants_floats(l.gate) ||
            wants_floats(l.up);
      out |= wants_floats(l.o);
      mid |= wants_floats(l.down);
      in |= l.experts && wants_floats(l.router);
      experts = std::max(experts, l.experts);
      mlp = std::max(mlp, l.experts ? 0 : c_.mlp);
      out_norms |= l.has_out_norms();
      if (l.has_out_norms() || l.experts || l.whole_norms) phases_ = 16;
    }
    const size_t n = size_t(capacity_);
    hidden_.assign(n * size_t(c_.hidden), 0.0f);
    qkv_.assign(n * size_t(qkv_size()), 0.0f);
    rope_.assign(n * size_t(rope_width()), 0.0f);
    place(&in_, &in_memory_, c_.hidden, capacity_, in);
    place(&attended_, &attended_memory_, q_size(), capacity_, out);
    place(&mlp_, &mlp_memory_, mlp, capacity_, mid);
    if (out_norms) branch_.assign(n * size_t(c_.hidden), 0.0f);
    if (experts) reserve_experts(experts, in, mid);
    own_.resize(size_t(pool_.size()));
    own_memory_.resize(size_t(pool_.size()));
    for (size_t i = 0; i < own_.size(); ++i) {
      place(&own_[i], &own_memory_[i], c_.hidden, kOwnNormRows, in);
    }
  }

  // A slot is one row at one of its experts.
  void reserve_experts(int experts, bool in, bool mid) {
    const int slots = capacity_ * c_.experts_per_token;
    routing_.reserve(capacity_, c_.experts_per_token, experts);
    router_logits_.assign(size_t(capacity_) * size_t(experts), 0.0f);
    place(&routed_, &routed_memory_, c_.hidden, slots, in);
    place(&expert_mlp_, &expert_mlp_memory_, c_.expert_mlp, slots, mid);
    branch_.assign(size_t(slots) * size_t(c_.hidden), 0.0f);
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
      if (l.whole_norms) {
        norm_whole(l, phase++);
        pool_.barrier();
      }
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
      add_product(l.o, attended_, l.attention_out_norm, phase);
      phase += l.attention_out_norm ? 2 : 1;
      pool_.barrier();
      spent(member, kOutput);
      const Act& y = norm_rows(l.mlp_norm, member, phase++);
      spent(member, kNorms);
      if (l.experts) {
        experts(l, y, member, phase);
        phase += 7;
      } else {
        gate_up(l, y, phase++);
        pool_.barrier();
        spent(member, kGateUp);
        add_product(l.down, mlp_, l.mlp_out_norm, phase);
        phase += l.mlp_out_norm ? 2 : 1;
      }
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

  int rope_width() const { return c_.rotary_tables * c_.rotary_dim; }

  void embed(int phase) {
    const int half = c_.rotary_dim / 2;
    for (int t; queue_.next(phase, batch_->tokens, &t);) {
      float* row = hidden_.data() + size_t(t) * size_t(c_.hidden);
      read_row(embedding, int(batch_->token_ids[t]), row);
      if (c_.embedding_scale != 1.0f) {
        for (int i = 0; i < c_.hidden; ++i) row[i] *= c_.embedding_scale;
      }
      float* rope = rope_.data() + size_t(t) * size_t(rope_width());
      for (int table = 0; table < c_.rotary_tables; ++table, rope += c_.rotary_dim) {
        const float* frequencies = c_.inverse_frequencies + table * half;
        for (int i = 0; i < half; ++i) {
          float angle = float(batch_->positions[t]) * frequencies[i];
          rope[i] = std::cos(angle) * c_.rotary_scales[table];
          rope[half + i] = std::sin(angle) * c_.rotary_scales[table];
        }
      }
    }
  }

  void norm_row(const float* x, const float* weight, const Act& to, int row) const {
    if (weight == nullptr) {
      for (int i = 0; i < c_.hidden; i += kGroup)
        to.put(row, i / kGroup, load(x + i), load(x + i + 16));
      return;
    }
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

  // Calls body(panel, first row, rows) for all panels and tiles of rows.  An item is a run of
  // panels for a block of rows.  A panel is multiplied by all row tiles of its block while it is in
  // the L1 cache.
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

  // Stores 16 columns from `column` on in a row of `columns` columns.  The last panel may be partly
  // padding, which is not stored.
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

  // Adds x W^T, times the residual scale, to the hidden rows.  A `norm` that is not null is applied
  // first, in a second phase.
  void add_product(const Matrix& w, const Act& x, const float* norm, int phase) {
    const size_t width = size_t(c_.hidden);
    const F16 scale = set1(c_.residual_scale);
    each_panel(phase, w.panels(), batch_->tokens, [&](int p, int r0, int rows) {
      F16 acc[kTileRows];
      multiply(w, p, x, r0, rows, acc);
      for (int r = 0; r < rows; ++r) {
        const size_t at = size_t(r0 + r) * width + size_t(p * kPanel);
        if (norm) store(branch_.data() + at, acc[r]);
        else store(hidden_.data() + at, fma(acc[r], scale, load(hidden_.data() + at)));
      }
    });
    if (norm == nullptr) return;
    pool_.barrier();
    for (int t; queue_.next(phase + 1, batch_->tokens, &t);) {
      float *from = branch_.data() + size_t(t) * width, *to = hidden_.data() + size_t(t) * width;
      norm_in_place(from, norm, c_.hidden);
      for (int i = 0; i < c_.hidden; i += 16) {
        store(to + i, fma(load(from + i), scale, load(to + i)));
      }
    }
  }

  // Computes 32 columns of gate and of up for a tile of rows: one group of the activations that
  // `down` reads.
  template <bool Gelu>
  static void gate_up_tile(const Layer& l, int panel, const Act& x, int r0, int rows, const Act& to,
                           int g) {
    F16 gate[2][kTileRows], up[2][kTileRows];
    for (int i = 0; i < 2; ++i) {
      multiply(l.gate, panel + i, x, r0, rows, gate[i]);
      multiply(l.up, panel + i, x, r0, rows, up[i]);
    }
    auto activate = [](F16 v) { return Gelu ? gelu_tanh(v) : silu(v); };
    for (int r = 0; r < rows; ++r) {
      to.put(r0 + r, g, mul(activate(gate[0][r]), up[0][r]), mul(activate(gate[1][r]), up[1][r]));
    }
  }

  void gate_up(const Layer& l, const Act& x, int phase) {
    each_panel(phase, c_.mlp / kGroup, batch_->tokens, [&](int g, int r0, int rows) {
      if (c_.activation == kGeluTanh) gate_up_tile<true>(l, 2 * g, x, r0, rows, mlp_, g);
      else gate_up_tile<false>(l, 2 * g, x, r0, rows, mlp_, g);
    });
  }

  // ------------------------------------------------------------- experts

  // Uses seven phases, from `phase` on.
  void experts(const Layer& l, const Act& x, int member, int phase) {
    const int tokens = batch_->tokens;
    each_panel(phase, l.router.panels(), tokens, [&](int p, int r0, int rows) {
      F16 acc[kTileRows];
      multiply(l.router, p, x, r0, rows, acc);
      for (int r = 0; r < rows; ++r) {
        put_columns(router_logits_.data() + (r0 + r) * l.experts, p * kPanel, l.experts, acc[r]);
      }
    });
    pool_.barrier();
    for (int t; queue_.next(phase + 1, tokens, &t);) {
      routing_.choose(t, router_logits_.data() + t * l.experts, l.experts, c_.scale_chosen);
    }
    pool_.barrier();
    for (int i; queue_.next(phase + 2, 1, &i);) routing_.group(tokens, l.experts, kRowBlock);
    pool_.barrier();
    for (int slot; queue_.next(phase + 3, tokens * c_.experts_per_token, &slot);) {
      routed_.copy(slot, x, routing_.row_of(slot));
    }
    pool_.barrier();
    const int units = c_.expert_mlp / kGroup;
    each_expert_panel(phase + 4, units, [&](int e, int g, int r0, int rows) {
      gate_up_tile<false>(l, 2 * (e * units + g), routed_, r0, rows, expert_mlp_, g);
    });
    pool_.barrier();
    spent(member, kGateUp);
    const int panels = c_.hidden / kPanel;
    each_expert_panel(phase + 5, panels, [&](int e, int p, int r0, int rows) {
      F16 acc[kTileRows];
      multiply(l.down, e * panels + p, expert_mlp_, r0, rows, acc);
      for (int r = 0; r < rows; ++r) {
        store(branch_.data() + size_t(r0 + r) * size_t(c_.hidden) + p * kPanel, acc[r]);
      }
    });
    pool_.barrier();
    for (int t; queue_.next(phase + 6, tokens, &t);) add_experts(t);
  }

  // Adds the weighted outputs of a row's experts to the hidden row, in the experts' order.
  void add_experts(int t) {
    float* to = hidden_.data() + size_t(t) * size_t(c_.hidden);
    for (int i = 0; i < c_.hidden; i += 16) {
      F16 total = set1(0.0f);
      for (int k = 0; k < c_.experts_per_token; ++k) {
        const size_t slot = size_t(routing_.slot_of(t, k));
        const float* out = branch_.data() + slot * size_t(c_.hidden) + i;
        total = fma(load(out), set1(routing_.weight_of(t, k)), total);
      }
      store(to + i, fma(total, set1(c_.residual_scale), load(to + i)));
    }
  }

  // Like each_panel, for the slots of each expert: calls body(expert, panel, first slot, slots).
  template <class Body>
  void each_expert_panel(int phase, int panels, Body body) {
    const auto& blocks = routing_.blocks();
    const int chunk = std::max(1, std::min(32, panels / (pool_.size() * 2)));
    const int chunks = (panels + chunk - 1) / chunk;
    for (int item; queue_.next(phase, chunks * int(blocks.size()), &item);) {
      const Routing::Block& b = blocks[size_t(item / chunks)];
      const int p0 = item % chunks * chunk, p1 = std::min(panels, p0 + chunk);
      for (int p = p0; p < p1; ++p) {
        for (int r = b.from; r < b.to; r += kTileRows) {
          body(b.expert, p, r, std::min(kTileRows, b.to - r));
        }
      }
    }
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
        F16 x = mul(acc[r], set1(c_.logit_scale));
        if (c_.logit_cap != 0.0f) x = soft_cap(x, c_.logit_cap);
        put_columns(out, p * kPanel, c_.vocab, x);
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

  void norm_in_place(float* x, const float* weight, int n) const {
    F16 factor = set1(inverse_rms(x, n, c_.rms_eps));
    for (int i = 0; i < n; i += 16) {
      store(x + i, mul(mul(load(x + i), factor), load(weight + i)));
    }
  }

  // Norms the query and key rows over all heads at once.
  void norm_whole(const Layer& l, int phase) {
    for (int t; queue_.next(phase, batch_->tokens, &t);) {
      float* row = qkv_.data() + size_t(t) * size_t(qkv_size());
      norm_in_place(row, l.q_norm, q_size());
      norm_in_place(row + q_size(), l.k_norm, kv_size());
    }
  }

  // Norms and rotates the query heads of group h of token t, in place.  Does the same to the key,
  // then writes key and value to the cache.
  void rotate_and_store(const Layer& l, const KvCache& cache, int t, int h) {
    const int group = c_.heads / c_.kv_heads, dim = c_.head_dim;
    float* row = qkv_.data() + size_t(t) * size_t(qkv_size());
    float *key = row + q_size() + h * dim, *value = key + kv_size();
    const float* rope = rope_.data() + size_t(t) * size_t(rope_width()) + l.rotary * c_.rotary_dim;
    const bool norms = l.q_norm && !l.whole_norms;
    for (int i = 0; i < group; ++i) {
      float* q = row + (h * group + i) * dim;
      if (norms) norm_in_place(q, l.q_norm, dim);
      if (l.rotary >= 0) rotate(q, rope);
    }
    if (norms) norm_in_place(key, l.k_norm, dim);
    if (l.rotary >= 0) rotate(key, rope);
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
    int base = 0, i = 0;  // number of items of the sequences before i
    for (int n; queue_.next(phase, INT32_MAX, &n);) {
      int items = 0, blocks = 0;
      for (; i < batch_->sequences; ++i, base += items) {
        const int tokens = batch_->query_start[i + 1] - batch_->query_start[i];
        blocks = (tokens + step - 1) / step, items = blocks * c_.kv_heads;
        if (n < base + items) break;
      }
      if (i == batch_->sequences) return;
      const int block = blocks - 1 - (n - base) / c_.kv_heads;  // the most keys first
      const int from = batch_->query_start[i] + block * step;
      const int to = std::min(batch_->query_start[i + 1], from + step);
      attend_item(l, cache, s, {i, (n - base) % c_.kv_heads, from, to}, nullptr);
    }
  }

  // For one token per sequence.  Each item also rotates its heads and writes to the cache.
  // Meanwhile the first keys of the next item are prefetched.
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
    attend(s, {cache, blocks_of(item.sequence), item.head}, rows, {l.window, c_.attention_cap},
           after);
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
  const Batch* batch_ = nullptr;
  bool decode_only_ = false, own_norms_ = false;
  int capacity_ = 0, phases_ = 0;
  std::vector<float> hidden_, qkv_, rope_;
  std::vector<float> branch_;  // outputs that await their norm, or outputs of the experts' slots
  Act in_, attended_, mlp_;
  std::vector<uint8_t> in_memory_, attended_memory_, mlp_memory_;
  Routing routing_;
  std::vector<float> router_logits_;
  Act routed_, expert_mlp_;
  std::vector<uint8_t> routed_memory_, expert_mlp_memory_;
  std::vector<Act> own_;
  std::vector<std::vector<uint8_t>> own_memory_;
};

}  // namespace sc
