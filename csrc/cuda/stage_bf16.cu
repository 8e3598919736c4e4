#include "stage.cuh"

namespace fastdiff {

const void *stage_kernel_bf16(const Variant &v) { return reinterpret_cast<const void *>(exact<BF16>(v)); }

}  // namespace fastdiff
