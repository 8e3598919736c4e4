#include "stage.cuh"

namespace fastdiff {

const void *stage_kernel_f64(const Variant &v) {
  return reinterpret_cast<const void *>(v.net == ANY   ? any<double>(v)
                                        : v.net == F32 ? single<double, F32, ALL>(v.noise)
                                                       : single<double, F64, ALL>(v.noise));
}

}  // namespace fastdiff
