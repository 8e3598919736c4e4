// The CUDA back end as its callers see it. Launches are asynchronous on `stream`, allocate nothing and synchronise
// nothing, so they may be captured into a graph. The error of every launch is returned.
#pragma once

#include <cuda_runtime_api.h>

#include "../stage.h"

namespace fastdiff {

cudaError_t launch_stage(const StageArgs &args, cudaStream_t stream);
cudaError_t launch_normal(const NormalArgs &args, cudaStream_t stream);

// As a template argument of a kernel: the dtype that the arguments say.
constexpr int ANY = 4;

// What a kernel can do.
//   ONE: x and u are one buffer, or only one is read; there is no x'; the noise is za alone, drawn in the kernel.
//   TWO: x and u may be two buffers, u' and x' two combinations; the noise is drawn.
// Both read so many of the newest history entries, and `second` or not, as their template says.
//   ALL: any stage.
//   FRAMES: the same with a row for each frame.
//   SUMS: as ALL, and the squares of za are summed.
// These three ask the arguments which entries there are. Compiled for one dtype of the network, they take what ONE does
// but for its history, which may be any; for ANY, every stage.
enum Shape { ONE, TWO, ALL, FRAMES, SUMS };

// Groups of 4 elements that a thread handles.
constexpr int each_of(int state, int shape, bool wide) { return shape >= ALL && (state == F64 || !wide) ? 1 : 2; }

// Threads of a block, where there are many. Small blocks keep apart the times at which their warps load.
constexpr int threads_of(int shape) { return shape >= ALL ? 128 : 256; }

// What the kernel of a stage is specialised on, beside the state's dtype: the template arguments of stage_kernel.
struct Variant {
  int net, hist, shape, entries;
  bool paired, learned, noise, path, wide;
};

// A group of 4 elements shares a block of the noise. Samples lie along y, strided by its size.
struct Geometry {
  int64_t groups;  // in each sample
  uint32_t grid_x, grid_y, threads;
};

// Smaller blocks where most of a sample's last one would be idle, or multiprocessors would be left without any.
inline Geometry geometry(int64_t batch, int64_t n, int each = 1, int64_t threads = 256) {
  const int64_t groups = (n + 3) / 4, samples = batch < 65535 ? batch : 65535;
  const auto blocks = [&] { return (groups + threads * each - 1) / (threads * each); };
  while (threads > 64 && (blocks() * samples < 128 || blocks() * threads * each > groups + groups / 8)) threads /= 2;
  while (threads > 32 && threads / 2 * each >= groups) threads /= 2;
  return {groups, uint32_t(blocks()), uint32_t(samples), uint32_t(threads)};
}

// Whether groups may be moved by one access of 4 elements: true where each sample, and each run of a frame, starts at a
// multiple of 4 elements and every buffer is aligned to 4 of its elements (8 bytes for 16-bit types, else 16), the
// table's rows to 16 bytes.
inline bool vectorizable(const StageArgs &a) {
  if (a.n % 4 != 0 || a.inner % 4 != 0) return false;
  const auto aligned = [](const void *p, int dtype) {
    const uintptr_t mask = dtype == F16 || dtype == BF16 ? 7 : 15;
    return (reinterpret_cast<uintptr_t>(p) & mask) == 0;
  };
  bool all = aligned(a.table, a.state) && aligned(a.x, a.state) && aligned(a.u, a.state) && aligned(a.first, a.net) &&
             aligned(a.second, a.net);
  for (const void *h : a.h) all = all && aligned(h, a.hist);
  for (const void *z : a.z) all = all && aligned(z, a.state);
  return all && aligned(a.u_out, a.state) && aligned(a.x_out, a.state) && aligned(a.m_out, a.hist) &&
         aligned(a.net_in, a.in);
}

// The same stage as one long sample, where nothing in it depends on the sample: an odd n then still moves 4 elements at
// a time.
inline StageArgs flattened(StageArgs a) {
  const bool drawn = ((a.u_mask | a.x_mask) >> RZA) != 0;
  if (!a.rows && !drawn && !a.learned && a.convert < CONVERT_CLIP) {
    a.n *= a.batch;
    a.batch = 1;
  }
  return a;
}

inline Variant variant(const StageArgs &a) {
  const uint32_t mask = a.u_mask | a.x_mask, history = mask >> RH1 & 63u, draws = mask >> RZA;
  const bool paired = a.guided || (mask >> RSECOND & 1u), noise = draws != 0, wide = vectorizable(a);
  int entries = 0;
  while (history >> entries) ++entries;
  // A stage without a stream in a dtype leaves it open.
  const int net = a.convert != CONVERT_NONE || paired ? a.net : a.copies ? a.in : a.state;
  const int hist = history || a.m_out ? a.hist : F32;
  const bool reads_u = a.m_reads_u || (mask >> RU & 1u), given = a.z[0] || a.z[1] || a.z[2];
  const bool two = a.x_mask || ((mask >> RX & 1u) && reads_u && a.x != a.u) || draws > 1;
  bool exact = wide && a.state == F32 && net != F64 && !given && (!a.copies || a.in == net);
  exact = exact && !a.inner && !a.squares && !(a.path && noise) && entries <= 3 && history == (1u << entries) - 1 &&
          !(a.learned && (entries || two));
  // A history in a 16-bit dtype is one of the network's own outputs: there is no guidance and no v.
  exact = exact && (hist == F32 || (hist == net && entries && !paired));
  if (exact) return {net, hist, two ? TWO : ONE, entries, paired, a.learned != 0, noise, false, true};
  const int shape = a.inner ? FRAMES : a.squares ? SUMS : ALL;
  // A path's many normals take longer than any stream: one kernel for all such stages.
  if (shape == ALL && a.path && noise) return {ANY, ANY, ALL, 6, true, true, true, true, wide};
  const bool mixed = a.state == F32 && (net == F64 || hist == F64);
  if (wide && !mixed && !two && !given && (!a.copies || a.in == net)) {
    if (a.state == F32 && shape == ALL) return {net, ANY, ALL, 6, true, true, true, false, true};
    if (a.state == F32 && !a.learned) return {net, ANY, shape, 6, true, false, noise || shape == SUMS, false, true};
    if (a.state == F64 && !a.learned && (net == F64 || (net == F32 && shape == ALL)))
      return {net, ANY, shape, 6, true, false, noise || shape == SUMS, false, true};
  }
  return {ANY, ANY, shape, 6, true, true, noise || !wide || shape != ALL, false, wide};
}

// Of the launch. Where 4 elements may be of two frames, the runs of elements that share a row stand for samples.
inline Geometry geometry(const StageArgs &a, const Variant &v) {
  const int each = each_of(a.state, v.shape, v.wide), threads = threads_of(v.shape);
  const bool by_run = a.inner && !v.wide;
  return by_run ? geometry(runs(a), a.inner, each, threads) : geometry(a.batch, a.n, each, threads);
}

// The kernel of a variant; those of a float32 state by the network's dtype, of which that for float32 knows ANY too.
const void *stage_kernel_f16(const Variant &v);
const void *stage_kernel_bf16(const Variant &v);
const void *stage_kernel_f32(const Variant &v);
const void *stage_kernel_f64(const Variant &v);

}  // namespace fastdiff
