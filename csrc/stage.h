// One stage of a sampler: what it reads and writes, and its arithmetic for one element, on host and device.
#pragma once

#include <math.h>

#include "philox.h"

namespace fastdiff {

// Columns of a table row; the same order as fastdiff/ops/layout.py.
enum Column {
  W1,
  W2,
  CU,
  CG,
  PU,
  PG,
  QU,
  QX,
  IN_SCALE,
  NEXT_U,
  NEXT_X = NEXT_U + 13,
  S0 = NEXT_X + 13,
  S1,
  QG,
  KEEP,
  DEPTH,
  WIDTH = 40
};

// The same order as fastdiff/plan.py.
enum Register { RX, RU, RM, RH1, RSECOND = RH1 + 6, RZA, NREG = RZA + 3 };

// The words of one draw where it is an increment of a Brownian path, a sum of normals: their number, then for each its
// own number and the bits of its float32 weight. fastdiff/ops/brownian.py says how they are made.
constexpr int PATH_TERMS = 64, PATH_WIDTH = 1 + 2 * PATH_TERMS;
// Streams of the noise: the steps', and the path's.
enum Tag : uint32_t { TAG_STEP = 0, TAG_PATH = 2 };

enum Convert { CONVERT_NONE, CONVERT_RAW, CONVERT_LINEAR, CONVERT_CLIP, CONVERT_BLEND };

enum DType { F16, BF16, F32, F64 };

// Every pointer is to contiguous memory, null where unused. An output may be the same buffer as an input, at the same
// offset.
struct StageArgs {
  int32_t convert, guided, m_reads_u;
  uint32_t u_mask, x_mask;
  int32_t copies;
  // The network gives a variance. 1: a sample of `first` has 2n elements, the prediction and then v; 2: so has one of
  // `second`.
  int32_t learned;
  int32_t path;              // not 0: the draws are increments of a Brownian path
  int32_t state, net, hist, in;  // DType of the state; of first and second; of the history and m_out; of net_in
  int64_t batch, n;              // samples, and elements in each
  const void *x, *u, *first, *second;
  const void *h[6];
  const void *z[3];  // the user's noise; null: Philox
  void *u_out, *x_out, *m_out, *net_in;
  const void *table;            // rows of WIDTH coefficients in the state's dtype
  const int32_t *draws;         // rows of 3, or of 3 * PATH_WIDTH
  int64_t k;                    // the row
  const int32_t *rows;          // or a row for each sample; or, where inner is not 0, for each frame of each sample
  const int64_t *seeds;         // per sample
  const int32_t *index;         // per sample
  const void *lo, *hi, *scale;  // per sample, state's dtype
  // Where inner is not 0, element i of a sample belongs to frame i / inner % frames, whose row is rows[b * frames +
  // frame]. A coefficient of 0 is then not used at all, so that a frame never sees what its own row does not read.
  int64_t inner;
  int32_t frames;
  // Null, or where the sums of za's squares go: one for each CHUNK elements of a sample, in the state's dtype.
  void *squares;
};

// Elements in a sum of squares.
constexpr int CHUNK = 128;

// Runs of `inner` elements with one row of the table, in the whole batch.
FD_FN int64_t runs(const StageArgs &a) { return a.n / a.inner * a.batch; }

// The noise alone, of one draw.
struct NormalArgs {
  void *out;      // batch x n, contiguous
  int32_t dtype;  // F32 or F64
  int64_t batch, n;
  const int64_t *seeds;
  const int32_t *index;
  uint32_t draw, stream;
};

template <class T>
FD_FN T guide(T w1, T first, T w2, T second) {
  return multiply_add(w1, first, w2 * second);
}

// A NaN in any argument comes out, unlike with fmin and fmax.
template <class T>
FD_FN T clamp(T v, T lo, T hi) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4) {
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(v) : "f"(hi));
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(v) : "f"(lo));
    return v;
  }
#endif
  v = v < hi ? v : (v != v ? v : hi);
  return v > lo ? v : (v != v ? v : lo);
}

template <class T>
FD_FN T linear(T cu, T u, T cg, T g) {
  return multiply_add(cu, u, cg * g);
}

// m through the clipped x0; u is 0 where the stage does not read it.
template <class T>
FD_FN T clipped(const T *row, T u, T g, T lo, T hi, T scale) {
  const T x0 = clamp(multiply_add(row[PU], u, row[PG] * g), lo, hi) * scale;
  return multiply_add(row[QU], u, row[QX] * x0);
}

// exp to 1.5 units of 2^-24 for |v| <= 10, and 5 at the ends: 2^k e^r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r),
// q a minimax fit of degree 4 (0.05 units). Written out, so that a loop over it is made of SIMD instructions.
FD_FN float exponential(float v) {
  const float w = clamp(v, -87.0f, 88.0f);
  // 1.5·2^23: the sum's low bits are the rounded integer.
  const float shifted = multiply_add(w, 1.44269504f, 12582912.0f), k = shifted - 12582912.0f;
  // The float32 next to ln 2 is off by 1.9e-9 alone. Where its product is rounded, it is taken in two parts, the first
  // of which has 9 bits.
  const float r =
      FUSED ? multiply_add(k, -0.693147182f, w) : multiply_add(k, 2.12194440e-4f, multiply_add(k, -0.693359375f, w));
  float p = multiply_add(r, 1.3814540e-3f, 8.3687454e-3f);
  p = multiply_add(p, r, 4.1668389e-2f);
  p = multiply_add(p, r, 1.6666521e-1f);
  p = multiply_add(p, r, 4.9999994e-1f);
  p = multiply_add(p, r, 1.0f);
  p = multiply_add(p, r, 1.0f);
  return p * as_float((as_bits(shifted) << 23) + 0x3F800000u);
}

FD_FN double exponential(double v) { return exp(v); }

}  // namespace fastdiff
