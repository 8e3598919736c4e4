// Loads and stores of a run of elements with conversion of dtype.
#pragma once

#include "../stage.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define FD_LOOP _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define FD_LOOP _Pragma("GCC ivdep")
#elif defined(_MSC_VER)
#define FD_LOOP __pragma(loop(ivdep))
#else
#define FD_LOOP
#endif

#if defined(__GNUC__)
#define FD_PREFETCH(address) __builtin_prefetch(address)
#else
#define FD_PREFETCH(address) (void)(address)
#endif

namespace fastdiff {
namespace {

// float16 bits as a float32 at 2^-112 of its value, then scaled: right for subnormals too. Infinity and NaN keep their
// exponent.
FD_FN float from_half(uint16_t h) {
  const uint32_t bits = (h & 0x7FFFu) << 13;
  const uint32_t scaled = as_bits(as_float(bits) * 5.192296858534828e33f);
  const uint32_t special = (h & 0x7C00u) == 0x7C00u ? 0x7F800000u | bits : scaled;
  return as_float(special | (h & 0x8000u) << 16);
}

// Round to nearest even. Below 2^-14 the sum with 0.5 rounds at float16's smallest subnormal, 2^-24.
FD_FN uint16_t to_half(float v) {
  const uint32_t bits = as_bits(v), a = bits & 0x7FFFFFFFu;
  const uint32_t subnormal = as_bits(as_float(a) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (a + 0xC8000FFFu + (a >> 13 & 1u)) >> 13;
  uint32_t h = a < 0x38800000u ? subnormal : normal;
  h = a >= 0x477FF000u ? 0x7C00u : h;
  h = a > 0x7F800000u ? 0x7E00u : h;
  return uint16_t(h | (bits >> 16 & 0x8000u));
}

FD_FN float from_bfloat(uint16_t b) { return as_float(uint32_t(b) << 16); }

FD_FN uint16_t to_bfloat(float v) {
  const uint32_t bits = as_bits(v);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

template <class T>
inline void load_half(T *dst, const uint16_t *src, int64_t len) {
  FD_LOOP
  for (int64_t i = 0; i < len; ++i) dst[i] = T(from_half(src[i]));
}

template <class T>
inline void store_half(uint16_t *dst, const T *src, int64_t len) {
  FD_LOOP
  for (int64_t i = 0; i < len; ++i) dst[i] = to_half(float(src[i]));
}

#if defined(__AVX512F__)
template <>
inline void load_half<float>(float *dst, const uint16_t *src, int64_t len) {
  int64_t i = 0;
  for (; i + 16 <= len; i += 16)
    _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(src + i))));
  for (; i < len; ++i) dst[i] = from_half(src[i]);
}

template <>
inline void store_half<float>(uint16_t *dst, const float *src, int64_t len) {
  int64_t i = 0;
  for (; i + 16 <= len; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(dst + i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  for (; i < len; ++i) dst[i] = to_half(src[i]);
}
#elif defined(__F16C__)
template <>
inline void load_half<float>(float *dst, const uint16_t *src, int64_t len) {
  int64_t i = 0;
  for (; i + 8 <= len; i += 8)
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(src + i))));
  for (; i < len; ++i) dst[i] = from_half(src[i]);
}

template <>
inline void store_half<float>(uint16_t *dst, const float *src, int64_t len) {
  int64_t i = 0;
  for (; i + 8 <= len; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  for (; i < len; ++i) dst[i] = to_half(src[i]);
}
#endif

// Elements first..first+len of `base` as T: in place where the dtype is T's, else converted into `scratch`.
template <class T>
inline const T *load(const void *base, int dtype, int64_t first, int64_t len, T *scratch) {
  constexpr int own = sizeof(T) == 4 ? F32 : F64;
  if (dtype == own) return static_cast<const T *>(base) + first;
  if (dtype == F16) {
    load_half(scratch, static_cast<const uint16_t *>(base) + first, len);
  } else if (dtype == BF16) {
    const uint16_t *src = static_cast<const uint16_t *>(base) + first;
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) scratch[i] = T(from_bfloat(src[i]));
  } else if (dtype == F32) {
    const float *src = static_cast<const float *>(base) + first;
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) scratch[i] = T(src[i]);
  } else {
    const double *src = static_cast<const double *>(base) + first;
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) scratch[i] = T(src[i]);
  }
  return scratch;
}

// Plain memory order, but past the caches: for outputs that are larger than them and were not read in the pass.
template <class T>
inline void copy_past_cache(T *dst, const T *src, int64_t len) {
  int64_t i = 0;
#if defined(__AVX512F__)
  constexpr int64_t step = 64 / sizeof(T);
  for (; i < len && (reinterpret_cast<uintptr_t>(dst + i) & 63u) != 0; ++i) dst[i] = src[i];
  for (; i + step <= len; i += step)
    _mm512_stream_si512(reinterpret_cast<__m512i *>(dst + i), _mm512_loadu_si512(src + i));
#elif defined(__AVX2__)
  constexpr int64_t step = 32 / sizeof(T);
  for (; i < len && (reinterpret_cast<uintptr_t>(dst + i) & 31u) != 0; ++i) dst[i] = src[i];
  for (; i + step <= len; i += step)
    _mm256_stream_si256(reinterpret_cast<__m256i *>(dst + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i *>(src + i)));
#endif
  FD_LOOP
  for (int64_t j = i; j < len; ++j) dst[j] = src[j];
}

// Makes this thread's stores past the caches visible to the others.
inline void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// The inverse of `load`; `past_cache` asks for non-temporal stores where there is no conversion.
template <class T>
inline void store(void *base, int dtype, int64_t first, int64_t len, const T *src, bool past_cache) {
  constexpr int own = sizeof(T) == 4 ? F32 : F64;
  if (dtype == own) {
    T *dst = static_cast<T *>(base) + first;
    if (past_cache) {
      copy_past_cache(dst, src, len);
    } else {
      memmove(dst, src, size_t(len) * sizeof(T));
    }
  } else if (dtype == F16) {
    store_half(static_cast<uint16_t *>(base) + first, src, len);
  } else if (dtype == BF16) {
    uint16_t *dst = static_cast<uint16_t *>(base) + first;
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) dst[i] = to_bfloat(float(src[i]));
  } else if (dtype == F32) {
    float *dst = static_cast<float *>(base) + first;
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) dst[i] = float(src[i]);
  } else {
    double *dst = static_cast<double *>(base) + first;
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) dst[i] = double(src[i]);
  }
}

}  // namespace
}  // namespace fastdiff
