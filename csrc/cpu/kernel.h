// The CPU back end: one table of functions for each instruction set, chosen at run time.
#pragma once

#include "../stage.h"

namespace fastdiff {

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
