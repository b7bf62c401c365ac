// The keys and values of a layer, in tiles of 16 tokens.  A block is one or more tiles.  The same
// block of all layers lies together, so that a cache that is not full fills few pages of memory.
//
// A tile has one record per KV head: keys, then values, then scales if there are any.  In the keys
// a lane of 4 bytes is a token, in the values it is a dimension:
//
//             keys                    values                  scales
//   bfloat16  [dim / 2][16][2 dims]   [8][dim][2 tokens]
//   int8      [dim / 4][16][4 dims]   [4][dim][4 tokens]      half: [16] of keys, [16] of values
//
// An int8 number is its code times the scale of its token: the largest magnitude of the head's keys
// (or values) divided by 127.  Codes are stored plus 128, as dot4<8> wants them.
#pragma once
#include <algorithm>
#include <vector>

#include "simd_attention.h"

namespace sc {

inline constexpr int kTokens = 16;  // tokens of a tile
inline constexpr int kMaxHeadDim = 256;

enum KvFormat : int32_t { kKvBf16 = 0, kKvInt8 = 1 };

// Bytes of the keys, or of the values, of a record.
inline constexpr size_t part_bytes(int format, int dim) {
  return size_t(dim) * kTokens * (format == kKvInt8 ? 1 : 2);
}
inline constexpr size_t record_bytes(int format, int dim) {
  return 2 * part_bytes(format, dim) + (format == kKvInt8 ? 2 * kTokens * sizeof(half_t) : 0);
}

struct KvCache {
  uint8_t* data = nullptr;
  size_t block_stride = 0;  // bytes from block to block
  int format = kKvBf16, heads = 0, dim = 0, tiles_per_block = 1, blocks = 0;
  std::vector<float> key_sizes;  // [head][dim]: what keys are divided by; or empty

  // `tile`: of the block
  uint8_t* record(int block, int tile, int head) const {
    return data + size_t(block) * block_stride +
           (size_t(tile) * size_t(heads) + size_t(head)) * record_bytes(format, dim);
  }

  void put(int64_t slot, int head, const float* k, const float* v) const {
    const int tile = int(slot / kTokens);
    uint8_t* keys = record(tile / tiles_per_block, tile % tiles_per_block, head);
    uint8_t* values = keys + part_bytes(format, dim);
    const int lane = int(slot % kTokens);
    if (format == kKvBf16) return put_pairs(keys, values, lane, k, v);
    if (const float* sizes = sizes_of(head)) {
      alignas(64) float even[kMaxHeadDim] = {};
      for (int d = 0; d < dim; d += 16) store(even + d, div(load(k + d), load(sizes + d)));
      return put_bytes(keys, values, lane, even, v);
    }
    put_bytes(keys, values, lane, k, v);
  }

  // The sizes of a head's dimensions, or null.
  const float* sizes_of(int head) const {
    return key_sizes.empty() ? nullptr : key_sizes.data() + head * dim;
  }

 private:
  // Infinities become large numbers: they would outlive their sequence in the block, and a
  // probability of 0 times infinity is NaN.
  static F16 finite(F16 x) { return min(max(x, set1(-3.38e38f)), set1(3.38e38f)); }

  void put_pairs(uint8_t* keys, uint8_t* values, int lane, const float* k, const float* v) const {
    bf16_t h[16];
    for (int d = 0; d < dim; d += 16) {
      store_bf16(h, finite(load(k + d)));
      for (int i = 0; i < 16; i += 2) {
        std::memcpy(keys + size_t((d + i) / 2) * 64 + lane * 4, h + i, 4);
      }
      store_bf16(h, finite(load(v + d)));
      uint8_t* to = values + size_t(lane / 2 * dim + d) * 4 + lane % 2 * 2;
      for (int i = 0; i < 16; ++i) std::memcpy(to + 4 * i, h + i, 2);
    }
  }

  void put_bytes(uint8_t* keys, uint8_t* values, int lane, const float* k, const float* v) const {
    uint8_t codes[kMaxHeadDim];
    half_t scales[2] = {quantise(k, codes), 0};
    for (int d = 0; d < dim; d += 4) std::memcpy(keys + d * kTokens + lane * 4, codes + d, 4);
    scales[1] = quantise(v, codes);
    uint8_t* to = values + size_t(lane / 4 * dim) * 4 + lane % 4;
    for (int d = 0; d < dim; ++d) to[4 * d] = codes[d];
    uint8_t* end = values + part_bytes(format, dim);
    std::memcpy(end + lane * 2, scales, 2);
    std::memcpy(end + (kTokens + lane) * 2, scales + 1, 2);
  }

  half_t quantise(const float* x, uint8_t* codes) const {
    F16 top = set1(0.0f);
    for (int d = 0; d < dim; d += 16) top = max(abs(load(x + d)), top);
    const half_t scale = to_half(std::min(reduce_max(top) / 127.0f, 65504.0f));
    const float size = half_value(scale);
    const F16 inverse = set1(size > 0.0f ? 1.0f / size : 0.0f);
    for (int d = 0; d < dim; d += 16) {
      F16 q = min(max(mul(load(x + d), inverse), set1(-127.0f)), set1(127.0f));
      store_i8(reinterpret_cast<int8_t*>(codes + d), q);
    }
    for (int d = 0; d < dim; ++d) codes[d] ^= 128;
    return scale;
  }
};

}  // namespace sc
