// Tiles of Intel's AMX: eight registers of up to 16 rows of 64 bytes, and their products.
//
// SC_AMX is set if the compiler's target has them.  Linux must also allow a process to use them
// (has_tiles).  The intrinsics of some compilers do not say which memory they read, so the
// instructions are written out.
#pragma once
#include <array>
#include <utility>

#include "simd.h"

#if SC_AVX512 && defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && \
    defined(__linux__)
#define SC_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sc {

#if SC_AMX

// Rows, and bytes of a row, of the tiles 0..3 (sums), 4, 5 (activations) and 6, 7 (weights).
struct alignas(64) TileShapes {
  constexpr TileShapes(int activation_bytes, int weight_rows, int activation_rows = 16) {
    for (int i = 0; i < 8; ++i) {
      bytes[i] = uint16_t(i == 4 || i == 5 ? activation_bytes : 64);
      rows[i] = uint8_t(i >= 6 ? weight_rows : activation_rows);
    }
  }
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

inline constexpr TileShapes kWholeTiles(64, 16);

// The shapes for 1..16 rows of activations.
template <size_t... I>
constexpr std::array<TileShapes, 16> row_shapes(std::index_sequence<I...>) {
  return {TileShapes(64, 16, int(I) + 1)...};
}
inline constexpr auto kRowShapes = row_shapes(std::make_index_sequence<16>());

// Whether the process may use tiles.  The system is asked once.
inline bool has_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  static const bool is_allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return is_allowed;
}

inline thread_local const TileShapes* tile_shapes = nullptr;  // of the calling thread

// Gives the tiles these shapes.  Their content is lost if they had other ones.
inline void use_tiles(const TileShapes& shapes) {
  if (tile_shapes == &shapes) return;
  asm volatile("ldtilecfg %0" ::"m"(shapes));
  tile_shapes = &shapes;
}

// Ends the calling thread's use of tiles: until then the system saves them at each switch.
inline void release_tiles() {
  if (tile_shapes == nullptr) return;
  asm volatile("tilerelease");
  tile_shapes = nullptr;
}

// `stride`: bytes from row to row.
template <int Tile>
inline void tile_load(const void* from, size_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(from), "r"(stride) : "memory");
}
template <int Tile>
inline void tile_store(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(Tile), "r"(to), "r"(stride) : "memory");
}
template <int Tile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}

// Sum[i][j] += the products of the 4 int8 at [i][4 k..] of X with those at [k][4 j..] of W.
template <int Sum, int X, int W>
inline void tile_dot_int8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}

// The same for W with unsigned bytes.
template <int Sum, int X, int W>
inline void tile_dot_bytes() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}

// Sum[i][j] += the products of the 2 bfloat16 at [i][2 k..] of X with those at [k][2 j..] of W.
template <int Sum, int X, int W>
inline void tile_dot_pairs() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}

inline I16 load_i16(const int32_t* p) { return {_mm512_load_si512(p)}; }

template <int Offset>
inline B64 minus(B64 a) {  // of each byte
  return {_mm512_sub_epi8(a.v, _mm512_set1_epi8(char(Offset)))};
}

// The name of the instruction set in use.
inline const char* isa_name() { return has_tiles() ? "avx512-vnni-amx" : kIsa; }

#else
inline const char* isa_name() { return kIsa; }
inline constexpr bool has_tiles() { return false; }
inline void release_tiles() {}
#endif

}  // namespace sc
