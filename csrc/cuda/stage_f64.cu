#include "stage.cuh"

namespace fastdiff {

template <int ENTRIES>
Kernel with_noise(bool noise) {
  return chosen(noise, [](auto flag) -> Kernel {
    return stage_kernel<double, ANY, ANY, ALL, ENTRIES, true, true, decltype(flag)::value, false, true>;
  });
}

const void *stage_kernel_f64(const Variant &v) {
  if (v.shape == SUMS) return reinterpret_cast<const void *>(summed<double>(v));
  if (v.shape == FRAMES) return reinterpret_cast<const void *>(framed<double>(v));
  const Kernel narrow = stage_kernel<double, ANY, ANY, ALL, 6, true, true, true, false, false>;
  const Kernel path = chosen(v.wide, [](auto wide) -> Kernel {
    return stage_kernel<double, ANY, ANY, ALL, 6, true, true, true, true, decltype(wide)::value>;
  });
  return reinterpret_cast<const void *>(v.path           ? path
                                        : !v.wide        ? narrow
                                        : v.entries <= 3 ? with_noise<3>(v.noise)
                                                         : with_noise<6>(v.noise));
}

}  // namespace fastdiff
