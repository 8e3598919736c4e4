// The stage on the GPU. Specialised on the state's dtype, on the most history entries, on noise, and on wide accesses;
// everything else is a branch that all threads take alike. No pointer is __restrict__: an output may be an input's
// buffer.
#pragma once

#include "memory.cuh"

namespace fastdiff {

template <class T>
__device__ __forceinline__ void accumulate(bool used, T factor, const T (&v)[4], T (&total)[4]) {
  if (used) {
#pragma unroll
    for (int e = 0; e < 4; ++e) total[e] += factor * v[e];
  }
}

// Blocks of 256 threads that must fit on a multiprocessor: as many as let no kernel spill. Without the bound, the
// compiler spilled in order to reach 64 registers.
template <class T, int HISTORY, bool NOISE>
constexpr int resident() {
  return (HISTORY > 3 || NOISE ? 2 : 4) * 4 / int(sizeof(T));
}

template <class T, int HISTORY, bool NOISE, bool VEC>
__global__ void __launch_bounds__(256, resident<T, HISTORY, NOISE>())
    stage_kernel(const StageArgs a, const int64_t groups) {
  constexpr int own = sizeof(T) == 4 ? F32 : F64;
  const int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (group >= groups) return;
  const uint32_t mask = a.u_mask | a.x_mask;
  const bool reads_u = a.m_reads_u || (mask >> RU & 1u), reads_aux = a.guided || (mask >> RAUX & 1u);
  const bool spreads = a.spread && (mask >> RAUX & 3u);
  const int64_t first = 4 * group;
  const int count = VEC ? 4 : int(a.n - first < 4 ? a.n - first : 4);

  for (int64_t b = blockIdx.y; b < a.batch; b += gridDim.y) {
    const int64_t at = b * a.n + first;
    const int64_t at_out = a.spread ? at + b * a.n : at;
    Raw<T> x{}, u{}, out{}, aux{}, log_e{}, h[HISTORY], z[NOISE ? 3 : 1];
    if (mask >> RX & 1u) x = fetch<T, VEC>(a.x, own, at, count);
    if (reads_u) u = fetch<T, VEC>(a.u, own, at, count);
    if (a.convert != CONVERT_NONE) out = fetch<T, VEC>(a.out, a.net, at_out, count);
    if (reads_aux) aux = fetch<T, VEC>(a.aux, a.net, a.spread == 2 ? at_out : at, count);
    if (spreads) log_e = fetch<T, VEC>(a.out, a.net, at_out + a.n, count);
#pragma unroll
    for (int i = 0; i < HISTORY; ++i) {
      h[i] = Raw<T>{};
      if (mask >> (RH1 + i) & 1u) h[i] = fetch<T, VEC>(a.h[i], a.hist, at, count);
    }
    if (NOISE) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        z[i] = Raw<T>{};
        if ((mask >> (RZA + i) & 1u) && a.z[i]) z[i] = fetch<T, VEC>(a.z[i], own, at, count);
      }
    }
    const int64_t row_number = a.rows ? a.rows[b] : a.k;
    const T *row = static_cast<const T *>(a.table) + row_number * WIDTH;
    const T *next_u = row + NEXT_U, *next_x = row + NEXT_X;

    T u_next[4] = {}, x_next[4] = {}, m[4] = {}, v[4];
    const auto use = [&](int j, const T(&value)[4]) {
      accumulate(a.u_mask >> j & 1u, next_u[j], value, u_next);
      accumulate(a.x_mask >> j & 1u, next_x[j], value, x_next);
    };
    widen(x, own, v);
    use(RX, v);
    T at_u[4], at_aux[4];
    widen(u, own, at_u);
    use(RU, at_u);
    widen(aux, a.net, at_aux);
    if (a.convert != CONVERT_NONE) {
      T g[4];
      widen(out, a.net, g);
      if (a.guided) {
        const T w1 = row[W1], w2 = row[W2];
#pragma unroll
        for (int e = 0; e < 4; ++e) g[e] = guide(w1, g[e], w2, at_aux[e]);
      }
      if (a.convert == CONVERT_LINEAR) {
        const T cu = a.m_reads_u ? row[CU] : T(0), cg = row[CG];
#pragma unroll
        for (int e = 0; e < 4; ++e) m[e] = a.m_reads_u ? linear(cu, at_u[e], cg, g[e]) : cg * g[e];
      } else if (a.convert >= CONVERT_CLIP) {
        const T lo = static_cast<const T *>(a.lo)[b], hi = static_cast<const T *>(a.hi)[b];
        const T scale = static_cast<const T *>(a.scale)[b];
#pragma unroll
        for (int e = 0; e < 4; ++e) m[e] = clipped(row, a.m_reads_u ? at_u[e] : T(0), g[e], lo, hi, scale);
        if (a.convert == CONVERT_BLEND) {
          const T qg = row[QG];
#pragma unroll
          for (int e = 0; e < 4; ++e) m[e] = multiply_add(qg, g[e], m[e]);
        }
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) m[e] = g[e];
      }
      use(RM, m);
    }
#pragma unroll
    for (int i = 0; i < HISTORY; ++i) {
      widen(h[i], a.hist, v);
      use(RH1 + i, v);
    }
    T e_of[4];
    if (spreads) {
      const T c0 = row[S0], c1 = row[S1];
      widen(log_e, a.net, e_of);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        e_of[e] = exponential(c0 + c1 * e_of[e]);
        at_aux[e] *= e_of[e] * e_of[e];
      }
    }
    use(RAUX, at_aux);
    if (NOISE) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (!(mask >> (RZA + i) & 1u)) continue;
        if (a.z[i]) {
          widen(z[i], own, v);
        } else {
          draw_four(group, a.index[b], uint32_t(a.draws[row_number * 3 + i]), 0, a.seeds[b], v);
        }
        if (i == 0 && spreads) {
#pragma unroll
          for (int e = 0; e < 4; ++e) v[e] *= e_of[e];
        }
        use(RZA + i, v);
      }
    }

    if (a.m_out) put<T, VEC>(a.m_out, a.hist, at, count, m);
    if (a.u_out) put<T, VEC>(a.u_out, own, at, count, u_next);
    if (a.x_mask) put<T, VEC>(a.x_out, own, at, count, x_next);
    if (a.copies) {
      const T in_scale = row[IN_SCALE];
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = in_scale * u_next[e];
      for (int c = 0; c < a.copies; ++c) put<T, VEC>(a.net_in, a.in, c * a.batch * a.n + at, count, v);
    }
  }
}

template <class T>
cudaError_t launch_stage(const StageArgs &given, cudaStream_t stream) {
  const StageArgs a = flattened(given);
  if (a.batch == 0 || a.n == 0) return cudaSuccess;
  const Geometry g = geometry(a.batch, a.n);
  const uint32_t mask = a.u_mask | a.x_mask;
  const bool noise = (mask >> RZA) != 0, deep = (mask >> (RH1 + 3) & 7u) != 0, wide = vectorizable(a);
  const auto launch = [&](auto kernel) {
    kernel<<<dim3(g.grid_x, g.grid_y), g.threads, 0, stream>>>(a, g.groups);
    return cudaGetLastError();
  };
  if (!wide) return launch(stage_kernel<T, 6, true, false>);
  if (noise) return deep ? launch(stage_kernel<T, 6, true, true>) : launch(stage_kernel<T, 3, true, true>);
  return deep ? launch(stage_kernel<T, 6, false, true>) : launch(stage_kernel<T, 3, false, true>);
}

}  // namespace fastdiff
