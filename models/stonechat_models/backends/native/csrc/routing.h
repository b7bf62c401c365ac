// Chooses the experts for each row of a step, and sorts the rows by expert.
#pragma once
#include <algorithm>
#include <vector>

#include "products.h"

namespace sc {

class Routing {
 public:
  struct Block {
    int expert, from, to;  // slots from..to-1
  };

  void reserve(int rows, int chosen, int experts) {
    chosen_ = chosen;
    expert_.resize(size_t(rows * chosen));
    weight_.resize(size_t(rows * chosen));
    slot_.resize(size_t(rows * chosen));
    row_.resize(size_t(rows * chosen));
    used_.resize(size_t(experts) + 1);
    blocks_.reserve(size_t(experts + rows * chosen));  // so that `group` allocates nothing
  }

  // Chooses the experts with the largest logits for a row (of equal ones the first), in ascending
  // order.  Their weights are their shares of the softmax over all experts.  `rescale` makes these
  // add up to one.
  void choose(int row, const float* logits, int experts, bool rescale) {
    int* expert = expert_.data() + row * chosen_;
    float* weight = weight_.data() + row * chosen_;
    int count = 0;
    for (int e = 0; e < experts; ++e) {
      if (count == chosen_ && logits[e] <= logits[expert[count - 1]]) continue;
      int at = count < chosen_ ? count++ : count - 1;
      for (; at > 0 && logits[expert[at - 1]] < logits[e]; --at) expert[at] = expert[at - 1];
      expert[at] = e;
    }
    const float top = logits[expert[0]];
    float total = 0.0f;
    if (rescale) {
      for (int i = 0; i < count; ++i) total += std::exp(logits[expert[i]] - top);
    } else {
      for (int e = 0; e < experts; ++e) total += std::exp(logits[e] - top);
    }
    std::sort(expert, expert + count);
    for (int i = 0; i < count; ++i) weight[i] = std::exp(logits[expert[i]] - top) / total;
  }

  // Gives each pair of a row and a chosen expert a slot, sorted by expert.  Splits the slots of
  // each expert into blocks of at most `block`.
  void group(int rows, int experts, int block) {
    std::fill(used_.begin(), used_.end(), 0);
    for (int i = 0; i < rows * chosen_; ++i) ++used_[size_t(expert_[size_t(i)]) + 1];
    blocks_.clear();
    for (int e = 0; e < experts; ++e) {
      const int from = used_[size_t(e)], to = from + used_[size_t(e) + 1];
      used_[size_t(e) + 1] = to;
      for (int b = from; b < to; b += block) blocks_.push_back({e, b, std::min(to, b + block)});
    }
    for (int i = 0; i < rows * chosen_; ++i) {
      const int slot = used_[size_t(expert_[size_t(i)])]++;
      slot_[size_t(i)] = slot;
      row_[size_t(slot)] = i / chosen_;
    }
  }

  const std::vector<Block>& blocks() const { return blocks_; }
  int row_of(int slot) const { return row_[size_t(slot)]; }
  int slot_of(int row, int i) const { return slot_[size_t(row * chosen_ + i)]; }
  float weight_of(int row, int i) const { return weight_[size_t(row * chosen_ + i)]; }

 private:
  int chosen_ = 0;
  std::vector<int> expert_, slot_, row_, used_;
  std::vector<float> weight_;
  std::vector<Block> blocks_;
};

}  // namespace sc
