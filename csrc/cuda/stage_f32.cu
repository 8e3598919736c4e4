#include "stage.cuh"

namespace fastdiff {

const void *stage_kernel_f32(const Variant &v) {
  return reinterpret_cast<const void *>(v.net == ANY ? any<float>(v) : exact<F32>(v));
}

}  // namespace fastdiff
