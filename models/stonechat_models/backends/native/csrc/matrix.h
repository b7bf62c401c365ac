// Weight matrices: the kinds of their numbers, and how they lie in memory.
//
// A matrix W[n, k] is cut into panels of 16 output columns, so that a vector lane is a column.
//   float kinds: [k][16]; bfloat16 with the tiles of AMX: [k / 2][16][2] (pair_tiles.h)
//   quantised kinds, each named after the GGUF type whose bits it keeps:
//     heads of all blocks, padded to 64 bytes: the scales of 16 columns (scales.h)
//     codes of all groups of 32 along k: `bits` x 64 bytes each (codes.h)
// So a quantised panel takes no more bytes than its rows in a GGUF file, up to the padding.
//
// A weight is d * (u - offset), or d * u + m of an affine kind.  u is its code, an unsigned number,
// or what a table makes of it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace sc {

// Formats of rows of weights, in a file and packed.  bindings.py has the same numbers.
enum Kind : int {
  kFloat,
  kHalf,
  kBf16,
  kQ8_0,  // from here on quantised, in blocks of 32
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kIQ4_NL,
  kMXFP4,
  kQ2_K,  // from here on in blocks of 256
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_XS,
  kKinds
};

inline constexpr int kPanel = 16;  // output columns of a panel
inline constexpr int kGroup = 32;  // values along k that are packed together
inline constexpr int kBlock = 256;  // weights of a block of the larger kind

enum class Table : int { kNone, kNonLinear4, kFloat4 };

struct Format {
  int bits;    // of a code
  int offset;  // what is subtracted from u
  int block;   // weights of a block: 32 or 256
  int head;    // bytes of a block's scales
  int parts;   // scales in a group of 32: 1 or 2
  bool is_affine;
  Table table;
};

inline constexpr Format kFormats[kKinds] = {
    {32, 0, 1, 0, 0, false, Table::kNone},           // kFloat
    {16, 0, 1, 0, 0, false, Table::kNone},           // kHalf
    {16, 0, 1, 0, 0, false, Table::kNone},           // kBf16
    {8, 128, 32, 2, 1, false, Table::kNone},         // kQ8_0
    {4, 8, 32, 2, 1, false, Table::kNone},           // kQ4_0
    {4, 0, 32, 4, 1, true, Table::kNone},            // kQ4_1
    {5, 16, 32, 2, 1, false, Table::kNone},          // kQ5_0
    {5, 0, 32, 4, 1, true, Table::kNone},            // kQ5_1
    {4, 128, 32, 2, 1, false, Table::kNonLinear4},   // kIQ4_NL
    {4, 12, 32, 1, 1, false, Table::kFloat4},        // kMXFP4
    {2, 0, 256, 20, 2, true, Table::kNone},          // kQ2_K
    {3, 4, 256, 14, 2, false, Table::kNone},         // kQ3_K
    {4, 0, 256, 16, 1, true, Table::kNone},          // kQ4_K
    {5, 0, 256, 16, 1, true, Table::kNone},          // kQ5_K
    {6, 32, 256, 18, 2, false, Table::kNone},        // kQ6_K
    {4, 128, 256, 8, 1, false, Table::kNonLinear4},  // kIQ4_XS
};

inline constexpr bool is_quantised(int kind) { return kind >= kQ8_0; }

// Whether a block has 256 weights: integer scales for runs of 16 or 32, and one float for all.
inline constexpr bool has_large_blocks(int kind) { return kFormats[kind].block == kBlock; }

// Bytes of a row of k weights in a file.
inline constexpr size_t row_bytes(int kind, int k) {
  const Format f = kFormats[kind];
  return size_t(k / f.block) * size_t(f.head + f.block * f.bits / 8);
}

// Bytes of the heads of a panel, and of the codes of a group.
inline constexpr size_t head_bytes(int kind, int k) {
  const size_t bytes = size_t(k / kFormats[kind].block) * size_t(kFormats[kind].head) * kPanel;
  return (bytes + 63) / 64 * 64;
}
inline constexpr size_t group_bytes(int kind) { return size_t(kFormats[kind].bits) * 64; }

inline constexpr size_t panel_bytes(int kind, int k) {
  return head_bytes(kind, k) + size_t(k) * kPanel * size_t(kFormats[kind].bits) / 8;
}

struct Matrix {
  int kind = kFloat, n = 0, k = 0;
  const uint8_t* data = nullptr;
  const float* bias = nullptr;  // [n rounded up to 16], or null

  int panels() const { return (n + kPanel - 1) / kPanel; }
  const uint8_t* panel(int p) const { return data + size_t(p) * panel_bytes(kind, k); }
};

// What activations are stored as, for the matrices that multiply them (activations.h).
struct Forms {
  bool groups = false, blocks = false, floats = false;

  Forms() = default;
  explicit Forms(const Matrix& w)
      : groups(is_quantised(w.kind) && !has_large_blocks(w.kind)),
        blocks(has_large_blocks(w.kind)),
        floats(!is_quantised(w.kind)) {}

  // Adds what a matrix reads.
  void add(const Matrix& w) {
    if (w.n == 0) return;
    const Forms more(w);
    groups |= more.groups, blocks |= more.blocks, floats |= more.floats;
  }
};

template <int Value>
using Number = std::integral_constant<int, Value>;

// Calls body(Number<kind>()) for a kind that is known only now.
template <class Body, int First = 0>
inline void with_kind(int kind, Body body) {
  if (kind == First || First == kKinds - 1) return body(Number<First>());
  if constexpr (First < kKinds - 1) with_kind<Body, First + 1>(kind, body);
}

// Calls body(Number<0>()), body(Number<1>()), ... Count times: a loop that is always unrolled.
template <class Body, int... I>
inline void unrolled([[maybe_unused]] Body body, std::integer_sequence<int, I...>) {
  (body(Number<I>()), ...);
}
template <int Count, class Body>
inline void unrolled(Body body) {
  unrolled(body, std::make_integer_sequence<int, Count>());
}

}  // namespace sc
