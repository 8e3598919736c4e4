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

// The sum over a warp, in lane 0.
template <class T>
__device__ __forceinline__ T warp_sum(T total) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) total += __shfl_down_sync(~0u, total, offset);
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

// What a kernel is compiled for.
template <class T_, int NET_, int HIST_, int SHAPE_, int ENTRIES_, bool PAIRED_, bool LEARNED_, bool NOISE_, bool PATH_,
          bool WIDE_>
struct Kind {
  using T = T_;
  static constexpr int NET = NET_, HIST = HIST_, SHAPE = SHAPE_, ENTRIES = ENTRIES_;
  static constexpr bool PAIRED = PAIRED_, LEARNED = LEARNED_, NOISE = NOISE_, PATH = PATH_, WIDE = WIDE_;
  static constexpr int OWN = sizeof(T) == 4 ? F32 : F64, EACH = each_of(OWN, SHAPE, WIDE);
  static constexpr bool FRAMED = SHAPE == FRAMES, SUMMED = SHAPE == SUMS;
  // Any stage of the shape, or only those that ONE takes.
  static constexpr bool GENERAL = SHAPE >= ALL && NET == ANY, SINGLE = SHAPE == ONE || (SHAPE >= ALL && !GENERAL);
  // Where 4 elements may be of two frames, a run of a frame's elements stands for a sample.
  static constexpr bool BY_RUN = FRAMED && !WIDE;
  // Entries of the history that are under way before anything is computed; the others take their registers then.
  static constexpr int AHEAD = ENTRIES < 3 ? ENTRIES : 3;
};

// Where a thread's groups of 4 elements lie; they are 32 groups apart and read one row of the table.
template <class T, int EACH>
struct Place {
  int64_t b, at, group;  // the sample; the first element, in the batch; the first group, in the sample (or run)
  int64_t row_number;
  const T *row;
  int count;         // elements of a group
  bool lives[EACH];  // whether the group is inside
};

// The stage of one thread's groups.
template <class K, class T = typename K::T, int EACH = K::EACH>
__device__ __forceinline__ void run_groups(const StageArgs &a, int64_t groups, int lane, const Place<T, EACH> &p) {
  constexpr int SHAPE = K::SHAPE, ENTRIES = K::ENTRIES, AHEAD = K::AHEAD, own = K::OWN, COUNT = 4 * EACH;
  constexpr bool WIDE = K::WIDE, NOISE = K::NOISE, SINGLE = K::SINGLE, GENERAL = K::GENERAL;
  const int net = K::NET == ANY ? a.net : K::NET, hist = K::HIST == ANY ? a.hist : K::HIST,
            in = K::NET == ANY ? a.in : K::NET;
  const uint32_t mask = SINGLE ? a.u_mask : a.u_mask | a.x_mask;
  const bool reads_u = a.m_reads_u || (mask >> RU & 1u), joint = SINGLE || a.x == a.u;
  const bool reads_base = (mask >> RX & 1u) || (reads_u && joint), reads_own_u = reads_u && !joint;
  const bool reads_second = SHAPE >= ALL ? a.guided || (mask >> RSECOND & 1u) : K::PAIRED;
  const int learned = K::LEARNED ? a.learned : 0;
  const bool learns = learned && (mask >> RSECOND & 3u), given = GENERAL && NOISE && a.z[0];
  const void *const base = a.x ? a.x : a.u;
  const T *const row = p.row;
  const int64_t at = p.at, at_first = learned ? at + p.b * a.n : at, at_second = learned == 2 ? at_first : at;
  const auto load_groups = [&](int from, int to, const void *base, int dtype, int64_t start, Raw<T>(&raw)[EACH]) {
#pragma unroll
    for (int g = from; g < to; ++g)
      if (p.lives[g]) raw[g] = fetch<T, WIDE, GENERAL>(base, dtype, start + 128 * g, p.count);
  };
  const auto load = [&](const void *base, int dtype, int64_t start, Raw<T>(&raw)[EACH]) {
    load_groups(0, EACH, base, dtype, start, raw);
  };
  const auto has = [&](int i) { return SHAPE < ALL || (mask >> (RH1 + i) & 1u); };

  // What the stage does not use is neither set nor looked at.
  Raw<T> x[EACH], u[EACH], first[EACH], second[EACH], log_e[EACH], h[AHEAD + 1][EACH], z[EACH];
  const auto begin = [&](int from, int to) {
    if (reads_base) load_groups(from, to, base, own, at, x);
    if (reads_own_u) load_groups(from, to, a.u, own, at, u);
    if (a.convert != CONVERT_NONE) load_groups(from, to, a.first, net, at_first, first);
    if (reads_second) load_groups(from, to, a.second, net, at_second, second);
    if (!GENERAL && learns) load_groups(from, to, a.first, net, at_first + a.n, log_e);
#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
      if (has(i)) load_groups(from, to, a.h[i], hist, at, h[i]);
  };
  // One branch for each group takes fewer instructions where few streams depend on the arguments, else one for each
  // stream.
  if constexpr (SHAPE >= ALL) {
    begin(0, EACH);
  } else {
#pragma unroll
    for (int g = 0; g < EACH; ++g)
      if (p.lives[g]) begin(g, g + 1);
  }
  T c[WIDTH], lo, hi, scale;
  const auto bounds = [&] {
    columns<PU, QX, WIDE>(row, c);
    lo = static_cast<const T *>(a.lo)[p.b], hi = static_cast<const T *>(a.hi)[p.b];
    scale = static_cast<const T *>(a.scale)[p.b];
  };
  columns<IN_SCALE, NEXT_U + RM + AHEAD, WIDE>(row, c);
  if (!GENERAL && reads_second) columns<NEXT_U + RSECOND, NEXT_U + RSECOND, WIDE>(row, c);
  if (a.guided || a.convert == CONVERT_LINEAR) columns<W1, CG, WIDE>(row, c);
  if (SHAPE < ALL && a.convert >= CONVERT_CLIP) bounds();

  T u_next[COUNT] = {}, x_next[COUNT] = {}, m[COUNT], u_of[COUNT], second_of[COUNT], v[COUNT];
  const auto add = [](T factor, const T(&value)[COUNT], T(&total)[COUNT]) {
    if (!K::FRAMED || factor != T(0)) accumulate(factor, value, total);
  };
  const auto use = [&](int j, const T(&value)[COUNT]) {
    const bool ready = j <= RM + AHEAD || (!GENERAL && j == RSECOND);
    if (a.u_mask >> j & 1u) add(ready ? c[NEXT_U + j] : __ldg(row + NEXT_U + j), value, u_next);
    if (!SINGLE && (a.x_mask >> j & 1u)) add(__ldg(row + NEXT_X + j), value, x_next);
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
      if (SHAPE >= ALL) bounds();
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
  const auto use_entry = [&](int i) {
    if (!has(i)) return;
    widen(h[i % 3], hist, v);
    use(RH1 + i, v);
  };
#pragma unroll
  for (int i = 0; i < AHEAD; ++i) use_entry(i);
#pragma unroll
  for (int i = AHEAD; i < ENTRIES; ++i)
    if (has(i)) load(a.h[i], hist, at, h[i % 3]);
  if (GENERAL && learns) load(a.first, net, at_first + a.n, log_e);
  if (given) load(a.z[0], own, at, z);
#pragma unroll
  for (int i = AHEAD; i < ENTRIES; ++i) use_entry(i);
  const auto keep = [&](void *to, int dtype, int64_t from, const T(&value)[COUNT]) {
#pragma unroll
    for (int g = 0; g < EACH; ++g)
      if (p.lives[g]) put<T, WIDE, GENERAL>(to, dtype, from + 128 * g, p.count, value + 4 * g);
  };
  // Where the user's noise is still to be read, m may belong in its place.
  if (!GENERAL && a.m_out) keep(a.m_out, hist, at, m);
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
    const Sample sample = {uint64_t(a.seeds[p.b]), uint32_t(a.index[p.b])};
#pragma unroll 1
    for (int i = 0; i < (SINGLE ? 1 : 3); ++i) {
      if (!SINGLE && !(mask >> (RZA + i) & 1u)) continue;
      if (GENERAL && a.z[i]) {
        if (i) load(a.z[i], own, at, z);
        widen(z, own, v);
      } else if constexpr (K::PATH) {
        float sum[COUNT];
        add_path(p.group, sample, a.draws + (p.row_number * 3 + i) * PATH_WIDTH, sum);
#pragma unroll
        for (int e = 0; e < COUNT; ++e) v[e] = T(sum[e]);
      } else {
        const uint32_t draw = uint32_t(a.draws[p.row_number * 3 + i]);
#pragma unroll
        for (int g = 0; g < EACH; ++g) {
          if constexpr (K::BY_RUN) {
            draw_from(at - p.b * a.n, sample, draw, TAG_STEP, v);
          } else {
            draw_four(p.group + 32 * g, sample, draw, TAG_STEP, v + 4 * g);
          }
        }
      }
      if constexpr (K::SUMMED) {
        if (i == 0) {
          // A warp's 128 elements are one chunk.
          const int64_t chunks = int64_t(uint64_t(groups + 31) / 32), chunk = int64_t(uint64_t(p.group) / 32);
          T *const to = static_cast<T *>(a.squares) + p.b * chunks + chunk;
#pragma unroll
          for (int g = 0; g < EACH; ++g) {
            T total = T(0);
#pragma unroll
            for (int e = 4 * g; e < 4 * g + 4; ++e)
              total = WIDE || e < p.count ? multiply_add(v[e], v[e], total) : total;
            total = warp_sum(p.lives[g] ? total : T(0));
            if (lane == 0 && p.lives[g]) to[g] = total;
          }
        }
      }
      if (i == 0 && learns) {
#pragma unroll
        for (int e = 0; e < COUNT; ++e) v[e] *= e_of[e];
      }
      if (a.u_mask >> (RZA + i) & 1u) add(__ldg(row + NEXT_U + RZA + i), v, u_next);
      if (!SINGLE && (a.x_mask >> (RZA + i) & 1u)) add(__ldg(row + NEXT_X + RZA + i), v, x_next);
    }
  }

  if (GENERAL && a.m_out) keep(a.m_out, hist, at, m);
  if (a.u_out) keep(a.u_out, own, at, u_next);
  if (!SINGLE && a.x_mask) keep(a.x_out, own, at, x_next);
  if (a.copies) {
#pragma unroll
    for (int e = 0; e < COUNT; ++e) v[e] = c[IN_SCALE] * u_next[e];
    keep(a.net_in, in, at, v);
    if (a.copies > 1) keep(a.net_in, in, a.batch * a.n + at, v);
  }
}

// Blocks that must fit on a multiprocessor: as many as let no kernel spill.
template <class K>
constexpr int resident() {
  constexpr bool small = sizeof(typename K::T) == 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  constexpr int all = 3;  // its code takes a few registers more
#else
  constexpr int all = 4;
#endif
  if (K::SHAPE >= ALL) return all - K::GENERAL - !small;
  return (K::SHAPE != ONE || K::ENTRIES + K::PAIRED + 2 * K::LEARNED > 2 ? 2 : 3);
}

template <class T, int NET, int HIST, int SHAPE, int ENTRIES, bool PAIRED, bool LEARNED, bool NOISE, bool PATH,
          bool WIDE>
__global__ void __launch_bounds__(threads_of(SHAPE),
                                  resident<Kind<T, NET, HIST, SHAPE, ENTRIES, PAIRED, LEARNED, NOISE, PATH, WIDE>>())
    stage_kernel(const StageArgs a, const int64_t groups) {
  using K = Kind<T, NET, HIST, SHAPE, ENTRIES, PAIRED, LEARNED, NOISE, PATH, WIDE>;
  constexpr int EACH = K::EACH;
  // A thread's groups are 32 apart: every access of a warp is to consecutive memory.
  const int lane = threadIdx.x % 32;
  Place<T, EACH> p;
  p.group = (int64_t(blockIdx.x) * blockDim.x + (threadIdx.x - lane)) * EACH + lane;
  // All lanes of a warp take part in a sum.
  if (p.group - (K::SUMMED ? lane : 0) >= groups) return;
  const int64_t first = 4 * p.group, length = K::BY_RUN ? a.inner : a.n, samples = K::BY_RUN ? runs(a) : a.batch;
  p.count = WIDE ? 4 : int(length - first < 4 ? length - first : 4);
  // Of the warp's groups, those from the lane's on that are inside.
  const int left = int(groups - p.group < 32 * EACH ? groups - p.group : 32 * EACH);

  for (int64_t s = blockIdx.y; s < samples; s += gridDim.y) {
    p.b = K::BY_RUN ? s / (a.n / a.inner) : s;
    p.at = s * length + first;
    // Groups of two frames are taken one after another.
#pragma unroll 1
    for (int part = 0, taken = EACH; part < EACH; part += taken) {
      if (part && 32 * part >= left) break;
      p.row_number = a.k;
      int end = EACH;
      if constexpr (K::FRAMED) {
        uint64_t run = uint64_t(s);
        if constexpr (WIDE) {
          const uint64_t from = uint64_t(first + 128 * part);
          run = from / uint64_t(a.inner);
          if (int64_t(from - run * uint64_t(a.inner)) + 128 * (EACH - 1 - part) >= a.inner) end = part + 1;
          taken = end - part;
        }
        p.row_number = a.rows[p.b * a.frames + int64_t(run % uint32_t(a.frames))];
      } else if (a.rows) {
        p.row_number = a.rows[p.b];
      }
#pragma unroll
      for (int g = 0; g < EACH; ++g) {
        const bool inside = SHAPE < ALL ? g == 0 || p.group + 32 * g < groups : 32 * g < left;
        p.lives[g] = ((g == 0 && !K::SUMMED) || inside) && g >= part && g < end;
      }
      p.row = static_cast<const T *>(a.table) + p.row_number * WIDTH;
      run_groups<K>(a, groups, lane, p);
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

// Of the shape, what ONE does but for its history; no learned variance.
template <class T, int NET, int SHAPE>
Kernel single(bool noise) {
  const Kernel noisy = stage_kernel<T, NET, ANY, SHAPE, 6, true, false, true, false, true>;
  if constexpr (SHAPE == SUMS) return noisy;
  const Kernel quiet = stage_kernel<T, NET, ANY, SHAPE, 6, true, false, SHAPE == SUMS, false, true>;
  return noise ? noisy : quiet;
}

// The kernels for any stage.
template <class T, int SHAPE>
Kernel general(const Variant &v) {
  const Kernel wide = stage_kernel<T, ANY, ANY, SHAPE, 6, true, true, true, false, true>;
  const Kernel narrow = stage_kernel<T, ANY, ANY, SHAPE, 6, true, true, true, false, false>;
  if constexpr (SHAPE == ALL) {
    if (v.path)
      return chosen(v.wide, [](auto flag) -> Kernel {
        return stage_kernel<T, ANY, ANY, ALL, 6, true, true, true, true, decltype(flag)::value>;
      });
    if (!v.noise) return stage_kernel<T, ANY, ANY, ALL, 6, true, true, false, false, true>;
  }
  return v.wide ? wide : narrow;
}

template <class T>
Kernel any(const Variant &v) {
  return v.shape == FRAMES ? general<T, FRAMES>(v) : v.shape == SUMS ? general<T, SUMS>(v) : general<T, ALL>(v);
}

// The kernels for a float32 state and a network of that dtype.
template <int NET>
Kernel exact(const Variant &v) {
  if (v.shape == ALL) return stage_kernel<float, NET, ANY, ALL, 6, true, true, true, false, true>;
  if (v.shape == FRAMES) return single<float, NET, FRAMES>(v.noise);
  if (v.shape == SUMS) return single<float, NET, SUMS>(true);
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
