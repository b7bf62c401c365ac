// Matrix registers of processors with AMX.  All kernels share one configuration: eight registers of
// 16 rows of 64 bytes.
//
// The system saves and restores the registers of each thread, and wants to be asked first.
#pragma once

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && \
    defined(__linux__) && defined(__x86_64__)
#define SC_AMX 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace sc {

#if SC_AMX
// Asks the system for the registers, once.
inline bool amx_permitted() {
  static const bool permitted = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return permitted;
}

// Configures the registers of the calling thread, once.  Only after amx_permitted().
inline void amx_configure() {
  static thread_local bool configured = false;
  if (configured) return;
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  asm volatile("" : : "r"(&config) : "memory");  // the intrinsic names only a part of its input
  _tile_loadconfig(&config);
  configured = true;
}
#else
inline bool amx_permitted() { return false; }
inline void amx_configure() {}
#endif

}  // namespace sc
