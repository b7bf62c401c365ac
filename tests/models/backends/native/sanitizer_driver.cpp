// Runs the library through its C interface, for the sanitizers (test_sanitizers.py) and for other
// processors (test_arm.py).  Writes the logits that it computes to the file that it is given, if any.
//
// Everything is computed with 1, 2 and 3 threads and must have the same bits.  Memory that the
// caller owns has exactly the size that the interface asks for, so that the address sanitizer sees
// each access past an end.  Returns 1 at the first difference.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <memory>

#include "api.cpp"

namespace {

constexpr int kThreads[] = {1, 2, 3};

void require(bool holds, const char* what, int detail) {
  if (holds) return;
  std::printf("not equal: %s (%d)\n", what, detail);
  std::exit(1);
}

// ---------------------------------------------------------------- random data

struct Random {
  uint64_t state;

  uint32_t bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state >> 33);
  }
  int below(int n) { return int(bits() % uint32_t(n)); }
  float value() { return float(bits()) / 0x1p30f - 1.0f; }  // in [-1, 1]
  std::vector<float> values(int n, float scale, float center = 0.0f) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& x : out) x = center + scale * value();
    return out;
  }
};

// A row of weights in the format of a file.
void put_source_row(int source, int k, Random& random, uint8_t* row) {
  const float scale = 1.0f / std::sqrt(float(k));
  auto put_half = [](uint8_t* to, float x) {
    const half_t h = to_half(x);
    std::memcpy(to, &h, 2);
  };
  for (int i = 0; !is_quantised(source) && i < k; ++i) {
    const float x = scale * random.value();
    const uint16_t b = float_to_bf16(x);
    if (source == kFloat) std::memcpy(row + 4 * i, &x, 4);
    else if (source == kBf16) std::memcpy(row + 2 * i, &b, 2);
    else put_half(row + 2 * i, x);
  }
  if (!is_quantised(source)) return;
  const Format f = kFormats[source];
  const HeadFields fields = head_fields(source);
  const int width = 1 << (f.table == Table::kNonLinear4 ? 8 : f.bits);
  const int scales = f.block == 32 ? 1 : source == kQ6_K ? 128 : f.head == 20 ? 16 : 64;
  const int bytes = int(row_bytes(source, f.block));
  for (int b = 0; b < k / f.block; ++b) {
    uint8_t* block = row + b * bytes;
    for (int i = 0; i < bytes; ++i) block[i] = uint8_t(random.bits());
    if (source == kMXFP4) block[0] = 121;
    else put_half(block + fields.halves_at, 2.0f * scale / float(width * scales));
    if (f.is_affine)
      put_half(block + fields.halves_at + 2,
               (f.block == 32 ? -1.0f : 1.0f) * scale / float(scales));
  }
}

// ---------------------------------------------------------------- matrices

struct Kinds {
  int kind, source;
};
constexpr Kinds kMatrices[] = {
    {kQ4_1, kQ4_1}, {kQ4_1, kBf16},     {kQ4_0, kQ4_0},   {kQ8_0, kQ8_0},     {kQ8_0, kFloat},
    {kBf16, kBf16}, {kHalf, kHalf},     {kFloat, kFloat}, {kFloat, kBf16},    {kQ5_0, kQ5_0},
    {kQ5_1, kQ5_1}, {kIQ4_NL, kIQ4_NL}, {kMXFP4, kMXFP4}, {kQ2_K, kQ2_K},     {kQ3_K, kQ3_K},
    {kQ4_K, kQ4_K}, {kQ5_K, kQ5_K},     {kQ6_K, kQ6_K},   {kIQ4_XS, kIQ4_XS},
};

// Random weights that a pool has packed, with a bias or without.
struct Packed {
  std::vector<uint8_t> data;
  std::vector<float> bias;
  Matrix matrix;

  Packed(void* pool, Kinds format, int n, int k, bool has_bias, uint64_t seed)
      : data(sc_packed_bytes(format.kind, n, k)) {
    Random random{seed};
    const size_t stride = row_bytes(format.source, k);
    std::vector<uint8_t> rows(size_t(n) * stride);
    std::vector<int32_t> index;
    for (int i = 0; i < n; ++i) {
      put_source_row(format.source, k, random, rows.data() + size_t(i) * stride);
      index.push_back(n - 1 - i);
    }
    sc_pack(pool, format.kind, format.source, n, k, rows.data(), stride, index.data(), data.data());
    matrix.kind = format.kind, matrix.n = n, matrix.k = k, matrix.data = data.data();
    if (!has_bias) return;
    bias = random.values(matrix.panels() * kPanel, 0.3f);
    matrix.bias = bias.data();
  }
};

// The product in double precision, from the rows that read_row returns.
void check_product(const Matrix& w, const std::vector<float>& x, int m, const float* y) {
  std::vector<float> row(static_cast<size_t>(w.k));
  for (int j = 0; j < w.n; ++j) {
    sc_read_row(&w, j, row.data());
    for (int r = 0; r < m; ++r) {
      double sum = w.bias ? double(w.bias[j]) : 0.0;
      for (size_t i = 0; i < row.size(); ++i) {
        sum += double(row[i]) * double(x[size_t(r) * row.size() + i]);
      }
      require(std::fabs(sum - double(y[r * w.n + j])) < 0.05, "product", w.kind);
    }
  }
}

void check_linear(Kinds format, int n, int k) {
  std::vector<std::unique_ptr<Packed>> packed;
  for (int threads : kThreads) {
    void* pool = sc_pool_create(threads);
    packed.push_back(std::make_unique<Packed>(pool, format, n, k, n % 2 == 1, 7));
    require(packed.back()->data == packed.front()->data, "packed bytes", format.kind);
    const Matrix& w = packed.back()->matrix;
    void* team = sc_linear_team_create(pool);
    for (int m : {1, 4, 5, 21, 130}) {
      const std::vector<float> x = Random{uint64_t(m)}.values(m * k, 1.0f);
      std::vector<float> expected(size_t(m * n)), y(size_t(m * n));
      sc_matmul(&w, x.data(), m, expected.data());
      sc_linear(team, &w, x.data(), m, y.data());
      require(y == expected, "linear", m);
      if (threads == 1 && m == 5) check_product(w, x, m, y.data());
    }
    sc_linear_team_destroy(team);
    sc_pool_destroy(pool);
  }
}

// ---------------------------------------------------------------- the pool

// Each item of a phase is handed out once, and a phase sees all that the phases before it wrote.
void check_pool(int threads) {
  constexpr int kItems = 40, kPhases = 12, kJobs = 60;
  Pool pool(threads);
  std::vector<int> sums(kItems, 1), next(kItems, 0);
  for (int job = 0; job < kJobs; ++job) {
    pool.run([&](int) {
      for (int phase = 0; phase < kPhases; ++phase) {
        const int n = phase % 4 == 3 ? phase % 3 : kItems;  // also no item, or fewer than members
        auto add = [&](int i) { next[size_t(i)] += sums[size_t(i * 7 + 1) % kItems] % 1000 + i; };
        if (phase % 2) pool.for_each(n, add);
        else pool.for_each_with_next(n, [&](int i, int) { add(i); });
        pool.for_each(1, [&](int) { std::swap(sums, next); });
      }
    });
  }
  std::vector<int> expected(kItems, 1), other(kItems, 0);
  for (int i = 0; i < kJobs * kPhases; ++i) {
    const int phase = i % kPhases, n = phase % 4 == 3 ? phase % 3 : kItems;
    for (int j = 0; j < n; ++j) {
      other[size_t(j)] += expected[size_t(j * 7 + 1) % kItems] % 1000 + j;
    }
    std::swap(expected, other);
  }
  require(sums == expected, "pool", threads);
}

// Workers without a job fall asleep, members that wait for an item do too, and all wake again.
void check_sleep(int threads) {
  Pool pool(threads);
  std::atomic<int> members{0};
  for (int job = 0; job < 2; ++job) {
    while (pool.idle_sleepers() < threads - 1) std::this_thread::yield();
    pool.run([&](int) {
      pool.for_each(1, [&](int) {
        while (pool.phase_sleepers() < threads - 1) std::this_thread::yield();
      });
      ++members;
    });
  }
  require(members == 2 * threads, "members that woke", threads);
}

// ---------------------------------------------------------------- models

enum Shape {
  kPlain,
  kNormsAndCaps,
  kWholeNorms,
  kMixtureOfExperts,
  kConvolutions,
  kDelta,
  kShapes
};

constexpr int kVocab = 63, kBlockTokens = 32, kBlocks = 16, kSlots = 4, kHidden = 64;

// A tiny model of a shape with its own weights and cache.  The kinds of its matrices take turns.
class TinyModel {
 public:
  TinyModel(Shape shape, int threads) : pool_(sc_pool_create(threads)), shape_(shape) {
    Config c{};
    c.layers = 3, c.hidden = kHidden, c.heads = 4, c.kv_heads = 2, c.head_dim = 32, c.mlp = 96;
    c.vocab = kVocab, c.rotary_dim = shape == kPlain ? 16 : 32;
    c.rotary_tables = shape == kNormsAndCaps ? 2 : 1;
    c.activation = shape == kNormsAndCaps ? kGeluTanh : kSilu;
    c.rms_eps = 1e-5f, c.attention_scale = 0.2f, c.residual_scale = 0.7f, c.logit_scale = 1.0f;
    c.embedding_scale = shape == kNormsAndCaps ? 8.0f : 1.0f;
    if (shape == kNormsAndCaps) c.attention_cap = 4.0f, c.logit_cap = 5.0f;
    if (shape == kMixtureOfExperts) c.expert_mlp = 64, c.experts_per_token = 2;
    c.taps = shape == kDelta ? 4 : 3;
    if (shape == kDelta) c.key_heads = 2, c.value_heads = 6, c.key_dim = 32, c.value_dim = 64;
    c.interleaved = shape == kDelta;
    c.inverse_frequencies = vector(c.rotary_tables * c.rotary_dim / 2, 0.5f, 0.5f);
    c.rotary_scales = vector(c.rotary_tables, 0.0f, 1.0f);
    for (int i = 0; i < c.rotary_dim / 2; ++i) axes_.push_back(i % 3);
    c.rotary_axes = axes_.data();
    model_ = sc_model_create(&c, threads);
    for (int i = 0; i < c.layers; ++i) add_layer(c, i);
    // One after the other: compilers differ in the order in which they evaluate arguments.
    const Matrix* embedding = matrix(kVocab, c.hidden, false);
    const Matrix* head = matrix(kVocab, c.hidden, false);
    sc_model_set_ends(model_, embedding, head, vector(c.hidden, 0.3f, 1.0f));
  }
  ~TinyModel() {
    sc_model_destroy(model_);
    sc_pool_destroy(pool_);
  }
  TinyModel(const TinyModel&) = delete;

  struct Chunk {
    int sequence, first, tokens;
  };

  // The numbers of a step.
  struct Numbers {
    std::vector<int64_t> ids, positions, slots, rows, states;
    std::vector<int32_t> start{0}, table;
    int width = 0;  // blocks of the longest sequence
  };

  // One step; returns the logits of the last row of each chunk.
  std::vector<float> step(const std::vector<Chunk>& chunks, bool outputs = true) {
    Numbers numbers = numbers_of(chunks, outputs);
    std::vector<float> logits;
    require(run(numbers, &logits) == nullptr, "a step is refused", int(chunks.size()));
    return logits;
  }

  // What images change in a step: every third token is one of an image, and its id means nothing.
  struct Images {
    std::vector<int64_t> rows, positions;
    std::vector<float> embeddings, added;
    std::vector<int32_t> ends;
    StepMedia all{};

    Images(Numbers& n, uint64_t seed) {
      const int tokens = int(n.ids.size());
      for (int t = 1; t < tokens; t += 3) rows.push_back(t), n.ids[size_t(t)] = 1 << 30;
      const int count = int(rows.size());
      embeddings = Random{seed}.values(count * kHidden, 1.0f);
      for (uint64_t layer : {1, 2}) {
        const std::vector<float> more = Random{seed + layer}.values(count * kHidden, 1.0f);
        added.insert(added.end(), more.begin(), more.end());
      }
      for (int axis = 0; axis < 3; ++axis)
        for (int64_t p : n.positions) positions.push_back(p / (axis + 1));
      for (size_t s = 0; s + 1 < n.start.size(); ++s) {  // all but the first token see all
        for (int t = n.start[s]; t < n.start[s + 1]; ++t) {
          const int last = t == n.start[s] ? t : n.start[s + 1] - 1;
          ends.push_back(int32_t(n.positions[size_t(last)]) + 1);
        }
      }
      all = {count, 2, rows.data(), embeddings.data(), added.data(), positions.data(), ends.data()};
    }
    Images(const Images&) = delete;
  };

  // One step with images; returns the logits of the last row of each chunk.
  std::vector<float> step_with_images(const std::vector<Chunk>& chunks) {
    Numbers numbers = numbers_of(chunks, true);
    const Images images(numbers, 3);
    std::vector<float> logits;
    require(run(numbers, &logits, &images.all) == nullptr, "images are refused", int(chunks.size()));
    return logits;
  }

  const char* run(Numbers& n, std::vector<float>* logits, const StepMedia* images = nullptr) {
    logits->resize(n.rows.size() * kVocab);
    std::vector<float> hidden(n.rows.size() * kHidden);
    Batch batch{};
    batch.tokens = int32_t(n.ids.size()), batch.sequences = int32_t(n.start.size()) - 1;
    batch.block_width = n.width, batch.outputs = int32_t(n.rows.size());
    batch.token_ids = n.ids.data(), batch.positions = n.positions.data();
    batch.slots = n.slots.data(), batch.query_start = n.start.data();
    batch.block_table = n.table.data(), batch.logits_index = n.rows.data();
    batch.state_slots = n.states.data(), batch.logits = logits->data();
    batch.hidden = hidden.data(), batch.media = images;
    return sc_model_forward(model_, &batch);
  }

  // Sequence i owns every fourth block, so there are at most four.
  static Numbers numbers_of(const std::vector<Chunk>& chunks, bool outputs) {
    Numbers n;
    auto& [ids, positions, slots, rows, states, start, table, width] = n;
    for (const Chunk& chunk : chunks) {
      width = std::max(width, (chunk.first + chunk.tokens + kBlockTokens - 1) / kBlockTokens);
    }
    for (const Chunk& chunk : chunks) {
      auto block = [&](int i) { return kBlocks - 4 + chunk.sequence - 4 * i; };
      for (int t = chunk.first; t < chunk.first + chunk.tokens; ++t) {
        ids.push_back((t * 31 + chunk.sequence * 7) % kVocab);
        positions.push_back(t);
        slots.push_back(block(t / kBlockTokens) * kBlockTokens + t % kBlockTokens);
      }
      for (int i = 0; i < width; ++i) table.push_back(block(i));
      start.push_back(int32_t(ids.size()));
      states.push_back(kSlots - 1 - chunk.sequence);
      if (outputs) rows.push_back(int64_t(ids.size()) - 1);
    }
    return n;
  }

 private:
  const float* vector(int n, float scale, float center) {
    vectors_.push_back(Random{vectors_.size()}.values(n, scale, center));
    return vectors_.back().data();
  }

  const Matrix* matrix(int n, int k, bool has_bias) {
    const size_t i = packed_.size();
    const Kinds kinds = kMatrices[shape_ == kPlain ? 3 : i % 13];  // no blocks of 256
    packed_.push_back(std::make_unique<Packed>(pool_, kinds, n, k, has_bias, i));
    return &packed_.back()->matrix;
  }

  void add_layer(const Config& c, int i) {
    const int q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    const bool bias = shape_ == kPlain, whole = shape_ == kWholeNorms;
    Layer l{};
    if (i != 1 && shape_ == kConvolutions) {
      add_convolution(c, i, l);
    } else if (i != 1 && shape_ == kDelta) {
      add_delta_rule(c, i, l);
    } else {
      l.q = *matrix(q, c.hidden, bias), l.k = *matrix(kv, c.hidden, bias);
      l.v = *matrix(kv, c.hidden, bias), l.o = *matrix(c.hidden, q, false);
      if (shape_ == kDelta) l.z = *matrix(q, c.hidden, true);
    }
    l.experts = shape_ == kMixtureOfExperts && i != 1 ? 5 : 0;
    const int count = std::max(1, l.experts), mlp = l.experts ? c.expert_mlp : c.mlp;
    l.gate = *matrix(count * mlp, c.hidden, false), l.up = *matrix(count * mlp, c.hidden, false);
    l.down = *matrix(count * c.hidden, mlp, false);
    if (l.experts) l.router = *matrix(l.experts, c.hidden, false);
    if (l.experts && i == 2) {
      l.shared_gate = *matrix(96, c.hidden, false), l.shared_up = *matrix(96, c.hidden, false);
      l.shared_down = *matrix(c.hidden, 96, false), l.shared_router = *matrix(1, c.hidden, false);
    }
    if (!whole) l.attention_norm = vector(c.hidden, 0.3f, 1.0f);
    if (!whole) l.mlp_norm = vector(c.hidden, 0.3f, 1.0f);
    if (whole || shape_ == kNormsAndCaps) {
      l.attention_out_norm = vector(c.hidden, 0.3f, 1.0f);
      l.mlp_out_norm = vector(c.hidden, 0.3f, 1.0f);
      l.q_norm = vector(whole ? q : c.head_dim, 0.3f, 1.0f);
      l.k_norm = vector(whole ? kv : c.head_dim, 0.3f, 1.0f);
    }
    l.whole_norms = whole;
    l.window = shape_ == kNormsAndCaps && i == 0 ? 19 : 0;
    l.rotary = i == 2 ? -1 : i % c.rotary_tables;
    sc_model_set_layer(model_, i, &l);
    const int format = i % 2 ? kKvInt8 : kKvBf16;
    const size_t stride = size_t(kBlockTokens / kTokens) * size_t(c.kv_heads) *
                          record_bytes(format, c.head_dim);
    caches_.push_back(std::make_unique<std::vector<uint8_t>>(kBlocks * stride));
    sc_model_set_cache(model_, i, caches_.back()->data(), stride, format, c.kv_heads, c.head_dim,
                       kBlockTokens / kTokens, kBlocks);
  }

  void add_convolution(const Config& c, int i, Layer& l) {
    l.mixer = kShortConvolution;
    for (Matrix* m : {&l.q, &l.k, &l.v, &l.o}) *m = *matrix(c.hidden, c.hidden, i == 0);
    if (i == 0) l.taps_bias = vector(c.hidden, 0.3f, 0.0f);
    add_states(i, l, c.taps, c.hidden, 0);
  }

  void add_delta_rule(const Config& c, int i, Layer& l) {
    const int keys = c.key_heads * c.key_dim, values = c.value_heads * c.value_dim;
    l.mixer = kDeltaRule;
    l.q = *matrix(keys, c.hidden, false), l.k = *matrix(keys, c.hidden, false);
    l.v = *matrix(values, c.hidden, false), l.z = *matrix(values, c.hidden, false);
    l.a = *matrix(c.value_heads, c.hidden, false), l.b = *matrix(c.value_heads, c.hidden, false);
    l.o = *matrix(c.hidden, values, false);
    l.decay = vector(c.value_heads, 0.5f, -1.0f), l.step_bias = vector(c.value_heads, 0.3f, 0.0f);
    l.value_norm = vector(c.value_dim, 0.3f, 1.0f);
    add_states(i, l, c.taps, 2 * keys + values, c.value_heads * c.key_dim * c.value_dim);
  }

  // A slot has a float more than the layer needs, which nobody may touch.
  void add_states(int i, Layer& l, int taps, int channels, int memory) {
    l.taps = vector(taps * channels, 0.5f, 0.0f);
    const size_t stride = size_t((taps - 1) * channels + memory) + 1;
    states_.push_back(std::make_unique<std::vector<float>>(kSlots * stride, NAN));
    sc_model_set_states(model_, i, states_.back()->data(), stride, kSlots);
  }

  void* pool_;
  Shape shape_;
  void* model_ = nullptr;
  std::vector<int32_t> axes_;
  std::vector<std::vector<float>> vectors_;  // moving one keeps its address
  std::vector<std::unique_ptr<Packed>> packed_;
  std::vector<std::unique_ptr<std::vector<uint8_t>>> caches_;
  std::vector<std::unique_ptr<std::vector<float>>> states_;
};

std::vector<float> join(std::initializer_list<std::vector<float>> parts) {
  std::vector<float> out;
  for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

// Prompts whole and in chunks, decoding, both together, and a step without logits.
void check_model(Shape shape, std::FILE* file) {
  std::vector<float> expected;
  for (int threads : kThreads) {
    TinyModel model(shape, threads);
    const std::vector<float> logits = join({
        model.step({{0, 0, 1}}),
        model.step({{0, 1, 4}, {1, 0, 3}}),
        model.step({{0, 5, 100}, {1, 3, 1}, {2, 0, 37}}),
        model.step({{0, 105, 1}, {1, 4, 1}, {2, 37, 1}}),
        model.step({{1, 5, 40}, {3, 0, 9}}, false),
        model.step({{0, 106, 1}}),
        model.step_with_images({{2, 0, 90}, {0, 107, 1}, {3, 0, 12}, {1, 0, 1}}),
    });
    for (float x : logits) require(std::isfinite(x), "finite logits", shape);
    if (expected.empty()) expected = logits;
    require(logits == expected, "logits with other threads", shape);
    TinyModel again(shape, threads);
    again.step({{2, 0, 38}, {0, 0, 60}, {3, 0, 11}}, false);
    again.step({{0, 60, 46}}, false);
    const std::vector<float> last = again.step({{0, 106, 1}});
    const auto before_images = expected.end() - 4 * kVocab;
    require(std::equal(last.begin(), last.end(), before_images - kVocab), "chunks", shape);
    const std::vector<float> images = again.step_with_images({{2, 0, 90}});
    require(std::equal(images.begin(), images.end(), before_images), "images alone", shape);
  }
  if (file) std::fwrite(expected.data(), sizeof(float), expected.size(), file);
}

// Every number of a step, moved a little or far outside, refuses the step; the next step still
// runs.
void check_borders(Shape shape) {
  TinyModel model(shape, 2);
  const std::vector<TinyModel::Chunk> chunks = {{0, 0, 40}, {1, 0, 1}};
  const std::vector<float> expected = model.step(chunks);
  auto refuse_all = [&](auto member, std::initializer_list<int64_t> bad) {
    for (size_t i = 0; i < (TinyModel::numbers_of(chunks, true).*member).size(); ++i) {
      for (int64_t value : bad) {
        TinyModel::Numbers numbers = TinyModel::numbers_of(chunks, true);
        auto& vector = numbers.*member;
        vector[i] = static_cast<typename std::decay_t<decltype(vector)>::value_type>(value);
        std::vector<float> logits;
        require(model.run(numbers, &logits) != nullptr, "a bad step runs", int(i));
      }
    }
  };
  constexpr int64_t kFar = int64_t(1) << 40, kCacheSlots = kBlocks * kBlockTokens;
  refuse_all(&TinyModel::Numbers::ids, {-1, kVocab, kFar, -kFar});
  refuse_all(&TinyModel::Numbers::positions, {-1, 2 * kBlockTokens, kFar, -kFar});
  refuse_all(&TinyModel::Numbers::slots, {-1, kCacheSlots, kFar, -kFar});
  refuse_all(&TinyModel::Numbers::rows, {-1, 41, kFar, -kFar});
  refuse_all(&TinyModel::Numbers::table, {-1, kBlocks, INT32_MAX, INT32_MIN});
  refuse_all(&TinyModel::Numbers::start, {-1, 42, INT32_MAX, INT32_MIN});
  if (shape == kConvolutions || shape == kDelta) {
    refuse_all(&TinyModel::Numbers::states, {-1, kSlots, kFar, -kFar});
    TinyModel::Numbers numbers = TinyModel::numbers_of(chunks, true);
    numbers.states[1] = numbers.states[0];
    std::vector<float> logits;
    require(model.run(numbers, &logits) != nullptr, "two sequences share a state", shape);
  }
  auto refuse_images = [&](auto change) {
    TinyModel::Numbers numbers = TinyModel::numbers_of(chunks, true);
    TinyModel::Images images(numbers, 3);
    change(images, numbers);
    std::vector<float> logits;
    require(model.run(numbers, &logits, &images.all) != nullptr, "bad images run", shape);
  };
  using Images = TinyModel::Images;
  using Numbers = TinyModel::Numbers;
  for (int64_t value : {int64_t(-1), int64_t(3), int64_t(41), kFar, -kFar}) {
    refuse_images([&](Images& images, Numbers&) { images.rows[0] = value; });
    refuse_images([&](Images& images, Numbers&) { images.rows.back() = value; });
  }
  for (int32_t value : {-1, 0, 42, INT32_MAX, INT32_MIN}) {
    refuse_images([&](Images& images, Numbers&) { images.ends[0] = value; });
    refuse_images([&](Images& images, Numbers&) { images.ends[39] = value; });
    refuse_images([&](Images& images, Numbers&) { images.ends[40] = value; });
  }
  for (int32_t value : {-1, INT32_MAX, INT32_MIN}) {
    refuse_images([&](Images& images, Numbers&) { images.all.count = value; });
    refuse_images([&](Images& images, Numbers&) { images.all.layers = value; });
  }
  refuse_images([&](Images&, Numbers& numbers) { numbers.ids[0] = kVocab; });
  require(model.step(chunks) == expected, "a step after bad ones", shape);
}

// Rows of every kind, whose length is no multiple of anything; one has a NaN, one nothing allowed.
void check_sampler(int vocab) {
  constexpr int kRows = 9;
  const RowSettings kinds[kRows] = {
      {0.0, 0, 0.0, 1.0, 0.5},    {1.0, 0, 0.0, 1.0, 0.3},  {0.7, 40, 0.0, 0.9, 0.9},
      {2.0, 300, 0.0, 1.0, 0.99}, {1.5, 0, 0.02, 1.0, 0.1}, {3.0, 0, 0.0, 0.999, 0.999},
      {1.0, 5, 0.1, 0.5, 0.7},    {1.0, 0, 0.0, 0.9, 0.4},  {1.0, 9, 0.0, 0.9, 0.4},
  };
  Random random{7};
  std::vector<float> logits = random.values(kRows * vocab, 4.0f);
  logits[size_t(7 * vocab + 3)] = std::nanf("");
  std::fill(logits.end() - vocab, logits.end(), -std::numeric_limits<float>::infinity());
  std::vector<int64_t> expected;
  for (int threads : kThreads) {
    void* pool = sc_pool_create(threads);
    void* sampler = sc_sampler_create(pool);
    std::vector<int64_t> tokens(kRows);
    std::vector<float> left = logits, peaks(kRows);
    sc_sample(sampler, left.data(), kRows, vocab, kinds, tokens.data(), peaks.data());
    for (int64_t token : tokens) require(token >= 0 && token < vocab, "a token", int(token));
    require(std::isnan(peaks[7]) && std::isinf(peaks[8]), "peaks of bad rows", vocab);
    if (expected.empty()) expected = tokens;
    require(tokens == expected, "tokens with other threads", vocab);
    for (int r = 0; r < kRows; ++r) {
      std::vector<float> row(logits.begin() + r * vocab, logits.begin() + (r + 1) * vocab);
      sc_sample(sampler, row.data(), 1, vocab, kinds + r, tokens.data(), peaks.data());
      require(tokens[0] == expected[size_t(r)], "the token of a row alone", r);
    }
    sc_sampler_destroy(sampler);
    sc_pool_destroy(pool);
  }
}

}  // namespace

int main(int count, char** arguments) {
  std::FILE* file = count > 1 ? std::fopen(arguments[1], "wb") : nullptr;
  for (int vocab : {301, 4096, 8205}) check_sampler(vocab);
  for (int threads : {1, 2, 3, 17, 24}) check_pool(threads);  // also arrivals in groups
  for (int threads : {2, 3}) check_sleep(threads);
  for (Kinds kinds : kMatrices) {
    const bool is_long = kFormats[kinds.kind].block == 256;
    check_linear(kinds, 47, is_long ? 512 : 224);
    check_linear(kinds, 16, is_long ? 256 : 32);
    check_linear(kinds, 210, is_long ? 256 : 64);
  }
  for (int shape = 0; shape < kShapes; ++shape) check_model(Shape(shape), file);
  for (int shape = 0; shape < kShapes; ++shape) check_borders(Shape(shape));
  if (file) std::fclose(file);
  std::printf("%s: all equal\n", sc_isa());
  return 0;
}
