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

// Both halves of a product in one instruction.
FD_FN uint64_t wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  uint64_t p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(b));
  return p;
#else
  return uint64_t(a) * b;
#endif
}

// One block of four 32-bit words for a counter of four words and a key of two.
FD_FN Block philox(Block c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = wide_product(c.c0, 0xD2511F53u);
    const uint64_t p1 = wide_product(c.c2, 0xCD9E8D57u);
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

// Whether the processor has a·b + c in one rounding as an instruction.
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool FUSED = true;
#else
constexpr bool FUSED = false;
#endif

// a·b + c, in one rounding where FUSED. Every fused multiply-add of the arithmetic is written out with it, so that no
// compiler decides what is fused.
template <class T>
FD_FN T multiply_add(T a, T b, T c) {
  return FUSED ? fma(a, b, c) : a * b + c;
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

// The square root of 0 or of a number in [2^-24, 64], rounded to nearest.
FD_FN float square_root(float v) {
#if defined(__CUDA_ARCH__)
  // What __fsqrt_rn does in this range, without its branch for numbers outside; the bound makes 0 of 0 · infinity.
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fabsf(v)));
  inverse = fminf(inverse, 3.0e38f);
  const float root = __fmul_rn(v, inverse), half = __fmul_rn(inverse, 0.5f);
  return fma(fma(-root, root, v), half, root);
#else
  return sqrtf(v);
#endif
}

// -2 ln v for v in [2^-33, 1]. v = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), so that e = 0 near 1 and the
// relative accuracy stays good there; ln(1 + f) = f - f^2/2 + f^3 p(f), p a minimax fit of degree 7 (0.1 units of
// 2^-24).
FD_FN float minus_two_ln(float v) {
  const uint32_t bits = as_bits(v);
  // 2^23 e: its conversion is exact, and so are the products with powers of two below.
  const uint32_t scaled = (bits - 0x3F3504F3u) & 0xFF800000u;
  const float f = as_float(bits - scaled) - 1.0f;
  const float fe = float(int32_t(scaled));
  constexpr float UNIT = 1.0f / 8388608.0f;
  // -2 p.
  float p = multiply_add(f, 0.1526886f, -0.255231f);
  p = multiply_add(f, p, 0.26320388f);
  p = multiply_add(f, p, -0.28403524f);
  p = multiply_add(f, p, 0.33246714f);
  p = multiply_add(f, p, -0.40002454f);
  p = multiply_add(f, p, 0.50001646f);
  p = multiply_add(f, p, -0.6666666f);
  const float square = f * f;
  const float tail = multiply_add(fe, 4.24388880e-4f * UNIT, multiply_add(f * square, p, square));
  // ln 2 in two parts; the first has 9 bits, so its product with e is exact.
  return multiply_add(fe, -1.38671875f * UNIT, multiply_add(f, -2.0f, tail));
}

struct Pair {
  float first, second;
};

// (a, b), or (b, a) where the one bit of `bit` is set.
FD_FN void swapped_if(uint32_t bit, float a, float b, float &x, float &y) {
#if defined(__CUDA_ARCH__)
  // Else the compiler shifts the bit down before it looks at it: two instructions more.
  asm("{ .reg .pred p; setp.ne.b32 p, %2, 0; selp.f32 %0, %4, %3, p; selp.f32 %1, %3, %4, p; }"
      : "=&f"(x), "=f"(y)
      : "r"(bit), "f"(a), "f"(b));
#else
  x = bit ? b : a, y = bit ? a : b;
#endif
}

// Two standard normals from two words: r cos and r sin of the angle 2 pi b / 2^32, r = sqrt(-2 ln u(a)). The angle is
// split into a quadrant and a rest phi in [-pi/4, pi/4]; sine and cosine are minimax fits (0.06 units of 2^-24).
FD_FN Pair box_muller(uint32_t a, uint32_t b) {
  const float u = multiply_add(to_float(a), 2.3283064365386963e-10f, 1.1641532182693481e-10f);
  const float r = square_root(minus_two_ln(u));
  const float phi = float(int32_t(b << 2)) * 3.657295198167899e-10f;  // 2 pi / 2^34
  const float q = phi * phi;
  float s = multiply_add(q, -1.9515282e-4f, 8.33216e-3f);
  s = multiply_add(q, s, -1.6666655e-1f);
  s = r * multiply_add(phi * q, s, phi);
  float c = multiply_add(q, 2.4433155e-5f, -1.3887316e-3f);
  c = multiply_add(q, c, 4.1666646e-2f);
  c = r * multiply_add(q * q, c, multiply_add(q, -0.5f, 1.0f));
  // (c, s), (-s, c), (-c, -s), (s, -c) by the quadrant, which the two leading bits of b + 2^29 name.
  const uint32_t turn = b + (1u << 29);
  float x, y;
  swapped_if(turn & (1u << 30), c, s, x, y);
  return {as_float(as_bits(x) ^ ((turn + (1u << 30)) & 0x80000000u)), as_float(as_bits(y) ^ (turn & 0x80000000u))};
}

}  // namespace fastdiff
