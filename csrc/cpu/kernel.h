// The CPU back end: one table of functions for each instruction set, chosen at run time.
#pragma once

#include "../stage.h"

namespace fastdiff {

struct NormalArgs {
  void *out;      // batch x n, contiguous
  int32_t dtype;  // F32 or F64
  int64_t batch, n;
  const int64_t *seeds;
  const int32_t *index;
  uint32_t draw, stream;
};

struct Kernels {
  const char *name;
  void (*stage)(const StageArgs &, int threads);
  void (*normal)(const NormalArgs &, int threads);
};

extern const Kernels kernels_portable;
#if defined(FASTDIFF_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace fastdiff
