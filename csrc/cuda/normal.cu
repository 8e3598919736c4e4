// Standard normals alone: the prior, and fastdiff.randn.
#include "memory.cuh"

namespace fastdiff {

template <class T, bool WIDE>
__global__ void __launch_bounds__(256) normal_kernel(const NormalArgs a, const int64_t groups) {
  const int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (group >= groups) return;
  const int64_t first = 4 * group;
  const int count = WIDE ? 4 : int(a.n - first < 4 ? a.n - first : 4);
  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    T v[4];
    draw_four(group, {uint64_t(a.seeds[b]), uint32_t(a.index[b])}, a.draw, a.stream, v);
    put<T, WIDE>(a.out, a.dtype, b * a.n + first, count, v);
  }
}

cudaError_t launch_normal(const NormalArgs &a, cudaStream_t stream) {
  if (a.batch == 0 || a.n == 0) return cudaSuccess;
  const Geometry g = geometry(a.batch, a.n);
  const bool wide = a.n % 4 == 0 && (reinterpret_cast<uintptr_t>(a.out) & 15) == 0;
  const dim3 grid(g.grid_x, g.grid_y);
  if (a.dtype == F32) {
    if (wide) {
      normal_kernel<float, true><<<grid, g.threads, 0, stream>>>(a, g.groups);
    } else {
      normal_kernel<float, false><<<grid, g.threads, 0, stream>>>(a, g.groups);
    }
  } else if (wide) {
    normal_kernel<double, true><<<grid, g.threads, 0, stream>>>(a, g.groups);
  } else {
    normal_kernel<double, false><<<grid, g.threads, 0, stream>>>(a, g.groups);
  }
  return cudaGetLastError();
}

}  // namespace fastdiff
