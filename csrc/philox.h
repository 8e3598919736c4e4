// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011) and Box-Muller, on
// host and device. The host functions are branch-free and free of library calls, so that loops around them vectorise.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define FD_FN static __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define FD_FN static __forceinline
#else
// Internal linkage matters: these headers are compiled for several instruction sets into one library.
#define FD_FN static inline __attribute__((always_inline))
#endif

namespace fastdiff {

struct Block {
  uint32_t c0, c1, c2, c3;
};

// One block of four 32-bit words for a counter of four words and a key of two.
FD_FN Block philox(Block c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c.c0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c.c2;
    const uint32_t n0 = uint32_t(p1 >> 32) ^ c.c1 ^ k0;
    const uint32_t n2 = uint32_t(p0 >> 32) ^ c.c3 ^ k1;
    c.c1 = uint32_t(p1);
    c.c3 = uint32_t(p0);
    c.c0 = n0;
    c.c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

FD_FN float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FD_FN uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Round to nearest, in one rounding: both halves are exact in float32, and so is the scaled upper one.
FD_FN float to_float(uint32_t c) {
#if defined(__CUDA_ARCH__)
  return __uint2float_rn(c);
#elif defined(__AVX512F__)
  return float(c);
#else
  return float(int32_t(c >> 16)) * 65536.0f + float(int32_t(c & 0xFFFFu));
#endif
}

// sqrt(-2 ln v) for v in [2^-33, 1]. v = 2^e (1 + t) with |t| <= 1/3, so e = 0 near 1 and the relative accuracy stays
// good there; ln(1 + t) = t + t^2 q(t), q a minimax fit (2.6e-8 relative on ln).
FD_FN float radius(float v) {
  const uint32_t bits = as_bits(v);
  const int32_t e = int32_t(bits - 0x3F2AAAABu) >> 23;
  const float t = as_float(bits - (uint32_t(e) << 23)) - 1.0f;
  const float fe = float(e);
  float q = 1.402635859e-1f;
  q = q * t + -1.538854870e-1f;
  q = q * t + 1.399580712e-1f;
  q = q * t + -1.641595926e-1f;
  q = q * t + 2.001116866e-1f;
  q = q * t + -2.500781896e-1f;
  q = q * t + 3.333319814e-1f;
  q = q * t + -4.999993608e-1f;
  // ln 2 in two parts; the first has 15 bits, so its product with e is exact.
  const float low = t * t * q + fe * 1.42860677e-6f;
  const float ln = fe * 0.693145751953125f + (t + low);
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(-2.0f * ln);
#else
  return sqrtf(-2.0f * ln);
#endif
}

struct Pair {
  float first, second;
};

// Two standard normals from two words. The angle 2 pi b / 2^32 is split into a quadrant and a rest in [-pi/4, pi/4].
FD_FN Pair box_muller(uint32_t a, uint32_t b) {
  const float r = radius(to_float(a) * 2.3283064365386963e-10f + 1.1641532182693481e-10f);
  const uint32_t quadrant = (b + (1u << 29)) >> 30;
  const int32_t rest = int32_t(b - (quadrant << 30));
  const float rounded = float(rest), phi = rounded * 1.4629180792671596e-9f;
  // What phi lacks: the integer's own rounding, and that of the factor, 2.78e-8 of phi too large.
  const float lack = float(rest - int32_t(rounded)) * 1.4629180792671596e-9f - 2.7827534e-8f * phi;
  const float s = phi * phi;
  const float sine = phi + (lack + phi * s * (-1.666665494e-1f + s * (8.332178142e-3f + s * -1.951729843e-4f)));
  // 1 - s/2 with the error of its rounding: the larger terms first would cost a unit in the last place.
  const float half = 0.5f * s, whole = 1.0f - half;
  const float fourth = s * s * (4.166664687e-2f + s * (-1.388736751e-3f + s * 2.443845100e-5f));
  const float cosine = whole + (((1.0f - whole) - half) + (fourth - phi * lack));
  const bool odd = (quadrant & 1u) != 0u;
  const float x = odd ? sine : cosine;
  const float y = odd ? cosine : sine;
  // cos is negative in quadrants 1 and 2, sin in 2 and 3.
  const uint32_t sign_x = ((quadrant + 1u) & 2u) << 30;
  const uint32_t sign_y = (quadrant & 2u) << 30;
  return {r * as_float(as_bits(x) ^ sign_x), r * as_float(as_bits(y) ^ sign_y)};
}

}  // namespace fastdiff
