// A decoder-only transformer like Llama: one call runs one step for all its rows.
//
// A step is one job of the pool.  Every member runs through the layers; the parts of a layer share
// their work in phases (pool.h), so all members are in the same part at any time.
//   embedding | layers: norm, products, mixer, output product, norm, gate and up, down | head
// Images replace embeddings, and may add to the hidden rows after the first layers.
// Units: times in seconds.
#pragma once
#include <algorithm>
#include <chrono>
#include <exception>
#include <vector>

#include "delta_rule.h"
#include "experts.h"
#include "feed_forward.h"
#include "rows.h"
#include "self_attention.h"
#include "shared_expert.h"

namespace sc {

class Model {
 public:
  Model(const Config& config, int threads)
      : layers(size_t(config.layers)),
        caches(size_t(config.layers)),
        states(size_t(config.layers)),
        w_(config, threads) {}

  std::vector<Layer> layers;
  std::vector<KvCache> caches;
  std::vector<States> states;
  Matrix embedding, head;
  const float* final_norm = nullptr;

  Pool& pool() { return w_.pool; }

  const Config& config() const { return w_.c; }

  // Seconds that member 0 has spent in each part so far, its waits for the others included.
  const double* seconds() const { return seconds_; }

  // Returns null, or why the step cannot run.
  const char* forward(const Batch& batch) {
    if (const char* problem = problem_of(batch)) return problem;
    w_.batch = &batch;
    try {
      reserve(std::max(batch.tokens, batch.outputs));
      attention_.prepare(batch, caches[0]);
      find_media(batch);
    } catch (const std::exception&) {
      capacity_ = 0;
      return "there is not enough memory for the step";
    }
    w_.pool.run([this](int member) { run(member); });
    return nullptr;
  }

 private:
  static constexpr const char* kOutsideVocabulary = "a token is outside the vocabulary";
  using Clock = std::chrono::steady_clock;

  // The border for the numbers of a step: none of them leads outside of a table or the cache.
  const char* problem_of(const Batch& b) const {
    auto outside = [](const auto* numbers, int64_t count, int64_t end) {
      return std::any_of(numbers, numbers + count, [&](int64_t x) { return x < 0 || x >= end; });
    };
    const int64_t per_block = int64_t(caches[0].tiles_per_block) * kTokens;
    const int64_t blocks = caches[0].blocks, width = b.block_width;
    if (b.tokens < 0 || b.sequences < 0 || width < 0 || b.outputs < 0) return "a count is negative";
    if (outside(b.positions, b.tokens, width * per_block)) return "a position is outside its blocks";
    if (outside(b.slots, b.tokens, blocks * per_block)) return "a slot is outside the KV cache";
    if (outside(b.block_table, b.sequences * width, blocks)) return "there is no such block";
    if (outside(b.logits_index, b.outputs, b.tokens)) return "there is no such row";
    const int32_t* start = b.query_start;
    if (start[0] != 0 || start[b.sequences] != b.tokens ||
        !std::is_sorted(start, start + b.sequences + 1)) {
      return "the sequences do not cover the tokens in order";
    }
    if (b.media) {
      if (const char* problem = problem_of_media(b, *b.media)) return problem;
    } else if (outside(b.token_ids, b.tokens, w_.c.vocab)) {
      return kOutsideVocabulary;
    }
    return problem_of_states(b);
  }

  const char* problem_of_media(const Batch& b, const StepMedia& media) const {
    if (media.count < 0 || media.layers < 0 || media.layers > w_.c.layers) {
      return "a count of media is wrong";
    }
    int i = 0;
    for (int t = 0; t < b.tokens; ++t) {
      if (i < media.count && media.rows[i] == t) ++i;
      else if (b.token_ids[t] < 0 || b.token_ids[t] >= w_.c.vocab) return kOutsideVocabulary;
    }
    if (i < media.count) return "the rows of media are not in order";
    if (media.rope_positions && !w_.c.rotary_axes) return "the model has one rotary position";
    for (int s = 0; media.visible_ends && s < b.sequences; ++s) {
      const int from = b.query_start[s], to = b.query_start[s + 1];
      for (int t = from; t < to; ++t) {
        const int end = media.visible_ends[t];
        if (end <= b.positions[t] || end > b.positions[to - 1] + 1) {
          return "a token sees past its step, or not itself";
        }
      }
    }
    return nullptr;
  }

  const char* problem_of_states(const Batch& b) const {
    bool keeps_states = false;
    int slots = INT32_MAX;
    for (size_t i = 0; i < layers.size(); ++i) {
      if (layers[i].mixer == kAttention) continue;
      keeps_states = true;
      slots = std::min(slots, states[i].slots);
    }
    if (!keeps_states) return nullptr;
    if (b.state_slots == nullptr) return "the sequences have no states";
    for (int i = 0; i < b.sequences; ++i) {
      if (b.state_slots[i] < 0 || b.state_slots[i] >= slots) return "there is no such state";
      if (std::count(b.state_slots, b.state_slots + i, b.state_slots[i])) {
        return "two sequences have one state";
      }
    }
    return nullptr;
  }

  void reserve(int rows) {
    if (rows <= capacity_) return;
    capacity_ = (rows + kTileRows - 1) / kTileRows * kTileRows;
    w_.reserve(capacity_, layers, head);
    experts_.reserve(capacity_, layers);
    shared_.reserve(capacity_, layers);
  }

  void run(int member) {
    if (member == 0) mark_ = Clock::now();
    embed();
    const StepMedia* media = w_.batch->media;
    for (size_t i = 0; i < layers.size(); ++i) {
      run_layer(i, member);
      if (media && i < size_t(media->layers)) add_media(*media, i);
    }
    if (w_.batch->outputs == 0) return;
    output();
    spent(member, kHead);
  }

  void run_layer(size_t i, int member) {
    const Layer& l = layers[i];
    const Act& x = w_.norm_rows(l.attention_norm, member);
    spent(member, kNorms);
    w_.project(l, x);
    spent(member, kQkv);
    if (l.mixer == kShortConvolution) convolution_.run(l, states[i]);
    else if (l.mixer == kDeltaRule) delta_rule_.run(l, states[i], member);
    else attention_.run(l, caches[i], member);
    spent(member, kMixer);
    w_.add_product(l.o, l.mixer == kAttention ? w_.attended : w_.mixed, l.attention_out_norm);
    spent(member, kOutput);
    const Act& y = w_.norm_rows(l.mlp_norm, member);
    spent(member, kNorms);
    if (l.experts) experts_.gate_up(l, y);
    else feed_forward_.gate_up(l, y);
    if (l.has_shared_expert()) shared_.gate_up(l, y);
    spent(member, kGateUp);
    if (l.experts) experts_.down(l);
    else feed_forward_.down(l);
    if (l.has_shared_expert()) shared_.down(l);
    spent(member, kDown);
  }

  void spent(int member, Part part) {
    if (member != 0) return;
    Clock::time_point now = Clock::now();
    seconds_[part] += std::chrono::duration<double>(now - mark_).count();
    mark_ = now;
  }

  // Reads the embeddings, and computes the factors of the rotary embedding for the positions.
  void embed() {
    const StepMedia* media = w_.batch->media;
    const int64_t* rope_positions = media ? media->rope_positions : nullptr;
    w_.pool.for_each(w_.batch->tokens, [&](int t) {
      if (media && media_rows_[size_t(t)] >= 0) put_media_row(*media, t);
      else put_token_row(t);
      const float position = float(w_.batch->positions[t]);
      if (!rope_positions) return put_rope_row(t, [position](int) { return position; });
      put_rope_row(t, [&](int i) {
        const size_t axis = size_t(w_.c.rotary_axes[i]);
        return float(rope_positions[axis * size_t(w_.batch->tokens) + size_t(t)]);
      });
    });
  }

  void put_token_row(int t) {
    float* row = w_.hidden_row(t);
    read_row(embedding, int(w_.batch->token_ids[t]), row);
    if (w_.c.embedding_scale == 1.0f) return;
    for (int i = 0; i < w_.c.hidden; ++i) row[i] *= w_.c.embedding_scale;
  }

  void put_media_row(const StepMedia& media, int t) {
    const size_t hidden = size_t(w_.c.hidden);
    std::copy_n(media.embeddings + size_t(media_rows_[size_t(t)]) * hidden, hidden,
                w_.hidden_row(t));
  }

  // `position(i)`: the position of token t that frequency i rotates by.
  template <class Position>
  void put_rope_row(int t, Position position) {
    const Config& c = w_.c;
    const int half = c.rotary_dim / 2;
    float* rope = w_.rope_row(t);
    for (int table = 0; table < c.rotary_tables; ++table, rope += c.rotary_dim) {
      const float* frequencies = c.inverse_frequencies + table * half;
      for (int i = 0; i < half; ++i) {
        const float angle = position(i) * frequencies[i];
        rope[i] = std::cos(angle) * c.rotary_scales[table];
        rope[half + i] = std::sin(angle) * c.rotary_scales[table];
      }
    }
  }

  // Finds the row of `embeddings` that each token has, on the calling thread.
  void find_media(const Batch& batch) {
    if (!batch.media) return;
    media_rows_.assign(size_t(batch.tokens), -1);
    for (int i = 0; i < batch.media->count; ++i) {
      media_rows_[size_t(batch.media->rows[i])] = i;
    }
  }

  // Adds what media add after layer i.
  void add_media(const StepMedia& media, size_t i) {
    const size_t hidden = size_t(w_.c.hidden);
    const float* added = media.layer_embeddings + i * size_t(media.count) * hidden;
    w_.pool.for_each(media.count, [&](int k) {
      float* row = w_.hidden_row(int(media.rows[k]));
      for (size_t j = 0; j < hidden; j += 16) {
        store(row + j, add(load(row + j), load(added + size_t(k) * hidden + j)));
      }
    });
  }

  // Norms the rows that logits are wanted for, and multiplies them by the head.  The normed rows
  // are handed out too if they are wanted.
  void output() {
    const Config& c = w_.c;
    const Batch& batch = *w_.batch;
    w_.pool.for_each(batch.outputs, [&](int i) {
      const int t = int(batch.logits_index[i]);
      w_.norm_row(t, final_norm, w_.input, i);
      if (batch.hidden == nullptr) return;
      float* to = batch.hidden + size_t(i) * size_t(c.hidden);
      std::copy_n(w_.hidden_row(t), c.hidden, to);
      if (final_norm != nullptr) norm_in_place(to, final_norm, c.hidden, c.rms_eps);
    });
    each_panel(w_.pool, head.panels(), w_.input, batch.outputs, [&](int p, const RowBlock& rows) {
      F16 acc[kRowBlock];
      multiply(head, p, rows, acc);
      for (int r = 0; r < rows.count; ++r) {
        F16 x = mul(acc[r], set1(c.logit_scale));
        if (c.logit_cap != 0.0f) x = soft_cap(x, c.logit_cap);
        put_columns(batch.logits + size_t(rows.from + r) * size_t(c.vocab), p * kPanel, c.vocab, x);
      }
    });
  }

  Workspace w_;
  SelfAttention attention_{w_};
  ShortConvolution convolution_{w_};
  DeltaRule delta_rule_{w_};
  FeedForward feed_forward_{w_};
  Experts experts_{w_};
  SharedExpert shared_{w_};
  std::vector<int32_t> media_rows_;  // of each token: its row of embeddings, or -1
  int capacity_ = 0;  // rows that there is memory for
  Clock::time_point mark_;
  double seconds_[kParts] = {};
};

}  // namespace sc
