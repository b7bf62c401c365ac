// What a model consists of and what a step is given.  Mirrored by ctypes in library.py: keep the
// order.
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
  float attention_cap, logit_cap;  // x becomes cap * tanh(x / cap); 0: none
  const float* inverse_frequencies;  // [rotary_tables][rotary_dim / 2]
  const float* rotary_scales;        // [rotary_tables]
};

// A layer with experts has a router, and their matrices behind each other in gate, up and down.
struct Layer {
  Matrix q, k, v, o, gate, up, down, router;
  const float *attention_norm, *mlp_norm;          // [hidden], or null: the input as it is
  const float *attention_out_norm, *mlp_out_norm;  // [hidden], or null: the output as it is
  const float *q_norm, *k_norm;  // [head_dim], or of a whole row if whole_norms; or null
  int32_t whole_norms;
  int32_t window;   // keys a query sees, itself included; 0: all
  int32_t rotary;   // which table of frequencies; -1: no rotary embedding in this layer
  int32_t experts;  // 0: one feed-forward block

  bool has_out_norms() const { return attention_out_norm != nullptr; }
};

// What the time of a step goes to; the order is that of PARTS in library.py.
enum Part : int { kNorms, kQkv, kAttention, kOutput, kGateUp, kDown, kHead, kParts };

struct Batch {
  int32_t tokens, sequences, block_width, outputs;
  const int64_t *token_ids, *positions, *slots;
  const int32_t *query_start, *block_table;
  const int64_t* logits_index;
  float* logits;  // [outputs][vocab]
};

}  // namespace sc
