// The stage on the GPU, specialised on what its launch says (Variant, in launch.h); everything else is a branch that
// all threads take alike. No pointer is __restrict__: an output may be an input's buffer.
#pragma once

#include <type_traits>

#include "memory.cuh"

namespace fastdiff {

// Columns FROM .. TO of a row, by loads of 16 bytes, which must be aligned, if WIDE. No other entry of `c` may be used.
template <int FROM, int TO, bool WIDE, class T>
__device__ __forceinline__ void columns(const T *row, T (&c)[WIDTH]) {
  constexpr int own = 16 / int(sizeof(T));
#pragma unroll
  for (int i = WIDE ? FROM / own * own : FROM; i <= TO; i += WIDE ? own : 1) {
    if constexpr (!WIDE) {
      c[i] = __ldg(row + i);
    } else if constexpr (own == 4) {
      const float4 q = __ldg(reinterpret_cast<const float4 *>(row + i));
      c[i] = q.x, c[i + 1] = q.y, c[i + 2] = q.z, c[i + 3] = q.w;
    } else {
      const double2 q = __ldg(reinterpret_cast<const double2 *>(row + i));
      c[i] = q.x, c[i + 1] = q.y;
    }
  }
}

template <class T, int COUNT>
__device__ __forceinline__ void accumulate(T factor, const T (&v)[COUNT], T (&total)[COUNT]) {
#pragma unroll
  for (int e = 0; e < COUNT; ++e) total[e] = multiply_add(factor, v[e], total[e]);
}

// The sum over the lanes in `live`, which are the first ones of the warp, in lane 0.
template <class T>
__device__ __forceinline__ T warp_sum(T total, unsigned live, int lane) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    // A lane without a partner reads itself: one that does not take part must not be read.
    const bool paired = lane + offset < 32 && (live >> (lane + offset) & 1u);
    const T other = __shfl_sync(live, total, paired ? lane + offset : lane);
    if (paired) total += other;
  }
  return total;
}

template <class T, int EACH>
__device__ __forceinline__ void widen(const Raw<T> (&raw)[EACH], int dtype, T (&v)[4 * EACH]) {
#pragma unroll
  for (int g = 0; g < EACH; ++g) widen(raw[g], dtype, v + 4 * g);
}

// The sum of normals that `path` says, in every back end in this order and by these fused multiply-adds.
template <int COUNT>
__device__ __forceinline__ void add_path(int64_t group, Sample sample, const int32_t *path, float (&sum)[COUNT]) {
#pragma unroll
  for (int e = 0; e < COUNT; ++e) sum[e] = 0.0f;
  const int32_t count = __ldg(path);
#pragma unroll 1
  for (int32_t j = 0; j < count; ++j) {
    const uint32_t node = uint32_t(__ldg(path + 1 + 2 * j));
    const float weight = as_float(uint32_t(__ldg(path + 2 + 2 * j)));
    float normal[COUNT];
#pragma unroll
    for (int g = 0; g < COUNT / 4; ++g) draw_four(group + 32 * g, sample, node, TAG_PATH, normal + 4 * g);
    accumulate(weight, normal, sum);
  }
}

// Blocks of 256 threads that must fit on a multiprocessor: as many as let no kernel spill.
template <class T, int SHAPE, int ENTRIES, bool PAIRED, bool LEARNED>
constexpr int resident() {
  if (SHAPE > ALL) return 1;
  return (SHAPE != ONE || ENTRIES + PAIRED + 2 * LEARNED > 2 ? 2 : 3) * 4 / int(sizeof(T));
}

template <class T, int NET, int HIST, int SHAPE, int ENTRIES, bool PAIRED, bool LEARNED, bool NOISE, bool PATH,
          bool WIDE>
__global__ void __launch_bounds__(256, resident<T, SHAPE, ENTRIES, PAIRED, LEARNED>())
    stage_kernel(const StageArgs a, const int64_t groups) {
  constexpr int own = sizeof(T) == 4 ? F32 : F64, EACH = EACH_OF[SHAPE], COUNT = 4 * EACH;
  constexpr bool FRAMED = SHAPE == FRAMES, SUMMED = SHAPE == SUMS;
  const int net = NET == ANY ? a.net : NET, hist = HIST == ANY ? a.hist : HIST, in = NET == ANY ? a.in : NET;
  // A thread's groups are 32 apart: every access of a warp is to consecutive memory.
  const int lane = threadIdx.x % 32;
  const int64_t group = (int64_t(blockIdx.x) * blockDim.x + (threadIdx.x - lane)) * EACH + lane;
  const unsigned live = SUMMED ? __ballot_sync(~0u, group < groups) : 0u;
  if (group >= groups) return;
  const uint32_t mask = SHAPE == ONE ? a.u_mask : a.u_mask | a.x_mask;
  const bool reads_u = a.m_reads_u || (mask >> RU & 1u), joint = SHAPE == ONE || a.x == a.u;
  const bool reads_base = (mask >> RX & 1u) || (reads_u && joint), reads_own_u = reads_u && !joint;
  const bool reads_second = SHAPE >= ALL ? a.guided || (mask >> RSECOND & 1u) : PAIRED;
  const int learned = LEARNED ? a.learned : 0;
  const bool learns = learned && (mask >> RSECOND & 3u);
  const void *const base = a.x ? a.x : a.u;
  const int64_t first = 4 * group;
  // A thread's elements are those of one row: of a sample, or of a run of a frame's elements.
  const int64_t length = FRAMED ? a.inner : a.n, samples = FRAMED ? runs(a) : a.batch;
  const int count = WIDE ? 4 : int(length - first < 4 ? length - first : 4);
  bool lives[EACH];
#pragma unroll
  for (int g = 0; g < EACH; ++g) lives[g] = g == 0 || group + 32 * g < groups;

  for (int64_t s = blockIdx.y; s < samples; s += gridDim.y) {
    const int64_t b = FRAMED ? s / (a.n / a.inner) : s;
    const int64_t row_number = FRAMED ? a.rows[b * a.frames + s % a.frames] : a.rows ? a.rows[b] : a.k;
    const T *const row = static_cast<const T *>(a.table) + row_number * WIDTH;
    const int64_t at = s * length + first, at_first = learned ? at + b * a.n : at,
                  at_second = learned == 2 ? at_first : at;
    // What the stage does not use is neither set nor looked at.
    Raw<T> x[EACH], u[EACH], first[EACH], second[EACH], log_e[EACH], h[ENTRIES + 1][EACH];
#pragma unroll
    for (int g = 0; g < EACH; ++g) {
      if (!lives[g]) continue;
      const int64_t skip = 128 * g;
      if (reads_base) x[g] = fetch<T, WIDE>(base, own, at + skip, count);
      if (reads_own_u) u[g] = fetch<T, WIDE>(a.u, own, at + skip, count);
      if (a.convert != CONVERT_NONE) first[g] = fetch<T, WIDE>(a.first, net, at_first + skip, count);
      if (reads_second) second[g] = fetch<T, WIDE>(a.second, net, at_second + skip, count);
      if (learns) log_e[g] = fetch<T, WIDE>(a.first, net, at_first + a.n + skip, count);
#pragma unroll
      for (int i = 0; i < ENTRIES; ++i)
        if (SHAPE < ALL || (mask >> (RH1 + i) & 1u)) h[i][g] = fetch<T, WIDE>(a.h[i], hist, at + skip, count);
    }
    T c[WIDTH], lo, hi, scale;
    columns<IN_SCALE, NEXT_U + RM + ENTRIES, WIDE>(row, c);
    if (reads_second) columns<NEXT_U + RSECOND, NEXT_U + RSECOND, WIDE>(row, c);
    if (a.guided || a.convert == CONVERT_LINEAR) columns<W1, CG, WIDE>(row, c);
    if (a.convert >= CONVERT_CLIP) {
      columns<PU, QX, WIDE>(row, c);
      lo = static_cast<const T *>(a.lo)[b], hi = static_cast<const T *>(a.hi)[b];
      scale = static_cast<const T *>(a.scale)[b];
    }

    T u_next[COUNT] = {}, x_next[COUNT] = {}, m[COUNT], u_of[COUNT], second_of[COUNT], v[COUNT];
    const auto add = [](T factor, const T(&value)[COUNT], T(&total)[COUNT]) {
      if (!FRAMED || factor != T(0)) accumulate(factor, value, total);
    };
    const auto use = [&](int j, const T(&value)[COUNT]) {
      if (a.u_mask >> j & 1u) add(c[NEXT_U + j], value, u_next);
      if (SHAPE != ONE && (a.x_mask >> j & 1u)) add(__ldg(row + NEXT_X + j), value, x_next);
    };
    widen(x, own, u_of);
    use(RX, u_of);
    if (reads_own_u) widen(u, own, u_of);
    use(RU, u_of);
    if (reads_second) widen(second, net, second_of);
    if (a.convert != CONVERT_NONE) {
      widen(first, net, m);
      if (reads_second && a.guided) {
#pragma unroll
        for (int e = 0; e < COUNT; ++e) m[e] = guide(c[W1], m[e], c[W2], second_of[e]);
      }
      if (a.convert == CONVERT_LINEAR) {
        if (a.m_reads_u) {
#pragma unroll
          for (int e = 0; e < COUNT; ++e) m[e] = linear(c[CU], u_of[e], c[CG], m[e]);
        } else {
#pragma unroll
          for (int e = 0; e < COUNT; ++e) m[e] *= c[CG];
        }
      } else if (a.convert >= CONVERT_CLIP) {
        const T qg = a.convert == CONVERT_BLEND ? __ldg(row + QG) : T(0);
#pragma unroll
        for (int e = 0; e < COUNT; ++e) {
          const T g_of = m[e];
          m[e] = clipped(c, a.m_reads_u ? u_of[e] : T(0), g_of, lo, hi, scale);
          if (a.convert == CONVERT_BLEND) m[e] = multiply_add(qg, g_of, m[e]);
        }
      }
      use(RM, m);
    }
#pragma unroll
    for (int i = 0; i < ENTRIES; ++i) {
      if (SHAPE < ALL || (mask >> (RH1 + i) & 1u)) {
        widen(h[i], hist, v);
        use(RH1 + i, v);
      }
    }
    const auto keep = [&](void *to, int dtype, int64_t from, const T(&value)[COUNT]) {
#pragma unroll
      for (int g = 0; g < EACH; ++g)
        if (lives[g]) put<T, WIDE>(to, dtype, from + 128 * g, count, value + 4 * g);
    };
    // Where the user's noise is still to be read, m may belong in its place.
    if (SHAPE < ALL && a.m_out) keep(a.m_out, hist, at, m);
    T e_of[COUNT];
    if (learns) {
      const T s0 = __ldg(row + S0), s1 = __ldg(row + S1);
      widen(log_e, net, e_of);
#pragma unroll
      for (int e = 0; e < COUNT; ++e) e_of[e] = exponential(multiply_add(s1, e_of[e], s0));
      if (reads_second && (mask >> RSECOND & 1u)) {
#pragma unroll
        for (int e = 0; e < COUNT; ++e) second_of[e] *= e_of[e] * e_of[e];
      }
    }
    if (reads_second) use(RSECOND, second_of);
    if (NOISE && mask >> RZA) {
      const Sample sample = {uint64_t(a.seeds[b]), uint32_t(a.index[b])};
#pragma unroll 1
      for (int i = 0; i < (SHAPE == ONE ? 1 : 3); ++i) {
        if (SHAPE != ONE && !(mask >> (RZA + i) & 1u)) continue;
        if (SHAPE >= ALL && a.z[i]) {
          Raw<T> given[EACH];
#pragma unroll
          for (int g = 0; g < EACH; ++g) given[g] = fetch<T, WIDE>(a.z[i], own, at + 128 * g, count);
          widen(given, own, v);
        } else {
          if constexpr (PATH) {
            float sum[COUNT];
            add_path(group, sample, a.draws + (row_number * 3 + i) * PATH_WIDTH, sum);
#pragma unroll
            for (int e = 0; e < COUNT; ++e) v[e] = T(sum[e]);
          } else {
            const uint32_t draw = uint32_t(a.draws[row_number * 3 + i]);
#pragma unroll
            for (int g = 0; g < EACH; ++g) {
              if constexpr (FRAMED) {
                draw_from<WIDE>(at - b * a.n, sample, draw, TAG_STEP, v);
              } else {
                draw_four(group + 32 * g, sample, draw, TAG_STEP, v + 4 * g);
              }
            }
          }
        }
        if constexpr (SUMMED) {
          if (i == 0) {
            // A warp's 128 elements are one chunk.
            T total = T(0);
#pragma unroll
            for (int e = 0; e < COUNT; ++e) total = WIDE || e < count ? multiply_add(v[e], v[e], total) : total;
            total = warp_sum(total, live, lane);
            if (lane == 0)
              static_cast<T *>(a.squares)[b * int64_t(uint64_t(groups + 31) / 32) + int64_t(uint64_t(group) / 32)] =
                  total;
          }
        }
        if (i == 0 && learns) {
#pragma unroll
          for (int e = 0; e < COUNT; ++e) v[e] *= e_of[e];
        }
        if (a.u_mask >> (RZA + i) & 1u) add(__ldg(row + NEXT_U + RZA + i), v, u_next);
        if (SHAPE != ONE && (a.x_mask >> (RZA + i) & 1u)) add(__ldg(row + NEXT_X + RZA + i), v, x_next);
      }
    }

    if (SHAPE >= ALL && a.m_out) keep(a.m_out, hist, at, m);
    if (a.u_out) keep(a.u_out, own, at, u_next);
    if (SHAPE != ONE && a.x_mask) keep(a.x_out, own, at, x_next);
    if (a.copies) {
#pragma unroll
      for (int e = 0; e < COUNT; ++e) v[e] = c[IN_SCALE] * u_next[e];
      keep(a.net_in, in, at, v);
      if (a.copies > 1) keep(a.net_in, in, a.batch * a.n + at, v);
    }
  }
}

using Kernel = void (*)(StageArgs, int64_t);

template <class F>
Kernel chosen(bool flag, F f) {
  return flag ? f(std::true_type{}) : f(std::false_type{});
}

template <int NET, int HIST, int SHAPE, bool PAIRED, bool NOISE>
Kernel with_entries(int entries) {
  constexpr Kernel none = stage_kernel<float, NET, F32, SHAPE, 0, PAIRED, false, NOISE, false, true>;
  constexpr Kernel kernels[] = {none, stage_kernel<float, NET, HIST, SHAPE, 1, PAIRED, false, NOISE, false, true>,
                                stage_kernel<float, NET, HIST, SHAPE, 2, PAIRED, false, NOISE, false, true>,
                                stage_kernel<float, NET, HIST, SHAPE, 3, PAIRED, false, NOISE, false, true>};
  return kernels[entries];
}

// The kernels with a row for each frame.
template <class T>
Kernel framed(const Variant &v) {
  const Kernel quiet = stage_kernel<T, ANY, ANY, FRAMES, 6, true, true, false, false, true>;
  const Kernel noisy = stage_kernel<T, ANY, ANY, FRAMES, 6, true, true, true, false, true>;
  const Kernel narrow = stage_kernel<T, ANY, ANY, FRAMES, 6, true, true, true, false, false>;
  return !v.wide ? narrow : v.noise ? noisy : quiet;
}

// The kernels that sum the squares of the noise.
template <class T>
Kernel summed(const Variant &v) {
  const Kernel wide = stage_kernel<T, ANY, ANY, SUMS, 6, true, true, true, false, true>;
  const Kernel narrow = stage_kernel<T, ANY, ANY, SUMS, 6, true, true, true, false, false>;
  return v.wide ? wide : narrow;
}

// The kernels ONE and TWO for a float32 state.
template <int NET>
Kernel exact(const Variant &v) {
  return chosen(v.noise, [&](auto noise) {
    constexpr bool NOISE = decltype(noise)::value;
    if (v.hist != F32)
      return v.shape == ONE ? with_entries<NET, NET, ONE, false, NOISE>(v.entries)
                            : with_entries<NET, NET, TWO, false, NOISE>(v.entries);
    return chosen(v.paired, [&](auto paired) -> Kernel {
      constexpr bool PAIRED = decltype(paired)::value;
      if (v.learned) return stage_kernel<float, NET, F32, ONE, 0, PAIRED, true, NOISE, false, true>;
      return v.shape == ONE ? with_entries<NET, F32, ONE, PAIRED, NOISE>(v.entries)
                            : with_entries<NET, F32, TWO, PAIRED, NOISE>(v.entries);
    });
  });
}

}  // namespace fastdiff
