// Causal convolutions over a few tokens, one per channel, and the layers that consist of one.
//
// Invariant: an output is computed by one fixed sequence of operations on its token's input and
// those of the tokens before it, which a state carries from step to step.  So its bits do not
// depend on how the tokens are split into steps.
#pragma once
#include "functions.h"
#include "states.h"
#include "workspace.h"

namespace sc {

inline constexpr int kMaxTaps = 8;
inline constexpr int kMaxRun = 256;  // channels that are convolved together: neighbours in a row

// Convolves the channels from..to-1, token by token.  `input(t, c)` returns 16 inputs from channel
// c on, `output(t, c, y)` takes their outputs, and `done(t)` follows the last of a token.
template <class Input, class Output, class Done>
inline void convolve(const Layer& l, int taps, int channels, int from, int to, const Span& span,
                     Input input, Output output, Done done) {
  if (span.from == span.to) return;
  alignas(64) float past[kMaxTaps - 1][kMaxRun];
  const int last = taps - 1;
  for (int i = 0; i < last; ++i) {
    const float* state = span.state + i * channels;
    for (int c = from; c < to; c += 16) {
      store(past[i] + c - from, span.is_start ? set1(0.0f) : load(state + c));
    }
  }
  for (int t = span.from; t < span.to; ++t) {
    for (int c = from; c < to; c += 16) {
      F16 y = l.taps_bias ? load(l.taps_bias + c) : set1(0.0f);
      for (int i = 0; i < last; ++i) {
        const F16 x = load(past[i] + c - from);
        if (i > 0) store(past[i - 1] + c - from, x);
        y = fma(load(l.taps + i * channels + c), x, y);
      }
      const F16 x = input(t, c);
      store(past[last - 1] + c - from, x);
      output(t, c, fma(load(l.taps + last * channels + c), x, y));
    }
    done(t);
  }
  for (int i = 0; i < last; ++i) {
    float* state = span.state + i * channels;
    for (int c = from; c < to; c += 16) store(state + c, load(past[i] + c - from));
  }
}

// One phase: calls body(span, from, to) for all sequences and runs of channels, which are multiples
// of 32.
template <class Body>
inline void each_run(Workspace& w, const States& states, int channels, Body body) {
  const int groups = channels / kGroup;
  const int chunk = std::min(kMaxRun / kGroup, panels_per_item(w.pool, groups, 2));
  const int chunks = (groups + chunk - 1) / chunk;
  w.pool.for_each(w.batch->sequences * chunks, [&](int item) {
    const int from = item % chunks * chunk, to = std::min(groups, from + chunk);
    body(span_of(*w.batch, states, item / chunks), from * kGroup, to * kGroup);
  });
}

// A layer that convolves k * v and multiplies the result by q.
class ShortConvolution {
 public:
  explicit ShortConvolution(Workspace& workspace) : w_(workspace) {}

  // Writes the gated outputs to `mixed`.
  void run(const Layer& l, const States& states) {
    const int channels = l.v.n, k = l.q.panels() * kPanel, v = k + l.k.panels() * kPanel;
    each_run(w_, states, channels, [&](const Span& span, int from, int to) {
      auto input = [&](int t, int c) {
        const float* row = w_.projected_row(t) + c;
        return mul(load(row + k), load(row + v));
      };
      auto output = [&](int t, int c, F16 y) {
        float* row = w_.projected_row(t) + c;
        store(row, mul(load(row), y));
      };
      convolve(l, w_.c.taps, channels, from, to, span, input, output, [&](int t) {
        const float* row = w_.projected_row(t);
        for (int c = from; c < to; c += kGroup) {
          w_.mixed.put(t, c / kGroup, load(row + c), load(row + c + kPanel));
        }
      });
    });
  }

 private:
  Workspace& w_;
};

}  // namespace sc
