// Order statistics of |x| by radix selection: what host and device share. The bit pattern of |x|, as an unsigned
// integer, is ordered like |x| itself, with infinity above every number and NaN above infinity.
#pragma once

#include "stage.h"

namespace fastdiff {

// out[b] = a + weight * (c - a), with a and c the order statistics `low` and `low` + 1 of |x[b]|, counted from 0; NaN
// where the sample has one. Where `weight` is 0, c is not looked at.
struct QuantileArgs {
  void *out;      // batch
  const void *x;  // batch x n, contiguous
  int32_t dtype;  // F32 or F64, of both
  int64_t batch, n;
  int64_t low;
  double weight;  // in [0, 1)
};

template <class T>
struct Keys;

template <>
struct Keys<float> {
  using type = uint32_t;
  static constexpr int BITS = 31;
  static constexpr uint32_t INFINITE = 0x7F800000u;
  // The first digit of the selection on the CPU: the exponent and 3 bits of the mantissa.
  static constexpr int FIRST = 11;
};

template <>
struct Keys<double> {
  using type = uint64_t;
  static constexpr int BITS = 63;
  static constexpr uint64_t INFINITE = 0x7FF0000000000000u;
  static constexpr int FIRST = 13;
};

FD_FN uint32_t key_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits & 0x7FFFFFFFu;
}

FD_FN uint64_t key_of(double v) {
  uint64_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits & 0x7FFFFFFFFFFFFFFFu;
}

template <class T>
FD_FN T value_of(typename Keys<T>::type key) {
  T v;
  memcpy(&v, &key, sizeof v);
  return v;
}

// The quantile from the keys of both order statistics and of the largest element. Product and sum are rounded apart, so
// that all back ends give the same bits; equal neighbours, infinite ones among them, need no arithmetic.
template <class T>
FD_FN T quantile_of(typename Keys<T>::type low, typename Keys<T>::type high, typename Keys<T>::type top,
                    double weight) {
  if (top > Keys<T>::INFINITE) return value_of<T>(top);
  const T a = value_of<T>(low);
  if (weight == 0.0 || low == high) return a;
  const T d = value_of<T>(high) - a;
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4)
    return __fadd_rn(a, __fmul_rn(T(weight), d));
  else
    return __dadd_rn(a, __dmul_rn(weight, d));
#else
  const volatile T product = T(weight) * d;
  return a + product;
#endif
}

}  // namespace fastdiff
