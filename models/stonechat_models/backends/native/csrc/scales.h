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

// Stores factor * (byte i of each word - Offset) as rows i = 0..3.
template <int Offset = 0>
inline void put_products(float* to, F16 factor, B64 words) {
  unrolled<4>([&](auto i) {
    F16 x = field<8 * i, 8>(words);
    if constexpr (Offset != 0) x = sub(x, set1(float(Offset)));
    store(to + i * kPanel, mul(factor, x));
  });
}

// Turns the head of a block of 256 into its scales d[i][16], and the minima m[i][16] of affine
// kinds; i counts runs of 16 or 32 weights.
template <int KindOf>
inline void expand_head(const uint8_t* head, float* d, float* m) {
  constexpr size_t kRow = 4 * kPanel;  // numbers in 4 rows, and bytes of 16 words
  const half_t* halves = reinterpret_cast<const half_t*>(head);
  const F16 scale = load_half(halves);
  auto words = [&](int halves_before, int i) {
    return load_bytes(head + 32 * halves_before + kRow * size_t(i));
  };
  if constexpr (KindOf == kQ4_K || KindOf == kQ5_K) {
    const F16 least = mul(load_half(halves + kPanel), set1(-1.0f));
    const B64 a = words(2, 0), b = words(2, 1), c = words(2, 2);
    put_products(d, scale, masked<63>(a));
    put_products(d + kRow, scale, masked<63>(merged<15>(c, shift<-2>(a))));
    put_products(m, least, masked<63>(b));
    put_products(m + kRow, least, masked<63>(merged<15>(shift<-4>(c), shift<-2>(b))));
  } else if constexpr (KindOf == kQ2_K) {
    const F16 least = mul(load_half(halves + kPanel), set1(-1.0f));
    for (int i = 0; i < 4; ++i) {
      put_products(d + kRow * size_t(i), scale, masked<15>(words(2, i)));
      put_products(m + kRow * size_t(i), least, masked<15>(shift<-4>(words(2, i))));
    }
  } else if constexpr (KindOf == kQ3_K) {
    const B64 a = words(1, 0), b = words(1, 1), c = words(1, 2);
    put_products<32>(d, scale, masked<63>(merged<15>(a, shift<4>(c))));
    put_products<32>(d + kRow, scale, masked<63>(merged<15>(b, shift<2>(c))));
    put_products<32>(d + 2 * kRow, scale, masked<63>(merged<15>(shift<-4>(a), c)));
    put_products<32>(d + 3 * kRow, scale, masked<63>(merged<15>(shift<-4>(b), shift<-2>(c))));
  } else if constexpr (KindOf == kQ6_K) {
    for (int i = 0; i < 4; ++i) put_products<128>(d + kRow * size_t(i), scale, words(1, i));
  } else {
    const B64 high = load_shorts(head + 32), low = words(2, 0);
    unrolled<8>([&](auto i) {
      const F16 x = fma(field<2 * i, 2>(high), set1(16.0f), field<4 * i, 4>(low));
      store(d + i * kPanel, mul(scale, sub(x, set1(32.0f))));
    });
  }
}

// The scales of one group after the other.
template <int KindOf>
class Scales {
 public:
  static constexpr Format kFormat = kFormats[KindOf];
  F16 d[kFormat.parts], m[kFormat.parts];  // of the 32 weights, or of the first and the last 16

  Scales(const uint8_t* panel, int k) : head_(panel), ahead_(panel_bytes(KindOf, k)) {}

  // Advances to the next group.
  void next() {
    if constexpr (kFormat.block == 256) {
      if (group_ == 0) expand();
      for (int i = 0; i < kFormat.parts; ++i) {
        const size_t row = size_t(group_ * kFormat.parts + i) * kPanel;
        d[i] = load(scales_ + row);
        if constexpr (kFormat.is_affine) m[i] = load(minima_ + row);
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
  void expand() {
    expand_head<KindOf>(head_, scales_, minima_);
    constexpr size_t kBytes = size_t(kFormat.head) * kPanel;
    for (size_t i = 0; i < kBytes; i += 64) prefetch_far(head_ + ahead_ + i);
    head_ += kBytes;
  }

  static constexpr int kRows = kFormat.block / 32 * kFormat.parts;

  const uint8_t* head_;
  size_t ahead_;
  int group_ = 0;
  alignas(64) float scales_[kRows * kPanel];
  alignas(64) float minima_[kFormat.is_affine ? kRows * kPanel : 1];
};

}  // namespace sc
