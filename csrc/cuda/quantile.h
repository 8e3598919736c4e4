// The quantile of |x| on the GPU, as its callers see it. Asynchronous on `stream`, without allocation or
// synchronisation; the error of every launch is returned.
#pragma once

#include <cuda_runtime_api.h>

#include "../quantile.h"

namespace fastdiff {

constexpr int QUANTILE_THREADS = 256;
// Digits of the selection: 3 of them for float32, 6 for float64, the last one shorter.
constexpr int DIGIT = 11, BINS = 1 << DIGIT;

// What the passes of one sample hand on. All zero at the start.
struct Selection {
  uint64_t prefix;               // the order statistic's leading digits
  int64_t rank;                  // its rank among the elements with these digits
  unsigned long long not_above;  // complement of the least key above those with the leading digits
  unsigned long long top;        // the largest key
  uint32_t done;                 // blocks that have finished the pass
};

// Blocks that share a sample, and elements in each: about 1024 blocks in all, none with less than 4096 elements, and
// none with more than 2^31, which its counts could not hold.
struct Shares {
  uint32_t blocks;
  int64_t elements;
};

inline Shares shares(int64_t batch, int64_t n) {
  const int64_t most = (n + 4095) / 4096, fair = batch < 1024 ? 1024 / batch : 1;
  const int64_t least = (n + (int64_t(1) << 31) - 1) >> 31;
  int64_t blocks = fair < most ? fair : most;
  if (blocks < least) blocks = least;
  // A multiple of what one access takes.
  const int64_t elements = ((n + blocks - 1) / blocks + 3) / 4 * 4;
  return {uint32_t((n + elements - 1) / elements), elements};
}

// Bytes: the selections and the histograms of samples that several blocks share.
inline int64_t quantile_workspace(int64_t batch, int64_t n) {
  return shares(batch, n).blocks > 1 ? batch * int64_t(sizeof(Selection) + BINS * sizeof(uint64_t)) : 0;
}

// `workspace`: quantile_workspace(batch, n) bytes, aligned to 8; its content does not matter.
cudaError_t launch_quantile(const QuantileArgs &args, void *workspace, cudaStream_t stream);

}  // namespace fastdiff
