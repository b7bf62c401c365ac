// Repacks rows of weights from the layout of a file into panels (matrix.h).
#pragma once
#include <algorithm>

#include "matrix.h"

namespace sc {

// Types of rows in a file; the first three are GGUF blocks of 32.
enum Source : int { kQ4_1 = 0, kQ4_0 = 1, kQ8_0 = 2, kSrcBf16 = 3, kSrcHalf = 4, kSrcFloat = 5 };

inline int block_bytes(int source) { return source == kQ4_1 ? 20 : source == kQ4_0 ? 18 : 34; }

struct GroupCodes {
  half_t d, m;
  uint8_t code[kGroup];  // quantised value + offset, one per byte
};

// w ~ d * q with q in [-127, 127].
inline void encode_int8(const float* w, GroupCodes* out) {
  float top = 0.0f;
  for (int i = 0; i < kGroup; ++i) top = std::max(top, std::fabs(w[i]));
  out->d = to_half(top / 127.0f);
  float d = half_value(out->d), inverse = d > 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    float q = std::nearbyint(w[i] * inverse);
    out->code[i] = uint8_t(128 + int(std::min(127.0f, std::max(-127.0f, q))));
  }
}

inline float affine4_error(const float* w, float d, float m) {
  float error = 0.0f, inverse = d > 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    float q = std::min(15.0f, std::max(0.0f, std::nearbyint((w[i] - m) * inverse)));
    float e = w[i] - (d * q + m);
    error += e * e;
  }
  return error;
}

// w ~ d * q + m with q in [0, 15].  The range of w is shrunk at either end if that lowers the
// squared error.
inline void encode_affine4(const float* w, GroupCodes* out) {
  float low = w[0], high = w[0];
  for (int i = 1; i < kGroup; ++i) low = std::min(low, w[i]), high = std::max(high, w[i]);
  float best = INFINITY, d = 0.0f, m = 0.0f;
  for (int a = 0; a < 5; ++a) {
    for (int b = 0; b < 5; ++b) {
      float from = low + (high - low) * 0.03f * float(a),
            to = high - (high - low) * 0.03f * float(b);
      half_t dh = to_half((to - from) / 15.0f), mh = to_half(from);
      float error = affine4_error(w, half_value(dh), half_value(mh));
      if (error < best) best = error, out->d = dh, out->m = mh;
    }
  }
  d = half_value(out->d), m = half_value(out->m);
  float inverse = d > 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    float q = std::nearbyint((w[i] - m) * inverse);
    out->code[i] = uint8_t(std::min(15.0f, std::max(0.0f, q)));
  }
}

inline void read_floats(int source, const uint8_t* row, int from, int count, float* out) {
  for (int i = 0; i < count; ++i) {
    if (source == kSrcFloat) std::memcpy(out + i, row + size_t(from + i) * 4, 4);
    else {
      uint16_t h;
      std::memcpy(&h, row + size_t(from + i) * 2, 2);
      out[i] = source == kSrcHalf ? half_value(h) : bf16_to_float(h);
    }
  }
}

// Copies one group of a row, a GGUF block of the same kind, into column c of the panel without
// quantising it again.
inline void copy_block(int source, const uint8_t* block, size_t c, half_t* d, half_t* m,
                       uint8_t* codes) {
  std::memcpy(d, block, 2);
  auto word = [](const uint8_t* p) { return uint32_t(load_i32(p)); };
  if (source == kQ8_0) {
    for (size_t j = 0; j < 8; ++j) {
      store_i32(codes + j * 64 + c * 4, int32_t(word(block + 2 + 4 * j) ^ 0x80808080u));
    }
    return;
  }
  const uint8_t* q = block + (source == kQ4_1 ? 4 : 2);  // byte i: elements i and i + 16
  if (source == kQ4_1) std::memcpy(m, block + 2, 2);
  for (size_t j = 0; j < 2; ++j) {
    uint32_t a = word(q + 8 * j), b = word(q + 8 * j + 4);
    uint32_t low = (a & 0x0f0f0f0fu) | (b & 0x0f0f0f0fu) << 4;
    uint32_t high = (a >> 4 & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u);
    store_i32(codes + j * 64 + c * 4, int32_t(low));
    store_i32(codes + (j + 2) * 64 + c * 4, int32_t(high));
  }
}

inline void put_codes(int kind, const GroupCodes& g, size_t c, half_t* d, half_t* m,
                      uint8_t* codes) {
  *d = g.d;
  if (kind == kAffine4) *m = g.m;
  for (size_t j = 0; j < kGroup; ++j) {
    if (kind == kInt8) codes[j / 4 * 64 + c * 4 + j % 4] = g.code[j];
    else codes[j / 8 * 64 + c * 4 + j % 4] |= uint8_t(g.code[j] << (j / 4 % 2 * 4));
  }
}

struct PackJob {
  int kind, source, n, k;
  const uint8_t* rows;  // row i of W is at rows + row_index[i] * stride
  size_t stride;        // bytes
  const int32_t* row_index;
  uint8_t* out;
};

// Writes one row into column c of a panel of a float kind.
inline void pack_float_row(const PackJob& job, const uint8_t* row, size_t c, uint8_t* panel) {
  for (int i = 0; i < job.k; ++i) {
    float w;
    read_floats(job.source, row, i, 1, &w);
    size_t at = size_t(i) * kPanel + c;
    if (job.kind == kFloat) reinterpret_cast<float*>(panel)[at] = w;
    else reinterpret_cast<uint16_t*>(panel)[at] = job.kind == kHalf ? to_half(w) : float_to_bf16(w);
  }
}

inline void pack_quantised_row(const PackJob& job, const uint8_t* row, size_t c, uint8_t* panel) {
  const size_t groups = size_t(job.k / kGroup);
  half_t* d = reinterpret_cast<half_t*>(panel);
  uint8_t* codes = panel + scale_bytes(job.kind, job.k);
  for (size_t g = 0; g < groups; ++g) {
    half_t* dg = d + g * kPanel + c;
    half_t* mg = dg + groups * kPanel;
    uint8_t* to = codes + g * size_t(code_bits(job.kind)) * 64;
    if (job.source <= kQ8_0) {
      copy_block(job.source, row + g * size_t(block_bytes(job.source)), c, dg, mg, to);
      continue;
    }
    float w[kGroup];
    GroupCodes code{};
    read_floats(job.source, row, int(g) * kGroup, kGroup, w);
    if (job.kind == kInt8) encode_int8(w, &code);
    else encode_affine4(w, &code);
    put_codes(job.kind, code, c, dg, mg, to);
  }
}

inline void pack_panel(const PackJob& job, int p) {
  size_t bytes = panel_bytes(job.kind, job.k);
  uint8_t* panel = job.out + size_t(p) * bytes;
  std::memset(panel, 0, bytes);
  for (int c = 0; c < kPanel && p * kPanel + c < job.n; ++c) {
    const uint8_t* row = job.rows + size_t(job.row_index[p * kPanel + c]) * job.stride;
    if (is_quantised(job.kind)) pack_quantised_row(job, row, size_t(c), panel);
    else pack_float_row(job, row, size_t(c), panel);
  }
}

}  // namespace sc
