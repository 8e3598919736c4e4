// The quantile of |x| on the CPU.
#pragma once

#include "../quantile.h"

namespace fastdiff {

// `workspace`: batch * n keys of the dtype's size, aligned to 8 bytes; only what the selection looks at twice is
// written.
void quantile(const QuantileArgs &args, void *workspace, int threads);

}  // namespace fastdiff
