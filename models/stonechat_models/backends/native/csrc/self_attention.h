// The mixer of a layer with attention: rotary embedding, cache write and attention.
//
// Phases: norms of whole rows (OLMo 2) | keys and values to the cache | attention.  If each sequence
// has one token, the item of attention with that token's own key also writes it to the cache, which
// saves a barrier.
//
// The tokens of an image may see each other both ways.  They are in one step, so all their keys are
// in the cache when attention begins.
//
// An item of attention is one of the plan's, for one KV head.  The last member to finish a span of
// a split token merges all its spans.
#pragma once
#include <atomic>
#include <memory>

#include "attention_plan.h"
#include "workspace.h"

namespace sc {

class SelfAttention {
 public:
  explicit SelfAttention(Workspace& workspace)
      : w_(workspace), scratch_(new AttentionScratch[size_t(workspace.pool.size())]()) {}

  // Plans a step and allocates memory for it, on the calling thread.
  void prepare(const Batch& batch, const KvCache& cache) {
    plan_.build(batch, cache, group(), w_.c.kv_heads, w_.pool.size());
    const size_t wanted = size_t(plan_.num_partials) * size_t(w_.c.kv_heads) * partial_floats();
    if (partials_.size() < wanted) partials_.resize(wanted);
    const size_t counts = size_t(batch.tokens) * size_t(w_.c.kv_heads);
    if (num_counts_ >= counts || plan_.num_partials == 0) return;
    finished_.reset(new std::atomic<int>[counts]());
    num_counts_ = counts;
  }

  // Writes keys and values to the cache, and the output of attention to `attended`.
  void run(const Layer& l, const KvCache& cache, int member) {
    if (l.whole_norms) {
      w_.pool.for_each(w_.batch->tokens, [&](int t) {
        float* row = w_.projected_row(t);
        norm_in_place(row, l.q_norm, w_.q_size(), w_.c.rms_eps);
        norm_in_place(row + w_.q_size(), l.k_norm, w_.kv_size(), w_.c.rms_eps);
      });
    }
    const int heads = w_.c.kv_heads;
    if (!plan_.decodes) {
      w_.pool.for_each(w_.batch->tokens, [&](int t) {
        for (int h = 0; h < heads; ++h) store_key(l, cache, t, h);
      });
    }
    const int items = int(plan_.items.size()) * heads;
    w_.pool.for_each_with_next(items, [&](int i, int next) {
      Work work{l, cache, scratch_[size_t(member)], view_of(l), plan_.items[size_t(i / heads)],
                i % heads};
      KeySpan ahead;
      const bool more = next < items && first_span(work, next, ahead);
      attend(work, more ? &ahead : nullptr);
    });
  }

 private:
  // An item that a member works at.
  struct Work {
    const Layer& l;
    const KvCache& cache;
    AttentionScratch& s;
    View view;
    const AttentionItem& item;
    int head;
  };

  int group() const { return w_.c.heads / w_.c.kv_heads; }
  View view_of(const Layer& l) const {
    return {l.window, w_.c.attention_cap, w_.c.attention_scale};
  }
  int position(int t) const { return int(w_.batch->positions[t]); }
  // The last key that token t sees.
  int last_key(int t) const {
    const StepMedia* media = w_.batch->media;
    return media && media->visible_ends ? media->visible_ends[t] - 1 : position(t);
  }
  size_t partial_floats() const {
    return size_t(group()) * (sizeof(Partial) / sizeof(float) + size_t(w_.c.head_dim));
  }
  // The results of query head g of a group for one span.
  Partial& partial(int t, int span, int head, int g) {
    const size_t index = size_t(plan_.partials[size_t(t)] + span) * size_t(w_.c.kv_heads);
    const size_t size = sizeof(Partial) / sizeof(float) + size_t(w_.c.head_dim);
    float* at = partials_.data() + (index + size_t(head)) * partial_floats() + size_t(g) * size;
    return *reinterpret_cast<Partial*>(at);
  }

  void rotate(float* __restrict x, const float* __restrict rope) const {
    const int half = w_.c.rotary_dim / 2;
    for (int i = 0; i < half; ++i) {
      float a = x[i], b = x[i + half];
      x[i] = a * rope[i] - b * rope[half + i];
      x[i + half] = b * rope[i] + a * rope[half + i];
    }
  }

  void norm_and_rotate(const Layer& l, int t, const float* norm, float* x) const {
    if (norm && !l.whole_norms) norm_in_place(x, norm, w_.c.head_dim, w_.c.rms_eps);
    if (l.rotary >= 0) rotate(x, w_.rope_row(t) + l.rotary * w_.c.rotary_dim);
  }

  // Norms and rotates the key of token t, then writes key and value to the cache.
  void store_key(const Layer& l, const KvCache& cache, int t, int h) const {
    float* key = w_.projected_row(t) + w_.q_size() + h * w_.c.head_dim;
    norm_and_rotate(l, t, l.k_norm, key);
    cache.put(w_.batch->slots[t], h, key, key + w_.kv_size());
  }

  // Makes the operand rows of the heads of token t, from block row r on.
  void put_queries(const Work& w, int t, int r) const {
    alignas(64) float q[kMaxHeadDim];
    const int dim = w_.c.head_dim;
    for (int g = 0; g < group(); ++g) {
      std::copy_n(w_.projected_row(t) + (w.head * group() + g) * dim, dim, q);
      norm_and_rotate(w.l, t, w.l.q_norm, q);
      if (const float* sizes = w.cache.sizes_of(w.head)) {
        for (int d = 0; d < dim; d += 16) store(q + d, mul(load(q + d), load(sizes + d)));
      }
      put_query(w.s, r + g, q, dim, w.cache.format, w.view);
      w.s.first[r + g] = w.view.first(position(t));
      w.s.last[r + g] = last_key(t);
    }
  }

  // The tiles of a sequence's span, as far as the key at `last`.
  void find(const Work& w, int sequence, int start, int last, KeySpan& span) const {
    const int32_t* blocks =
        w_.batch->block_table + size_t(sequence) * size_t(w_.batch->block_width);
    const int per_block = w.cache.tiles_per_block, count = last / kTokens - start / kTokens;
    int block = start / kTokens / per_block, within = start / kTokens % per_block;
    span.start = start;
    span.tiles = std::min(kSpanTiles, count + 1);
    for (int i = 0; i < kSpanTiles; ++i) {
      span.records[i] = w.cache.record(blocks[block], within, w.head);
      if (i >= count) continue;  // the last tile repeats
      if (++within == per_block) within = 0, ++block;
    }
  }

  // Finds the first span that the member's next item reads.
  bool first_span(const Work& w, int next, KeySpan& span) const {
    const AttentionItem& item = plan_.items[size_t(next / w_.c.kv_heads)];
    const int t = plan_.tokens[size_t(item.first)], last = last_key(t);
    const int first = item.span == kAllSpans ? w.view.first_span(position(t)) : item.span;
    const Work other{w.l, w.cache, w.s, w.view, item, next % w_.c.kv_heads};
    find(other, item.sequence, first * kSpan, last, span);
    return true;
  }

  void attend(const Work& w, const KeySpan* next) {
    const int32_t* tokens = plan_.tokens.data() + w.item.first;
    int seen[kBlockRows], count = 0;  // tokens that see a key of the item
    int first = INT32_MAX, last = 0;
    for (int i = 0; i < w.item.count; ++i) {
      const int t = tokens[i], low = w.view.first_span(position(t));
      if (w.item.span != kAllSpans && w.item.span < low) continue;
      first = std::min(first, low);
      last = std::max(last, last_key(t));
      put_queries(w, t, count * group());
      seen[count++] = t;
    }
    if (count == 0) return;
    const bool is_split = w.item.span != kAllSpans;
    if (is_split) first = w.item.span, last = std::min(last, (first + 1) * kSpan - 1);
    if (plan_.decodes && position(seen[0]) <= last) {
      store_key(w.l, w.cache, seen[0], w.head);
    }
    w.s.clear(count * group(), w_.c.head_dim);
    run_spans(w, first, last, count * group(), next);
    for (int i = 0; i < count; ++i) {
      if (is_split) keep(w, seen[i], i * group());
      else finish(w, seen[i], i * group());
    }
    for (int i = 0; is_split && i < count; ++i) merge_if_last(w, seen[i]);
  }

  void run_spans(const Work& w, int first, int last, int rows, const KeySpan* next) const {
    KeySpan spans[2];
    find(w, w.item.sequence, first * kSpan, last, spans[0]);
    for (int i = 0; first * kSpan <= last; ++first, i ^= 1) {
      const bool more = (first + 1) * kSpan <= last;
      if (more) find(w, w.item.sequence, (first + 1) * kSpan, last, spans[i ^ 1]);
      Ahead ahead(more ? &spans[i ^ 1] : next, record_bytes(w.cache.format, w.cache.dim));
      if (w.cache.format == kKvInt8) {
        SpanAttention<Bytes>{w.s, spans[i], ahead, rows, w.cache.dim, w.view}.run();
      } else {
        SpanAttention<Pairs>{w.s, spans[i], ahead, rows, w.cache.dim, w.view}.run();
      }
    }
  }

  // Keeps the result of a span for the rows of token t, which begin at row r of the block.
  void keep(const Work& w, int t, int r) {
    for (int g = 0; g < group(); ++g) {
      Partial& to = partial(t, w.item.span, w.head, g);
      to.top = w.s.top[r + g], to.sum = w.s.sum[r + g];
      std::copy_n(w.s.out + (r + g) * kMaxHeadDim, w_.c.head_dim, to.values());
    }
  }

  void merge_if_last(const Work& w, int t) {
    const int first = w.view.first_span(position(t)), end = position(t) / kSpan + 1;
    std::atomic<int>& finished = finished_[size_t(t) * size_t(w_.c.kv_heads) + size_t(w.head)];
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 < end - first) return;
    finished.store(0, std::memory_order_relaxed);  // for the next layer
    w.s.clear(group(), w_.c.head_dim);
    for (int span = first; span < end; ++span) {
      for (int g = 0; g < group(); ++g) merge(w.s, g, partial(t, span, w.head, g));
    }
    finish(w, t, 0);
  }

  void merge(AttentionScratch& s, int r, Partial& from) const {
    const Merge m(set1(s.top[r]), set1(from.top));
    float sum[16], top[16], *out = s.out + r * kMaxHeadDim;
    store(sum, m.sum(set1(s.sum[r]), set1(from.sum)));
    store(top, m.top);
    s.sum[r] = sum[0], s.top[r] = top[0];
    for (int d = 0; d < w_.c.head_dim; d += 16) {
      store(out + d, fma(load(out + d), m.of_a, mul(load(from.values() + d), m.of_b)));
    }
  }

  // Writes the output of token t, whose rows begin at row r of the block.
  void finish(const Work& w, int t, int r) const {
    const int dim = w_.c.head_dim;
    const float* z = w_.projected_row(t) + w_.q_size() + 2 * w_.kv_size();
    for (int g = 0; g < group(); ++g) {
      const float* out = w.s.out + (r + g) * kMaxHeadDim;
      const F16 inverse = set1(1.0f / w.s.sum[r + g]);
      const int column = (w.head * group() + g) * dim;
      auto columns = [&](int d) {
        F16 x = mul(load(out + d), inverse);
        return w.l.z.n > 0 ? gated(x, load(z + column + d)) : x;
      };
      for (int d = 0; d < dim; d += kGroup) {
        w_.attended.put(t, (column + d) / kGroup, columns(d), columns(d + 16));
      }
    }
  }

  Workspace& w_;
  AttentionPlan plan_;
  std::vector<float> partials_;  // Partial [token and span][KV head][head of the group]
  std::unique_ptr<std::atomic<int>[]> finished_;  // spans [token][KV head]
  size_t num_counts_ = 0;
  std::unique_ptr<AttentionScratch[]> scratch_;  // of each member
};

}  // namespace sc
