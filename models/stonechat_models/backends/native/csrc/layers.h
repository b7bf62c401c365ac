// The structures that describe a model and the input of a step.  bindings.py mirrors them with
// ctypes: keep the order of the fields.
#pragma once
#include "matrix.h"

namespace sc {

enum Activation : int32_t { kSilu = 0, kGeluTanh = 1 };

struct Config {
  int32_t layers, hidden, heads, kv_heads, head_dim, mlp, vocab;
  int32_t rotary_dim, rotary_tables;
  int32_t activation;
  int32_t expert_mlp, experts_per_token, scale_chosen;  // scale_chosen: weights add up to one
  float rms_eps, attention_scale;
  float embedding_scale, residual_scale, logit_scale;
  float attention_cap, logit_cap;    // x becomes cap * tanh(x / cap); 0: none
  const float* inverse_frequencies;  // [rotary_tables][rotary_dim / 2]
  const float* rotary_scales;        // [rotary_tables]
};

// A layer with experts has a router.  Its gate, up and down hold the matrices of all experts, one
// behind the other.
struct Layer {
  Matrix q, k, v, o, gate, up, down, router;
  const float *attention_norm, *mlp_norm;          // [hidden], or null: no norm of the input
  const float *attention_out_norm, *mlp_out_norm;  // [hidden], or null: no norm of the output
  const float *q_norm, *k_norm;  // [head_dim]; [all heads] if whole_norms; or null
  int32_t whole_norms;
  int32_t window;   // number of keys that a query sees, its own included; 0: all
  int32_t rotary;   // index of the table of frequencies; -1: no rotary embedding
  int32_t experts;  // number of experts; 0: one feed-forward block

  bool has_out_norms() const { return attention_out_norm != nullptr; }
};

// The parts of a step whose time is measured, in the order of PARTS in bindings.py.
enum Part : int { kNorms, kQkv, kAttention, kOutput, kGateUp, kDown, kHead, kParts };

struct Batch {
  int32_t tokens, sequences, block_width, outputs;
  const int64_t *token_ids, *positions, *slots;
  const int32_t *query_start, *block_table;
  const int64_t* logits_index;
  float* logits;  // [outputs][vocab]
};

}  // namespace sc
