// The CUDA back end as its callers see it. Launches are asynchronous on `stream`, allocate nothing and synchronise
// nothing, so they may be captured into a graph. The error of every launch is returned.
#pragma once

#include <cuda_runtime_api.h>

#include "../stage.h"

namespace fastdiff {

cudaError_t launch_stage_f32(const StageArgs &args, cudaStream_t stream);
cudaError_t launch_stage_f64(const StageArgs &args, cudaStream_t stream);
cudaError_t launch_normal(const NormalArgs &args, cudaStream_t stream);

// A thread handles a group of 4 elements, which share a block of the noise. Samples lie along y, strided by its size.
struct Geometry {
  int64_t groups;  // in each sample
  uint32_t grid_x, grid_y, threads;
};

inline Geometry geometry(int64_t batch, int64_t n) {
  const int64_t groups = (n + 3) / 4;
  uint32_t threads = 256;
  while (threads > 32 && int64_t(threads) / 2 >= groups) threads /= 2;
  return {groups, uint32_t((groups + threads - 1) / threads), uint32_t(batch < 65535 ? batch : 65535), threads};
}

// Whether groups may be moved by one access of 4 elements: true where each sample starts at a multiple of 4 elements
// and every buffer is aligned to 4 of its elements (8 bytes for 16-bit types, else 16).
inline bool vectorizable(const StageArgs &a) {
  if (a.n % 4 != 0) return false;
  const auto aligned = [](const void *p, int dtype) {
    const uintptr_t mask = dtype == F16 || dtype == BF16 ? 7 : 15;
    return (reinterpret_cast<uintptr_t>(p) & mask) == 0;
  };
  bool all = aligned(a.x, a.state) && aligned(a.u, a.state) && aligned(a.out, a.net) && aligned(a.aux, a.net);
  for (const void *h : a.h) all = all && aligned(h, a.hist);
  for (const void *z : a.z) all = all && aligned(z, a.state);
  return all && aligned(a.u_out, a.state) && aligned(a.x_out, a.state) && aligned(a.m_out, a.hist) &&
         aligned(a.net_in, a.in);
}

// The same stage as one long sample, where nothing in it depends on the sample: an odd n then still moves 4 elements at
// a time.
inline StageArgs flattened(StageArgs a) {
  const bool drawn = ((a.u_mask | a.x_mask) >> RZA) != 0;
  if (!a.rows && !drawn && !a.spread && a.convert < CONVERT_CLIP) {
    a.n *= a.batch;
    a.batch = 1;
  }
  return a;
}

}  // namespace fastdiff
