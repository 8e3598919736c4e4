#include "stage.cuh"

namespace fastdiff {

const void *stage_kernel_f32(const Variant &v) {
  if (v.shape == FRAMES) return reinterpret_cast<const void *>(framed<float>(v));
  if (v.shape == SUMS) return reinterpret_cast<const void *>(summed<float>(v));
  if (v.shape != ALL) return reinterpret_cast<const void *>(exact<F32>(v));
  const Kernel quiet = stage_kernel<float, ANY, ANY, ALL, 6, true, true, false, false, true>;
  const Kernel noisy = stage_kernel<float, ANY, ANY, ALL, 6, true, true, true, false, true>;
  const Kernel narrow = stage_kernel<float, ANY, ANY, ALL, 6, true, true, true, false, false>;
  const Kernel path = chosen(v.wide, [](auto wide) -> Kernel {
    return stage_kernel<float, ANY, ANY, ALL, 6, true, true, true, true, decltype(wide)::value>;
  });
  return reinterpret_cast<const void *>(v.path ? path : !v.wide ? narrow : v.noise ? noisy : quiet);
}

}  // namespace fastdiff
