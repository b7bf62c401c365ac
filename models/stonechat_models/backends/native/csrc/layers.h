// The structures that describe a model and the input of a step.  bindings.py mirrors them with
// ctypes: keep the order of the fields.
#pragma once
#include <array>

#include "matrix.h"

namespace sc {

enum Activation : int32_t { kSilu = 0, kGeluTanh = 1 };

// What mixes the tokens of a sequence in a layer.  All but attention keep a state (states.h).
enum Mixer : int32_t { kAttention = 0, kShortConvolution = 1, kDeltaRule = 2 };

struct Config {
  int32_t layers, hidden, heads, kv_heads, head_dim, mlp, vocab;
  int32_t rotary_dim, rotary_tables;
  int32_t activation;
  int32_t expert_mlp, experts_per_token, scale_chosen;  // scale_chosen: weights add up to one
  int32_t taps;  // of convolutions, the current token's included; at most kMaxTaps
  int32_t key_heads, value_heads, key_dim, value_dim;  // of the delta rule
  int32_t interleaved;  // value head i has key head i % key_heads; else they come in groups
  float rms_eps, attention_scale;
  float embedding_scale, residual_scale, logit_scale;
  float attention_cap, logit_cap;    // x becomes cap * tanh(x / cap); 0: none
  const float* inverse_frequencies;  // [rotary_tables][rotary_dim / 2]
  const float* rotary_scales;        // [rotary_tables]
  const int32_t* rotary_axes;  // [rotary_dim / 2]: 0 time, 1 height, 2 width; null: no M-RoPE
};

// A layer with experts has a router.  Its gate, up and down hold the matrices of all experts, one
// behind the other.
//
// `o` multiplies what the mixer makes of the other products of the normed rows (`projections`):
//   attention          queries, keys, values; z, if there is one, gates the output
//   short convolution  q gates the output, k the input v of the convolution
//   delta rule         queries, keys, values; z gates the output; a decays the state, b is the
//                      strength of its update
struct Layer {
  Matrix q, k, v, z, a, b, o, gate, up, down, router;
  Matrix shared_gate, shared_up, shared_down, shared_router;  // of a shared expert, if there is one
  const float *attention_norm, *mlp_norm;          // [hidden], or null: no norm of the input
  const float *attention_out_norm, *mlp_out_norm;  // [hidden], or null: no norm of the output
  const float *q_norm, *k_norm;  // [head_dim]; [all heads] if whole_norms; or null
  const float *taps, *taps_bias;  // [taps][channels]; [channels], or null
  const float *decay, *step_bias;  // [value_heads]
  const float* value_norm;         // [value_dim]
  int32_t whole_norms;
  int32_t window;   // number of keys that a query sees, its own included; 0: all
  int32_t rotary;   // index of the table of frequencies; -1: no rotary embedding
  int32_t experts;  // number of experts; 0: one feed-forward block
  int32_t mixer;

  static constexpr int kProjections = 6;
  std::array<const Matrix*, kProjections> projections() const { return {&q, &k, &v, &z, &a, &b}; }
  // Columns of the outputs of these, which lie one behind the other, each padded to panels.
  int projected_columns() const {
    int panels = 0;
    for (const Matrix* m : projections()) panels += m->panels();
    return panels * kPanel;
  }

  bool has_shared_expert() const { return shared_down.n > 0; }
  bool has_out_norms() const { return attention_out_norm != nullptr; }
};

// The parts of a step whose time is measured, in the order of PARTS in bindings.py.
enum Part : int { kNorms, kQkv, kMixer, kOutput, kGateUp, kDown, kHead, kParts };

// What media change in a step.
struct StepMedia {
  int32_t count, layers;
  const int64_t* rows;            // [count], ascending: tokens whose embeddings are given
  const float* embeddings;        // [count][hidden]
  const float* layer_embeddings;  // [layers][count][hidden]: added after the first layers
  const int64_t* rope_positions;  // [3][tokens], or null: those of the batch
  const int32_t* visible_ends;    // [tokens]: each sees the positions before this one; or null
};

struct Batch {
  int32_t tokens, sequences, block_width, outputs;
  const int64_t *token_ids, *positions, *slots;
  const int32_t *query_start, *block_table;
  const int64_t* logits_index;
  const int64_t* state_slots;  // [sequences], or null for a model without states
  float* logits;  // [outputs][vocab]
  float* hidden;  // [outputs][hidden], or null if only logits are wanted
  const StepMedia* media;  // null: the step has none
};

}  // namespace sc
