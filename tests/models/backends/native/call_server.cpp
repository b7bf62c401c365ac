// Calls functions of a shared library for another process (emulated.py).
//
// Usage: call_server LIBRARY.  A request on standard input is 16 words of 64 bits: what to do, then
// its numbers.  Every request is answered by one word; kRead by that many bytes after it.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

enum Request : uint64_t { kAllocate, kFree, kWrite, kRead, kFind, kCall };

void read_all(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);
}

void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

uint64_t call(const uint64_t* a) {
  using Function = uint64_t (*)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
  return reinterpret_cast<Function>(a[0])(a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9],
                                          a[10], a[11], a[12]);
}

}  // namespace

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 1;
  for (uint64_t words[16];;) {
    read_all(words, sizeof words);
    const uint64_t* a = words + 1;
    uint64_t answer = 0;
    size_t bytes = 0;
    switch (words[0]) {
      // To a multiple of the alignment, which aligned_alloc asks for.
      case kAllocate: answer = uint64_t(std::aligned_alloc(64, (a[0] + 64) / 64 * 64)); break;
      case kFree: std::free(pointer(a[0])); break;
      case kWrite: read_all(pointer(a[0]), a[1]); break;
      case kRead: bytes = a[1]; break;
      case kFind: answer = uint64_t(dlsym(library, reinterpret_cast<const char*>(a))); break;
      default: answer = call(a);
    }
    std::fwrite(&answer, sizeof answer, 1, stdout);
    if (bytes) std::fwrite(pointer(a[0]), 1, bytes, stdout);
    std::fflush(stdout);
  }
}
