#include "stage.cuh"

namespace fastdiff {

const void *stage_kernel_f16(const Variant &v) { return reinterpret_cast<const void *>(exact<F16>(v)); }

}  // namespace fastdiff
