// The mixer of a layer with attention: rotary embedding, cache write and attention.
//
// Phases: norms of whole rows (OLMo 2) | rotary + cache write | attention.  With one token per
// sequence, the items of attention include the rotary phase, which saves a barrier.
//
// An item of attention is one KV head and a few query tokens of one sequence, so that its query
// rows (tokens x heads of the group) fill at most one block of attention.h.
#pragma once
#include <memory>

#include "attention.h"
#include "workspace.h"

namespace sc {

class SelfAttention {
 public:
  explicit SelfAttention(Workspace& workspace)
      : w_(workspace), scratch_(new AttentionScratch[size_t(workspace.pool.size())]) {}

  // Writes keys and values to the cache, and the output of attention to `attended`.
  void run(const Layer& l, const KvCache& cache, int member) {
    const Batch& batch = *w_.batch;
    AttentionScratch& scratch = scratch_[size_t(member)];
    if (l.whole_norms) {
      w_.pool.for_each(batch.tokens, [&](int t) {
        float* row = w_.projected_row(t);
        norm_in_place(row, l.q_norm, w_.q_size(), w_.c.rms_eps);
        norm_in_place(row + w_.q_size(), l.k_norm, w_.kv_size(), w_.c.rms_eps);
      });
    }
    if (batch.tokens == batch.sequences) return attend_single(l, cache, scratch);
    w_.pool.for_each(batch.tokens, [&](int t) {
      for (int h = 0; h < w_.c.kv_heads; ++h) rotate_and_store(l, cache, t, h);
    });
    attend_many(l, cache, scratch);
  }

 private:
  struct Item {
    int sequence, head, from, to;  // query tokens from..to-1
  };

  int group() const { return w_.c.heads / w_.c.kv_heads; }

  const int32_t* blocks_of(int sequence) const {
    return w_.batch->block_table + size_t(sequence) * size_t(w_.batch->block_width);
  }

  void rotate(float* __restrict x, const float* __restrict rope) const {
    const int half = w_.c.rotary_dim / 2;
    for (int i = 0; i < half; ++i) {
      float a = x[i], b = x[i + half];
      x[i] = a * rope[i] - b * rope[half + i];
      x[i + half] = b * rope[i] + a * rope[half + i];
    }
  }

  // Norms and rotates the query heads of group h of token t, in place.  Does the same to the key,
  // then writes key and value to the cache.
  void rotate_and_store(const Layer& l, const KvCache& cache, int t, int h) const {
    const int dim = w_.c.head_dim;
    float* row = w_.projected_row(t);
    float *key = row + w_.q_size() + h * dim, *value = key + w_.kv_size();
    const float* rope = l.rotary < 0 ? nullptr : w_.rope_row(t) + l.rotary * w_.c.rotary_dim;
    const bool norms = l.q_norm && !l.whole_norms;
    for (int i = 0; i < group(); ++i) {
      float* q = row + (h * group() + i) * dim;
      if (norms) norm_in_place(q, l.q_norm, dim, w_.c.rms_eps);
      if (rope) rotate(q, rope);
    }
    if (norms) norm_in_place(key, l.k_norm, dim, w_.c.rms_eps);
    if (rope) rotate(key, rope);
    cache.put(w_.batch->slots[t], h, key, value);
  }

  // Attention for one token per sequence.  Each item also rotates its heads and writes to the
  // cache.  Meanwhile the first keys of the member's next item are prefetched.
  void attend_single(const Layer& l, const KvCache& cache, AttentionScratch& s) {
    const int heads = w_.c.kv_heads, items = w_.batch->sequences * heads;
    w_.pool.for_each_with_next(items, [&](int item, int next) {
      const half_t* after[kSpanTiles];
      if (next < items) {
        const int last = int(w_.batch->positions[next / heads]);
        const BlockTable table{cache, blocks_of(next / heads), next % heads};
        table.keys(BlockTable::first_span(last, l.window), last, after);
      }
      const int i = item / heads, head = item % heads;
      rotate_and_store(l, cache, i, head);
      attend_item(l, cache, s, {i, head, i, i + 1}, next < items ? after : nullptr);
    });
  }

  // Attention for any number of tokens per sequence.
  void attend_many(const Layer& l, const KvCache& cache, AttentionScratch& s) {
    const int32_t* start = w_.batch->query_start;
    const int heads = w_.c.kv_heads, sequences = w_.batch->sequences;
    int tokens = 1;  // of an item
    while (tokens * 2 * group() <= kBlockRows) tokens *= 2;
    auto items_of = [&](int i) { return (start[i + 1] - start[i] + tokens - 1) / tokens * heads; };
    int total = 0;
    for (int i = 0; i < sequences; ++i) total += items_of(i);
    int i = 0, base = 0;  // number of items of the sequences before i
    w_.pool.for_each(total, [&](int item) {
      while (item >= base + items_of(i)) base += items_of(i++);
      const int chunk = (base + items_of(i) - 1 - item) / heads;  // the most keys first
      const int from = start[i] + chunk * tokens, to = std::min(start[i + 1], from + tokens);
      attend_item(l, cache, s, {i, (item - base) % heads, from, to}, nullptr);
    });
  }

  // `after`: keys that the member needs next, or null.
  void attend_item(const Layer& l, const KvCache& cache, AttentionScratch& s, const Item& item,
                   const half_t* const* after) const {
    const int dim = w_.c.head_dim, rows = (item.to - item.from) * group();
    auto token = [&](int r) { return item.from + r / group(); };
    auto column = [&](int r) { return (item.head * group() + r % group()) * dim; };
    for (int r = 0; r < rows; ++r) {
      const float* q = w_.projected_row(token(r)) + column(r);
      for (int d = 0; d < dim; ++d) s.q[d * kBlockRows + r] = q[d] * w_.c.attention_scale;
      s.position[r] = int(w_.batch->positions[token(r)]);
    }
    attend(s, {cache, blocks_of(item.sequence), item.head}, rows, {l.window, w_.c.attention_cap},
           after);
    for (int r = 0; r < rows; ++r) {
      const float* out = s.out + r * kMaxHeadDim;
      const float* z = w_.projected_row(token(r)) + w_.q_size() + 2 * w_.kv_size() + column(r);
      auto columns = [&](int d) {
        return l.z.n > 0 ? gated(load(out + d), load(z + d)) : load(out + d);
      };
      for (int d = 0; d < dim; d += kGroup) {
        w_.attended.put(token(r), (column(r) + d) / kGroup, columns(d), columns(d + 16));
      }
    }
  }

  Workspace& w_;
  std::unique_ptr<AttentionScratch[]> scratch_;  // of each member
};

}  // namespace sc
