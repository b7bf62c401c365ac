// The C interface that bindings.py binds.  Pointers are borrowed: the caller keeps them alive.
//
// Whoever calls with numbers from a file has checked them: sizes in spec.py, shapes in
// tensor_source.py, rows in packing.py.  `sc_model_forward` checks the numbers of a step itself.
#include <exception>

#include "linear.h"
#include "key_sizes.h"
#include "model.h"
#include "pack.h"
#include "sampler.h"

using namespace sc;

// Returns what `make` creates, or null if there is no memory or no thread left for it.
template <class Make>
static void* created(Make make) {
  try {
    return make();
  } catch (const std::exception&) {
    return nullptr;
  }
}

extern "C" {

const char* sc_isa() { return isa_name(); }

size_t sc_packed_bytes(int kind, int n, int k) {
  return size_t((n + kPanel - 1) / kPanel) * panel_bytes(kind, k);
}

size_t sc_row_bytes(int kind, int k) { return row_bytes(kind, k); }

void* sc_pool_create(int threads) {
  return created([&] { return new Pool(threads); });
}
void sc_pool_destroy(void* pool) { delete static_cast<Pool*>(pool); }

void sc_pack(void* pool, int kind, int source, int n, int k, const uint8_t* rows, size_t stride,
             const int32_t* row_index, uint8_t* out) {
  const PackJob job{kind, source, n, k, rows, stride, row_index, out};
  const int panels = (n + kPanel - 1) / kPanel, chunk = 8;
  auto pack_chunk = [&](int i) {
    for (int p = i * chunk; p < std::min(panels, (i + 1) * chunk); ++p) pack_panel(job, p);
  };
  auto* team = static_cast<Pool*>(pool);
  team->run([&](int) { team->for_each((panels + chunk - 1) / chunk, pack_chunk, kLastPhase); });
}

void sc_read_row(const Matrix* w, int row, float* out) { read_row(*w, row, out); }

// y[m][n] = x[m][k] W^T (+ bias) on the calling thread, for tests and measurements.
void sc_matmul(const Matrix* w, const float* x, int m, float* y) {
  ActBuffer act;
  act.reserve(w->k, m, Forms(*w));
  for (int r = 0; r < m; ++r) act.put_row(r, x + size_t(r) * size_t(w->k));
  for (int from = 0; from < m; from += kRowBlock) {
    const RowBlock rows(act, from, std::min(kRowBlock, m - from));
    for (int p = 0; p < w->panels(); ++p) {
      F16 acc[kRowBlock];
      multiply(*w, p, rows, acc);
      for (int r = 0; r < rows.count; ++r) {
        put_columns(y + size_t(from + r) * size_t(w->n), p * kPanel, w->n, acc[r]);
      }
    }
  }
  release_tiles();
}

void* sc_linear_team_create(void* pool) {
  return created([&] { return new LinearTeam(static_cast<Pool*>(pool)); });
}
void sc_linear_team_destroy(void* team) { delete static_cast<LinearTeam*>(team); }
void sc_linear(void* team, const Matrix* w, const float* x, int m, float* y) {
  static_cast<LinearTeam*>(team)->run(*w, x, m, y);
}

void* sc_sampler_create(void* pool) {
  return created([&] { return new Sampler(static_cast<Pool*>(pool)); });
}
void sc_sampler_destroy(void* sampler) { delete static_cast<Sampler*>(sampler); }
// Returns null, or why it cannot run.
const char* sc_sample(void* sampler, float* logits, int rows, int vocab,
                      const RowSettings* settings, int64_t* tokens, float* peaks) {
  try {
    static_cast<Sampler*>(sampler)->run(logits, rows, vocab, settings, tokens, peaks);
    return nullptr;
  } catch (const std::exception&) {
    return "there is not enough memory to sample";
  }
}

// As `sc_sample`; `tokens` are inside the vocabulary.
const char* sc_score(void* sampler, const float* logits, int rows, int vocab, const int64_t* tokens,
                     const Scores* out) {
  try {
    static_cast<Sampler*>(sampler)->score(logits, rows, vocab, tokens, *out);
    return nullptr;
  } catch (const std::exception&) {
    return "there is not enough memory for log-probabilities";
  }
}

void* sc_model_create(const Config* config, int threads) {
  return created([&] { return new Model(*config, threads); });
}
void sc_model_destroy(void* model) { delete static_cast<Model*>(model); }
void* sc_model_pool(void* model) { return &static_cast<Model*>(model)->pool(); }
void sc_model_set_layer(void* model, int i, const Layer* layer) {
  static_cast<Model*>(model)->layers[size_t(i)] = *layer;
}
void sc_model_set_ends(void* model, const Matrix* embedding, const Matrix* head,
                       const float* final_norm) {
  auto* m = static_cast<Model*>(model);
  m->embedding = *embedding;
  m->head = *head;
  m->final_norm = final_norm;
}
// `block_stride`: bytes from block to block.
void sc_model_set_cache(void* model, int layer, uint8_t* data, size_t block_stride, int format,
                        int heads, int dim, int tiles_per_block, int blocks) {
  auto* m = static_cast<Model*>(model);
  KvCache& cache = m->caches[size_t(layer)];
  cache = {data, block_stride, format, heads, dim, tiles_per_block, blocks, {}};
  if (format == kKvInt8) cache.key_sizes = key_sizes(m->layers[size_t(layer)], m->config());
}
// Attention of one layer alone, for tests: `projected` has the rows of Workspace::projected, and
// `out` gets the outputs as float[tokens][heads * head_dim].
void sc_attend(const Config* config, const Layer* layer, uint8_t* data, int format,
               int tiles_per_block, int blocks, const Batch* batch, const float* projected,
               int threads, float* out) {
  Workspace w(*config, threads);
  const int heads = config->kv_heads, dim = config->head_dim;
  const size_t stride = size_t(tiles_per_block * heads) * record_bytes(format, dim);
  const KvCache cache{data, stride, format, heads, dim, tiles_per_block, blocks, {}};
  SelfAttention attention(w);
  w.batch = batch;
  w.reserve(batch->tokens, {*layer}, layer->o);
  const size_t rows = size_t(batch->tokens), columns = size_t(layer->projected_columns());
  std::copy_n(projected, rows * columns, w.projected.data());
  attention.prepare(*batch, cache);
  w.pool.run([&](int member) { attention.run(*layer, cache, member); });
  std::copy_n(w.attended.f, rows * size_t(w.q_size()), out);
}
// `first`: the layer's state in slot 0; `stride`: floats from slot to slot.
void sc_model_set_states(void* model, int layer, float* first, size_t stride, int slots) {
  static_cast<Model*>(model)->states[size_t(layer)] = {first, stride, slots};
}
// Returns null, or why the step cannot run.
const char* sc_model_forward(void* model, const Batch* batch) {
  return static_cast<Model*>(model)->forward(*batch);
}
const double* sc_model_seconds(const void* model) {
  return static_cast<const Model*>(model)->seconds();
}

}  // extern "C"
