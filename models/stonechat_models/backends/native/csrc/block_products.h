// Products of activations with panels of weights in blocks of 256, which have an integer scale for
// each run of 16 or 32 weights.
//
// Invariant: as in products.h, a row has the same bits in any batch.  For each block, in order:
//   total = fma(x, weight, total) for each outlier x, where weight = d * float(scale * (u - offset)),
//     and weight = fma(least, minimum, weight) of an affine kind
//   total = fma(scale of the activations, value, total)
//   value = d * float(sum over runs of scale * ((u - offset) . q)), a sum of integers that is exact
//   value = fma(least, sum over runs of minimum * sum of q, value) of an affine kind; also exact
#pragma once
#include "block_tiles.h"
#include "row_block.h"
#include "scales.h"

namespace sc {

// The groups of a block in order, with one byte for each code.
class UnpackedCodes {
 public:
  explicit UnpackedCodes(const uint8_t (*codes)[8][64]) : codes_(codes) {}

  void next() { ++group_; }
  template <int J>
  B64 row() const {
    return load_bytes(codes_[group_][J]);
  }
  // The 16 codes at k = `at` of the block, as floats, before any group is read.
  F16 column(int at) const { return bytes_of_words(codes_[at / kGroup][at % kGroup / 4], at % 4); }

 private:
  const uint8_t (*codes_)[8][64];
  int group_ = -1;
};

// sums[r] = sum over runs of weights[run] * (sum of q over the run): integers below 2^23.
template <int KindOf, int Rows>
inline void add_sums(const float* weights, const ActBlock* const* x, F16* sums) {
  constexpr bool kIsShort = kFormats[KindOf].parts == 2;
  for (int r = 0; r < Rows; ++r) sums[r] = set1(0.0f);
  for (int run = 0; run < BlockScales<KindOf>::kRuns; ++run) {
    const F16 w = load(weights + run * kPanel);
    for (int r = 0; r < Rows; ++r) {
      const float sum = kIsShort ? x[r]->short_sums[run] : x[r]->long_sums[run];
      sums[r] = fma(w, set1(sum), sums[r]);
    }
  }
}

// out[r] += the outliers of block x[r] times their weights, which are in the next block of `codes`.
// Not inlined, because few blocks have outliers.
template <int KindOf, class Codes>
__attribute__((noinline)) void multiply_outliers(const Codes& codes,
                                                 const BlockScales<KindOf>& scales,
                                                 const ActBlock* const* x, int rows, F16* out) {
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < x[r]->num_outliers; ++i) {
      const Outlier& outlier = x[r]->outliers[i];
      const F16 u = sub(codes.column(outlier.at), set1(float(kFormats[KindOf].offset)));
      const size_t run = scales.run_of(outlier.at) * kPanel;
      const F16 weight = scales.weight(mul(u, load(scales.scale + run)), run);
      out[r] = fma(set1(outlier.value), weight, out[r]);
    }
  }
}

template <int KindOf, int Rows, class Codes>
inline void add_outliers(const Codes& codes, const BlockScales<KindOf>& scales,
                         const ActBlock* const* x, F16* out) {
  int any = 0;
  for (int r = 0; r < Rows; ++r) any |= x[r]->num_outliers;
  if (any) multiply_outliers(codes, scales, x, Rows, out);
}

// out[r] += block x[r] times the next block of weights.  Flattened, because gcc does not always
// inline the bodies of unrolled loops by itself.
template <int KindOf, int Rows, class Codes>
__attribute__((flatten)) inline void add_block(Codes& codes, const BlockScales<KindOf>& scales,
                                               const ActBlock* const* x, F16* out) {
  constexpr Format f = kFormats[KindOf];
  constexpr int kBits = unsigned_bits(f), kParts = f.parts, kLength = 8 / kParts;
  constexpr int kOffset = kBits == 8 && kSignedDot8 ? 0 : f.offset;
  I16 total[Rows];
  for (int r = 0; r < Rows; ++r) total[r] = set1_i32(0);
  for (int g = 0; g < kBlock / kGroup; ++g) {
    codes.next();
    unrolled<kParts>([&](auto part) {
      I16 dot[Rows];
      for (int r = 0; r < Rows; ++r) dot[r] = set1_i32(0);
      unrolled<kLength>([&](auto i) {
        constexpr int j = part * kLength + i;
        const B64 w = codes.template row<j>();
        for (int r = 0; r < Rows; ++r) {
          dot[r] = dot4<kBits>(dot[r], w, load_i32(x[r]->q + g * kGroup + 4 * j));
        }
      });
      const I16 scale = to_int(load(scales.scale + (g * kParts + part) * kPanel));
      for (int r = 0; r < Rows; ++r) total[r] = add_product(total[r], dot[r], scale);
    });
  }
  F16 sums[Rows];
  if constexpr (f.is_affine) add_sums<KindOf, Rows>(scales.minimum, x, sums);
  if constexpr (kOffset != 0) add_sums<KindOf, Rows>(scales.scale, x, sums);
  for (int r = 0; r < Rows; ++r) {
    if constexpr (kOffset != 0) {
      total[r] = add_product(total[r], to_int(sums[r]), set1_i32(-kOffset));
    }
    F16 value = mul(scales.d, to_float(total[r]));
    if constexpr (f.is_affine) value = fma(scales.least, sums[r], value);
    out[r] = fma(set1(x[r]->scale), value, out[r]);
  }
}

// Requires rows <= kRowsPerKernel.
template <int KindOf, int Rows = kRowsPerKernel>
inline void few_rows_of_blocks(const uint8_t* panel, const RowBlock& rows, F16* out) {
  if constexpr (Rows > 1) {
    if (rows.count < Rows) return few_rows_of_blocks<KindOf, Rows - 1>(panel, rows, out);
  }
  const int k = rows.x.k;
  BlockHeads<KindOf> heads(panel, k);
  PackedCodes<KindOf> codes(panel, k);
  for (int b = 0; b < k / kBlock; ++b) {
    const ActBlock* x[Rows];
    for (int r = 0; r < Rows; ++r) x[r] = rows.x.blocks(rows.from + r) + b;
    const BlockScales<KindOf>& scales = heads.next();
    add_outliers<KindOf, Rows>(codes, scales, x, out);
    add_block<KindOf, Rows>(codes, scales, x, out);
  }
}

template <int KindOf>
inline void many_rows_of_blocks(const uint8_t* panel, const RowBlock& rows, F16* out) {
  const int k = rows.x.k;
  BlockHeads<KindOf> heads(panel, k);
  PackedCodes<KindOf> codes(panel, k);
  alignas(64) uint8_t unpacked[kBlock / kGroup][8][64];
  for (int b = 0; b < k / kBlock; ++b) {
    const BlockScales<KindOf>& scales = heads.next();
    for (auto& group : unpacked) {
      codes.next();
      unrolled<8>([&](auto j) { store_bytes(group[j], codes.template row<j>()); });
    }
    for (int first = 0; first < rows.count; first += kRowsPerKernel) {
      const ActBlock* x[kRowsPerKernel];
      for (int r = 0; r < kRowsPerKernel; ++r) {  // after the last row: itself again
        x[r] = rows.x.blocks(rows.from + std::min(first + r, rows.count - 1)) + b;
      }
      UnpackedCodes group(unpacked);
      add_outliers<KindOf, kRowsPerKernel>(group, scales, x, out + first);
      add_block<KindOf, kRowsPerKernel>(group, scales, x, out + first);
    }
  }
}

template <int KindOf>
inline void block_panel(const uint8_t* panel, const RowBlock& rows, F16* out) {
#if SC_AMX
  if (rows.count >= kMinBlockRows && has_tiles()) return tile_blocks<KindOf>(panel, rows, out);
#endif
  if (rows.count <= kRowsPerKernel) few_rows_of_blocks<KindOf>(panel, rows, out);
  else many_rows_of_blocks<KindOf>(panel, rows, out);
}

}  // namespace sc
