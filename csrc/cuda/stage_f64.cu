#include "stage.cuh"

namespace fastdiff {

const void *stage_kernel_f64(const Variant &v) {
  const Kernel found = v.net == ANY        ? any<double>(v)
                       : v.net == F32      ? single<double, F32, ALL>(v.noise)
                       : v.shape == FRAMES ? single<double, F64, FRAMES>(v.noise)
                       : v.shape == SUMS   ? single<double, F64, SUMS>(v.noise)
                                           : single<double, F64, ALL>(v.noise);
  return reinterpret_cast<const void *>(found);
}

}  // namespace fastdiff
