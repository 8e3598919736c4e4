// A thread's 4 elements on their way from and to memory. They are fetched as raw bits and converted later, so that all
// loads of a thread are in flight before the first is waited for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"

namespace fastdiff {

// Room for 4 elements of T, or of a narrower dtype.
template <class T>
struct Raw {
  uint4 q[sizeof(T) / 4];
};

__device__ __forceinline__ uint32_t pack(const uint16_t *p, int count) {
  return count <= 0 ? 0u : p[0] | (count > 1 ? uint32_t(p[1]) << 16 : 0u);
}

__device__ __forceinline__ uint4 four(const uint32_t *p, int count) {
  return make_uint4(count > 0 ? p[0] : 0u, count > 1 ? p[1] : 0u, count > 2 ? p[2] : 0u, count > 3 ? p[3] : 0u);
}

// `count` elements from `at`; 4 of them with one access (two for float64) if WIDE. A float64 stream of a float32 stage,
// which is rare, is converted here if MIXED.
template <class T, bool WIDE, bool MIXED>
__device__ __forceinline__ Raw<T> fetch(const void *base, int dtype, int64_t at, int count) {
  Raw<T> raw{};
  if (dtype <= BF16) {
    const uint16_t *p = static_cast<const uint16_t *>(base) + at;
    if (WIDE) {
      const uint2 two = *reinterpret_cast<const uint2 *>(p);
      raw.q[0].x = two.x, raw.q[0].y = two.y;
    } else {
      raw.q[0].x = pack(p, count), raw.q[0].y = pack(p + 2, count - 2);
    }
  } else if (dtype == F32 || (!MIXED && sizeof(T) == 4)) {
    const uint32_t *p = static_cast<const uint32_t *>(base) + at;
    raw.q[0] = WIDE ? *reinterpret_cast<const uint4 *>(p) : four(p, count);
  } else if constexpr (sizeof(T) == 8) {
    const uint32_t *p = reinterpret_cast<const uint32_t *>(static_cast<const double *>(base) + at);
    raw.q[0] = WIDE ? *reinterpret_cast<const uint4 *>(p) : four(p, 2 * count);
    raw.q[1] = WIDE ? *reinterpret_cast<const uint4 *>(p + 4) : four(p + 4, 2 * count - 4);
  } else {
    const double *p = static_cast<const double *>(base) + at;
    float v[4];
    for (int e = 0; e < 4; ++e) v[e] = e < count ? float(p[e]) : 0.0f;
    raw.q[0] = make_uint4(as_bits(v[0]), as_bits(v[1]), as_bits(v[2]), as_bits(v[3]));
  }
  return raw;
}

template <class T>
__device__ __forceinline__ void widen(const Raw<T> &raw, int dtype, T *v) {
  const uint32_t bits[4] = {raw.q[0].x, raw.q[0].y, raw.q[0].z, raw.q[0].w};
  if (dtype == F16) {
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = T(__half2float(__ushort_as_half(uint16_t(bits[e / 2] >> (e % 2 * 16)))));
  } else if (dtype == BF16) {
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = T(as_float(e % 2 ? bits[e / 2] & 0xFFFF0000u : bits[e / 2] << 16));
  } else if (sizeof(T) == 4 || dtype == F32) {
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = T(as_float(bits[e]));
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint4 q = raw.q[(e / 2) * (sizeof(T) / 4 - 1)];
      v[e] = T(__hiloint2double(int(e % 2 ? q.w : q.y), int(e % 2 ? q.z : q.x)));
    }
  }
}

// Two numbers rounded to nearest in a 16-bit dtype, the first in the low half.
__device__ __forceinline__ uint32_t halves(int dtype, float low, float high) {
  uint32_t bits;
  if (dtype == F16) {
    const __half2 two = __floats2half2_rn(low, high);
    memcpy(&bits, &two, sizeof bits);
  } else {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &two, sizeof bits);
  }
  return bits;
}

// One access of 16 or 8 bytes, to memory aligned to them. The compiler takes an assignment of such a struct apart, into
// four accesses of 4 bytes each, wherever the registers do not lie beside each other.
__device__ __forceinline__ void store(void *p, float4 v) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}

__device__ __forceinline__ void store(void *p, uint2 v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y) : "memory");
}

__device__ __forceinline__ void store(void *p, double2 v) {
  asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "d"(v.x), "d"(v.y) : "memory");
}

// The inverse: v's first `count` elements to `at`, rounded to nearest.
template <class T, bool WIDE, bool MIXED = true>
__device__ __forceinline__ void put(void *base, int dtype, int64_t at, int count, const T *v) {
  if (dtype <= BF16) {
    uint32_t two[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) two[e] = halves(dtype, float(v[2 * e]), float(v[2 * e + 1]));
    uint16_t *p = static_cast<uint16_t *>(base) + at;
    if (WIDE) {
      store(p, make_uint2(two[0], two[1]));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (e < count) p[e] = uint16_t(two[e / 2] >> (e % 2 * 16));
    }
  } else if (dtype == F32 || (!MIXED && sizeof(T) == 4)) {
    float *p = static_cast<float *>(base) + at;
    if (WIDE) {
      store(p, make_float4(float(v[0]), float(v[1]), float(v[2]), float(v[3])));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (e < count) p[e] = float(v[e]);
    }
  } else {
    double *p = static_cast<double *>(base) + at;
    if (WIDE) {
      store(p, make_double2(double(v[0]), double(v[1])));
      store(p + 2, make_double2(double(v[2]), double(v[3])));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (e < count) p[e] = double(v[e]);
    }
  }
}

// What all normals of a sample share.
struct Sample {
  uint64_t seed;
  uint32_t index;
};

// Four normals: elements 4*block .. 4*block + 3 of a sample.
template <class T>
__device__ __forceinline__ void draw_four(int64_t block, Sample s, uint32_t draw, uint32_t tag, T *v) {
  const Block words = philox({uint32_t(block), s.index, draw, tag}, uint32_t(s.seed), uint32_t(s.seed >> 32));
  const Pair first = box_muller(words.c0, words.c1), second = box_muller(words.c2, words.c3);
  v[0] = T(first.first), v[1] = T(first.second), v[2] = T(second.first), v[3] = T(second.second);
}

// Four normals from element `at` of a sample on.
template <class T>
__device__ __forceinline__ void draw_from(int64_t at, Sample s, uint32_t draw, uint32_t tag, T *v) {
  const int64_t block = int64_t(uint64_t(at) >> 2);
  T two[8];
  draw_four(block, s, draw, tag, two);
  draw_four(block + 1, s, draw, tag, two + 4);
  const int shift = int(at & 3);
#pragma unroll
  for (int e = 0; e < 4; ++e)
    v[e] = shift == 0 ? two[e] : shift == 1 ? two[e + 1] : shift == 2 ? two[e + 2] : two[e + 3];
}

}  // namespace fastdiff
