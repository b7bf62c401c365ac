// Divides the attention of a step into items: query tokens, and the spans of keys that they see.
//
// An item is all spans of a few tokens of one sequence, or one span of several tokens.  Tokens with
// one span each per item are *split*: their spans are computed in any order and merged later.  A
// sequence that decodes is split if it would take too long for one thread, or if it shares blocks
// with others.  The sequences that share all blocks of a span are one item there, so their keys and
// values are read once.
//
// Invariant: no plan changes a bit of a row (attention.h), so it may depend on anything.
#pragma once
#include <vector>

#include "attention.h"
#include "layers.h"

namespace sc {

struct AttentionItem {
  int32_t first, count;  // index and number of its tokens in AttentionPlan::tokens
  int32_t sequence;      // whose blocks it reads
  int32_t span;          // or kAllSpans
};

inline constexpr int kAllSpans = -1;

class AttentionPlan {
 public:
  std::vector<AttentionItem> items;
  std::vector<int32_t> tokens;
  std::vector<int64_t> partials;  // of each token: the index of its first Partial, or kWhole
  int64_t num_partials = 0;       // of a KV head
  bool decodes = false;           // each sequence has one token

  static constexpr int64_t kWhole = -1;

  // `group`: query heads of a KV head; `heads`: KV heads; `threads`: those that share the work.
  void build(const Batch& batch, const KvCache& cache, int group, int heads, int threads) {
    batch_ = &batch;
    block_size_ = cache.tiles_per_block * kTokens;
    items.clear();
    tokens.clear();
    partials.assign(size_t(batch.tokens), kWhole);
    num_partials = 0;
    decodes = true;
    int64_t total = 0;  // spans of the sequences that decode
    for (int i = 0; i < batch.sequences; ++i) {
      const int n = queries(i);
      decodes = decodes && n == 1;
      if (n == 1) total += spans(i);
    }
    add_chunks(group, heads, threads);
    add_decoding(total, std::max(1, kBlockRows / group), heads, threads, cache.blocks);
  }

 private:
  int queries(int i) const { return batch_->query_start[i + 1] - batch_->query_start[i]; }
  int position(int i) const { return int(batch_->positions[batch_->query_start[i]]); }
  int spans(int i) const { return position(i) / kSpan + 1; }
  const int32_t* blocks(int i) const {
    return batch_->block_table + size_t(i) * size_t(batch_->block_width);
  }

  void add(int sequence, int span, int from, int to) {
    items.push_back({int32_t(tokens.size()), to - from, sequence, span});
    for (int t = from; t < to; ++t) tokens.push_back(t);
  }

  // Sequences with several tokens, in chunks: the chunks with the most keys first.
  void add_chunks(int group, int heads, int threads) {
    int rows = kBlockRows;
    auto chunks = [&](int i) {
      const int per_item = std::max(1, rows / group);
      return queries(i) > 1 ? (queries(i) + per_item - 1) / per_item : 0;
    };
    auto count = [&] {
      int n = 0;
      for (int i = 0; i < batch_->sequences; ++i) n += chunks(i);
      return n * heads;
    };
    while (rows > kQueryTile && count() < 4 * threads) rows /= 2;
    const int per_item = std::max(1, rows / group);
    for (int i = 0; i < batch_->sequences; ++i) {
      for (int c = chunks(i) - 1; c >= 0; --c) {
        const int from = batch_->query_start[i] + c * per_item;
        add(i, kAllSpans, from, std::min(from + per_item, int(batch_->query_start[i + 1])));
      }
    }
  }

  // Sequences with one token.  `total`: their spans; `most`: tokens of an item.
  void add_decoding(int64_t total, int most, int heads, int threads, int num_blocks) {
    split_.clear();
    last_item_.resize(size_t(num_blocks), 0);
    int longest = 0;
    for (int i = 0; i < batch_->sequences; ++i) {
      if (queries(i) != 1) continue;
      const bool is_long = int64_t(spans(i)) * 4 * threads > total * heads;
      if (spans(i) > 1 && (is_long || shares(i))) {
        split_.push_back(i);
        longest = std::max(longest, spans(i));
        partials[size_t(batch_->query_start[i])] = num_partials;
        num_partials += spans(i);
      } else {
        add(i, kAllSpans, batch_->query_start[i], batch_->query_start[i] + 1);
      }
    }
    for (int span = 0; span < longest; ++span) add_span(span, most);
  }

  // Whether another sequence that decodes has the same first block.
  bool shares(int i) {
    for (int j = 0; j < batch_->sequences; ++j) {
      if (j != i && queries(j) == 1 && spans(j) > 1 && blocks(j)[0] == blocks(i)[0]) return true;
    }
    return false;
  }

  // Items of one span.  Sequences whose blocks are the same there share items, except where a
  // sequence is still writing.
  void add_span(int span, int most) {
    const size_t begin = items.size();
    const int first = span * kSpan / block_size_, last = ((span + 1) * kSpan - 1) / block_size_;
    for (const int i : split_) {
      if (spans(i) <= span) continue;
      const bool is_full = position(i) >= (span + 1) * kSpan;
      int32_t& known = last_item_[size_t(blocks(i)[first])];
      const size_t at = size_t(known);
      if (is_full && at >= begin && at < items.size() && same_blocks(i, items[at], first, last) &&
          int(groups_[at - begin].size()) < most) {
        groups_[at - begin].push_back(batch_->query_start[i]);
        continue;
      }
      if (is_full) known = int32_t(items.size());
      if (groups_.size() <= items.size() - begin) groups_.emplace_back();
      groups_[items.size() - begin].assign(1, batch_->query_start[i]);
      items.push_back({0, 0, i, span});
    }
    for (size_t at = begin; at < items.size(); ++at) {
      const std::vector<int32_t>& group = groups_[at - begin];
      items[at].first = int32_t(tokens.size());
      items[at].count = int32_t(group.size());
      tokens.insert(tokens.end(), group.begin(), group.end());
    }
  }

  bool same_blocks(int i, const AttentionItem& item, int first, int last) const {
    return std::equal(blocks(i) + first, blocks(i) + last + 1, blocks(item.sequence) + first);
  }

  const Batch* batch_ = nullptr;
  int block_size_ = 0;
  std::vector<int> split_;                    // sequences
  std::vector<int32_t> last_item_;            // of each block: an item that begins with it
  std::vector<std::vector<int32_t>> groups_;  // tokens of the items of a span
};

}  // namespace sc
