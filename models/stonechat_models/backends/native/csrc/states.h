// The states of a layer that is not attention: what it keeps of the tokens before a step.
//
// A sequence has one slot.  Its state in a layer consists of floats, one part behind the other:
//   inputs  [taps - 1][channels]                        of the convolution, the oldest first
//   memory  [value head][block][key_dim][32 columns]    of the delta rule only
//
// Invariant: a step names each slot once, so different sequences write different memory.
#pragma once
#include "layers.h"

namespace sc {

struct States {
  float* first = nullptr;  // of slot 0
  size_t stride = 0;       // floats from slot to slot
  int slots = 0;

  float* slot(int64_t i) const { return first + size_t(i) * stride; }
};

// The tokens from..to-1 of a step, all of one sequence, and its state in a layer.
struct Span {
  int from, to;
  float* state;
  bool is_start;  // of the sequence: the state counts as zero, whatever its memory holds
};

inline Span span_of(const Batch& batch, const States& states, int sequence) {
  const int from = batch.query_start[sequence], to = batch.query_start[sequence + 1];
  const bool is_start = from < to && batch.positions[from] == 0;
  return {from, to, states.slot(batch.state_slots[sequence]), is_start};
}

}  // namespace sc
