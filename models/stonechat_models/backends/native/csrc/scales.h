// The scales of a panel.  A block's head has the fields of its GGUF type, each of 16 columns:
//   MXFP4            exponents, one byte each
//   Q4_1, Q5_1       d, m in half precision
//   Q4_K, Q5_K       d, least in half precision, 3 words of 8 scales and 8 minima of 6 bits
//   Q2_K             the same, with 4 words of 16 scales and 16 minima of 4 bits
//   Q3_K             d, 3 words of 16 scales of 6 bits, minus 32
//   Q6_K             d, 4 words of 16 scales of 8 bits, plus 128
//   IQ4_XS           d, 16 and 32 bits with the 2 high and the 4 low bits of 8 scales, minus 32
//   the others       d in half precision
// Bits within words are in the file's order.
#pragma once
#include "matrix.h"
#include "simd.h"

namespace sc {

// Stores byte i of each word, minus Offset, as rows i = 0..3.
template <int Offset = 0>
inline void put_integers(float* to, B64 words) {
  unrolled<4>([&](auto i) {
    F16 x = field<8 * i, 8>(words);
    if constexpr (Offset != 0) x = sub(x, set1(float(Offset)));
    store(to + i * kPanel, x);
  });
}

// The scales of a block of 256 of each column.  A run of 16 or 32 weights has an integer of its own:
// weight = d * scale * (u - offset), or d * scale * u + least * minimum of an affine kind.
template <int KindOf>
struct BlockScales {
  static constexpr Format kFormat = kFormats[KindOf];
  static constexpr int kRuns = kBlock / kGroup * kFormat.parts;
  static constexpr size_t kHeadBytes = size_t(kFormat.head) * kPanel;

  F16 d, least;
  alignas(64) float scale[kRuns * kPanel];  // [run][column]
  alignas(64) float minimum[kFormat.is_affine ? kRuns * kPanel : 1];

  // The run of the weight at k = `at` of the block.
  static size_t run_of(int at) { return size_t(at / (kBlock / kRuns)); }

  // The weights whose scale * (u - offset) is `scaled`.  `run`: where their runs' numbers are.
  F16 weight(F16 scaled, size_t run) const {
    const F16 value = mul(d, scaled);
    if constexpr (kFormat.is_affine) return fma(least, load(minimum + run), value);
    else return value;
  }

  void read(const uint8_t* head) {
    constexpr size_t kRow = 4 * kPanel;  // numbers in 4 rows, and bytes of 16 words
    const half_t* halves = reinterpret_cast<const half_t*>(head);
    d = load_half(halves);
    if constexpr (kFormat.is_affine) least = mul(load_half(halves + kPanel), set1(-1.0f));
    auto words = [&](int halves_before, int i) {
      return load_bytes(head + 32 * halves_before + kRow * size_t(i));
    };
    if constexpr (KindOf == kQ4_K || KindOf == kQ5_K) {
      const B64 a = words(2, 0), b = words(2, 1), c = words(2, 2);
      put_integers(scale, masked<63>(a));
      put_integers(scale + kRow, masked<63>(merged<15>(c, shift<-2>(a))));
      put_integers(minimum, masked<63>(b));
      put_integers(minimum + kRow, masked<63>(merged<15>(shift<-4>(c), shift<-2>(b))));
    } else if constexpr (KindOf == kQ2_K) {
      for (int i = 0; i < 4; ++i) {
        put_integers(scale + kRow * size_t(i), masked<15>(words(2, i)));
        put_integers(minimum + kRow * size_t(i), masked<15>(shift<-4>(words(2, i))));
      }
    } else if constexpr (KindOf == kQ3_K) {
      const B64 a = words(1, 0), b = words(1, 1), c = words(1, 2);
      put_integers<32>(scale, masked<63>(merged<15>(a, shift<4>(c))));
      put_integers<32>(scale + kRow, masked<63>(merged<15>(b, shift<2>(c))));
      put_integers<32>(scale + 2 * kRow, masked<63>(merged<15>(shift<-4>(a), c)));
      put_integers<32>(scale + 3 * kRow, masked<63>(merged<15>(shift<-4>(b), shift<-2>(c))));
    } else if constexpr (KindOf == kQ6_K) {
      for (int i = 0; i < 4; ++i) put_integers<128>(scale + kRow * size_t(i), words(1, i));
    } else {
      const B64 high = load_shorts(head + 32), low = words(2, 0);
      unrolled<8>([&](auto i) {
        const F16 x = fma(field<2 * i, 2>(high), set1(16.0f), field<4 * i, 4>(low));
        store(scale + i * kPanel, sub(x, set1(32.0f)));
      });
    }
  }
};

// The heads of the blocks of a panel, one after the other.
template <int KindOf>
class BlockHeads {
 public:
  BlockHeads(const uint8_t* panel, int k) : head_(panel), ahead_(panel_bytes(KindOf, k)) {}

  // Reads the next head.
  const BlockScales<KindOf>& next() {
    constexpr size_t kBytes = BlockScales<KindOf>::kHeadBytes;
    scales_.read(head_);
    for (size_t i = 0; i < kBytes; i += 64) prefetch_far(head_ + ahead_ + i);
    head_ += kBytes;
    return scales_;
  }

 private:
  const uint8_t* head_;
  size_t ahead_;
  BlockScales<KindOf> scales_;
};

// The scales of one group after the other.
template <int KindOf>
class Scales {
 public:
  static constexpr Format kFormat = kFormats[KindOf];
  F16 d[kFormat.parts], m[kFormat.parts];  // of the 32 weights, or of the first and the last 16

  Scales(const uint8_t* panel, int k) : head_(panel), ahead_(panel_bytes(KindOf, k)) {}

  // Advances to the next group.
  void next() {
    if constexpr (has_large_blocks(KindOf)) {
      if (group_ == 0) {
        block_.read(head_);
        head_ += block_.kHeadBytes;
      }
      for (int i = 0; i < kFormat.parts; ++i) {
        const size_t row = size_t(group_ * kFormat.parts + i) * kPanel;
        d[i] = mul(block_.d, load(block_.scale + row));
        if constexpr (kFormat.is_affine) m[i] = mul(block_.least, load(block_.minimum + row));
      }
      group_ = (group_ + 1) % 8;
    } else {
      const half_t* halves = reinterpret_cast<const half_t*>(head_);
      if constexpr (KindOf == kMXFP4) d[0] = load_exponents(head_);
      else d[0] = load_half(halves);
      if constexpr (kFormat.is_affine) m[0] = load_half(halves + kPanel);
      prefetch_far(head_ + ahead_);
      head_ += kFormat.head * kPanel;
    }
  }

 private:
  const uint8_t* head_;
  size_t ahead_;
  int group_ = 0;
  std::conditional_t<has_large_blocks(KindOf), BlockScales<KindOf>, char> block_;
};

}  // namespace sc
