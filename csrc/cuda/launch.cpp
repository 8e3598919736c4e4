#include "launch.h"

namespace fastdiff {

cudaError_t launch_stage(const StageArgs &given, cudaStream_t stream) {
  StageArgs a = flattened(given);
  if (a.batch == 0 || a.n == 0) return cudaSuccess;
  const Variant v = variant(a);
  Geometry g = geometry(a, v);
  const auto kernel = a.state == F64  ? stage_kernel_f64
                      : v.net == BF16 ? stage_kernel_bf16
                      : v.net == F16  ? stage_kernel_f16
                                      : stage_kernel_f32;
  void *arguments[] = {&a, &g.groups};
  return cudaLaunchKernel(kernel(v), dim3(g.grid_x, g.grid_y), dim3(g.threads), arguments, 0, stream);
}

}  // namespace fastdiff
