// The stage and the normals on the CPU. Compiled once for each instruction set (FD_LEVEL names it); tiles of the
// streams stay in the first-level cache, so that each pass over a tile is free beside the traffic to memory.
#include "kernel.h"

#include <memory>

#include "convert.h"
#include "words.h"

#define FD_JOIN2(a, b) a##b
#define FD_JOIN(a, b) FD_JOIN2(a, b)
#define FD_STRING2(a) #a
#define FD_STRING(a) FD_STRING2(a)

namespace fastdiff {
namespace {

// Elements in a tile: a multiple of what one pass of the noise makes.
constexpr int64_t TILE = 1024;
// Below this many elements a second thread costs more than it saves.
constexpr int64_t PARALLEL = 1 << 15;
// Outputs of more bytes than this in all are written past the caches.
constexpr int64_t PAST_CACHE = 8 << 20;

Stream stream_of(int64_t seed, int32_t index, uint32_t draw, uint32_t tag) {
  return {uint32_t(index), draw, tag, uint32_t(uint64_t(seed)), uint32_t(uint64_t(seed) >> 32)};
}

// Normals 4*block .. 4*block + len, rounded up to a multiple of STEP: `out` must have room.
constexpr int STEP = 4 * LANES * CHAINS;

// Streams that are read after the noise: asked for while it is made, so that memory works meanwhile.
struct Ahead {
  int count = 0;
  const char *from[NREG];
  int width[NREG];

  void add(const void *base, int dtype, int64_t at) {
    width[count] = dtype <= BF16 ? 2 : (dtype == F32 ? 4 : 8);
    from[count] = static_cast<const char *>(base) + at * width[count];
    ++count;
  }

  // The lines of elements first .. first + STEP of each stream.
  void ask(int64_t first) const {
    for (int i = 0; i < count; ++i)
      for (int64_t byte = first * width[i]; byte < (first + STEP) * width[i]; byte += 64) FD_PREFETCH(from[i] + byte);
  }
};

void fill_normals(float *out, int64_t block, int64_t len, Stream s, const Ahead &ahead = {}) {
  for (int64_t i = 0; i < len; i += STEP, block += STEP / 4) {
    ahead.ask(i);
    alignas(64) uint32_t a[STEP / 2], b[STEP / 2];
    philox_words(a, b, uint32_t(block), s);
    float *o = out + i;
    FD_LOOP
    for (int j = 0; j < STEP / 2; ++j) {
      const Pair pair = box_muller(a[j], b[j]);
      o[2 * j] = pair.first;
      o[2 * j + 1] = pair.second;
    }
  }
}

template <class T>
struct Terms {
  int count = 0;
  const T *from[NREG];
  T factor[NREG];
};

template <class T, int N>
void combine_n(T *out, const Terms<T> &terms, int64_t len) {
  const T *r[N];
  T c[N];
  for (int j = 0; j < N; ++j) r[j] = terms.from[j], c[j] = terms.factor[j];
  FD_LOOP
  for (int64_t i = 0; i < len; ++i) {
    T total = c[0] * r[0][i];
    for (int j = 1; j < N; ++j) total = multiply_add(c[j], r[j][i], total);
    out[i] = total;
  }
}

template <class T>
void combine(T *out, const Terms<T> &terms, int64_t len) {
  using Function = void (*)(T *, const Terms<T> &, int64_t);
  static constexpr Function functions[NREG] = {combine_n<T, 1>, combine_n<T, 2>,  combine_n<T, 3>,  combine_n<T, 4>,
                                               combine_n<T, 5>, combine_n<T, 6>,  combine_n<T, 7>,  combine_n<T, 8>,
                                               combine_n<T, 9>, combine_n<T, 10>, combine_n<T, 11>, combine_n<T, 12>,
                                               combine_n<T, 13>};
  if (terms.count == 0) {
    for (int64_t i = 0; i < len; ++i) out[i] = T(0);
  } else {
    functions[terms.count - 1](out, terms, len);
  }
}

template <class T>
Terms<T> terms_of(const T *row, uint32_t mask, const T *const *registers) {
  Terms<T> terms;
  for (int j = 0; j < NREG; ++j)
    if (mask >> j & 1u) {
      terms.from[terms.count] = registers[j];
      terms.factor[terms.count++] = row[j];
    }
  return terms;
}

template <class T>
struct Scratch {
  alignas(64) T registers[NREG][TILE];
  alignas(64) T first[TILE], g[TILE], u[TILE], x[TILE], scaled[TILE], learned[TILE];
  alignas(64) float normals[TILE], term[TILE];
};

// This thread's own, of 80 kB for float and 160 kB for double: on the heap, since threads of some programs have stacks
// smaller than that.
template <class T>
Scratch<T> &scratch_of_thread() {
  static thread_local std::unique_ptr<Scratch<T>> own;
  if (!own) own.reset(new Scratch<T>);
  return *own;
}

// One draw: a normal of its own, or where `path` is not null, the sum that it says.
void fill_draw(float *out, float *term, int64_t block, int64_t len, Stream s, const int32_t *path, const Ahead &ahead) {
  if (!path) {
    fill_normals(out, block, len, s, ahead);
    return;
  }
  for (int64_t i = 0; i < len; ++i) out[i] = 0.0f;
  const int32_t *pair = path + 1;
  for (int32_t j = 0; j < path[0]; ++j, pair += 2) {
    s.draw = uint32_t(pair[0]);
    const float weight = as_float(uint32_t(pair[1]));
    fill_normals(term, block, len, s, j ? Ahead{} : ahead);
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) out[i] = multiply_add(weight, term[i], out[i]);
  }
}

// Normals of elements first .. first + len of a sample, from `out` + first % 4 on: a block's normals begin at a
// multiple of 4.
template <class T>
const T *drawn(T *out, Scratch<T> &scratch, int64_t first, int64_t len, Stream s, const int32_t *path,
               const Ahead &ahead) {
  const int64_t skipped = first % 4;
  len += skipped;
  if constexpr (sizeof(T) == sizeof(float)) {
    fill_draw(out, scratch.term, first / 4, len, s, path, ahead);
  } else {
    float *normals = scratch.normals;
    fill_draw(normals, scratch.term, first / 4, len, s, path, ahead);
    for (int64_t i = 0; i < len; ++i) out[i] = T(normals[i]);
  }
  return out + skipped;
}

// Of a chunk's elements, or of as many as there are.
template <class T>
T sum_of_squares(const T *z, int64_t len) {
  constexpr int WAYS = 16;
  T part[WAYS] = {}, total = T(0);
  if (len >= CHUNK) {
    for (int64_t i = 0; i < CHUNK; i += WAYS)
      for (int j = 0; j < WAYS; ++j) part[j] += z[i + j] * z[i + j];
  } else {
    for (int64_t i = 0; i < len; ++i) part[i % WAYS] += z[i] * z[i];
  }
  for (int j = 0; j < WAYS; ++j) total += part[j];
  return total;
}

// The registers of `mask` whose coefficient is not zero.
template <class T>
uint32_t used(const T *coefficients, uint32_t mask) {
  for (int j = 0; j < NREG; ++j)
    if (coefficients[j] == T(0)) mask &= ~(1u << j);
  return mask;
}

// Which outputs may be written past the caches: those that no input shares.
struct PastCache {
  bool u, x, m, in;
};

PastCache past_cache(const StageArgs &a, int64_t bytes) {
  const auto alone = [&](const void *p) {
    bool shared = p == a.x || p == a.u || p == a.first || p == a.second;
    for (const void *h : a.h) shared = shared || p == h;
    for (const void *z : a.z) shared = shared || p == z;
    return bytes > PAST_CACHE && !shared;
  };
  return {alone(a.u_out), alone(a.x_out), alone(a.m_out), alone(a.net_in)};
}

// za times e and `second` times e², e = exp(c0 + c1·v) of each element: noise whose variance the network gives.
template <class T>
void learned_tile(const StageArgs &a, const T *row, int64_t at, int64_t len, Scratch<T> &s, const T **r) {
  const T c0 = row[S0], c1 = row[S1], *v = load(a.first, a.net, at, len, s.learned);
  T *e = s.learned;
  FD_LOOP
  for (int64_t i = 0; i < len; ++i) e[i] = exponential(multiply_add(c1, v[i], c0));
  if (const T *z = r[RZA]) {
    // Drawn normals lie in the registers, possibly not from their beginning, and are multiplied where they are.
    T *to = s.registers[RZA] + (a.z[0] ? 0 : z - s.registers[RZA]);
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) to[i] = e[i] * z[i];
    r[RZA] = to;
  }
  if (const T *second = r[RSECOND]) {
    T *to = s.registers[RSECOND];
    FD_LOOP
    for (int64_t i = 0; i < len; ++i) to[i] = e[i] * e[i] * second[i];
    r[RSECOND] = to;
  }
}

// Elements first..first+len of sample b. Everything is read before anything is written, since buffers may be shared.
template <class T>
void run_tile(const StageArgs &a, PastCache past, int64_t b, int64_t row_number, int64_t first, int64_t len,
              Scratch<T> &s) {
  const int64_t at = b * a.n + first;
  const int64_t at_first = a.learned ? at + b * a.n : at, at_second = a.learned == 2 ? at + b * a.n : at;
  const T *row = static_cast<const T *>(a.table) + row_number * WIDTH;
  // Where each sample or frame has a row of its own, the structure is that of all rows together: what this one does not
  // use is neither drawn nor read, and an x' that is x itself, in its own place, is there already.
  const uint32_t u_mask = a.rows ? used(row + NEXT_U, a.u_mask) : a.u_mask;
  const uint32_t x_read = a.rows ? used(row + NEXT_X, a.x_mask) : a.x_mask;
  const bool stays = a.rows && a.x_out == a.x && x_read == 1u << RX && row[NEXT_X + RX] == T(1);
  const uint32_t x_mask = stays ? 0 : x_read;
  const bool guided = a.guided && !(a.rows && row[W1] == T(1) && row[W2] == T(0));
  // The sums of squares are of za, whatever a row makes of it.
  const uint32_t mask = u_mask | x_mask | (a.squares ? 1u << RZA : 0u);
  // A row may say how its history lies: its own last `depth` values take turns in the first places, m takes that of the
  // oldest, which is read here, and h_j is j places before.
  const void *h[6];
  for (int i = 0; i < 6; ++i) h[i] = a.h[i];
  void *m_out = a.m_out;
  if (const int depth = a.rows ? int(row[DEPTH]) : 0) {
    const int place = int(row[KEEP]);
    m_out = depth > 0 && m_out ? const_cast<void *>(a.h[place]) : nullptr;
    for (int i = 0; i < depth; ++i) h[i] = a.h[(place + 2 * depth - 1 - i) % depth];
  }
  const T *r[NREG] = {};
  const bool reads_u = a.m_reads_u || (mask >> RU & 1u), reads_second = guided || (mask >> RSECOND & 1u);
  const int own = sizeof(T) == 4 ? F32 : F64;
  Ahead ahead;
  if (mask >> RZA) {
    if (mask >> RX & 1u) ahead.add(a.x, own, at);
    if (reads_u) ahead.add(a.u, own, at);
    if (a.convert != CONVERT_NONE) ahead.add(a.first, a.net, at_first);
    if (reads_second) ahead.add(a.second, a.net, at_second);
    for (int i = 0; i < 6; ++i)
      if (mask >> (RH1 + i) & 1u) ahead.add(h[i], a.hist, at);
  }
  for (int i = 0; i < 3; ++i) {
    if (!(mask >> (RZA + i) & 1u)) continue;
    if (a.z[i]) {
      r[RZA + i] = static_cast<const T *>(a.z[i]) + at;
    } else {
      const int32_t *draw = a.draws + (row_number * 3 + i) * (a.path ? PATH_WIDTH : 1);
      const Stream stream = stream_of(a.seeds[b], a.index[b], uint32_t(*draw), a.path ? TAG_PATH : TAG_STEP);
      r[RZA + i] = drawn(s.registers[RZA + i], s, first, len, stream, a.path ? draw : nullptr, ahead);
      ahead.count = 0;
    }
  }
  if (a.squares) {
    T *const sums = static_cast<T *>(a.squares) + b * ((a.n + CHUNK - 1) / CHUNK) + first / CHUNK;
    for (int64_t i = 0; i < len; i += CHUNK) sums[i / CHUNK] = sum_of_squares(r[RZA] + i, len - i);
  }
  if (mask >> RX & 1u) r[RX] = static_cast<const T *>(a.x) + at;
  if (reads_u) r[RU] = static_cast<const T *>(a.u) + at;
  for (int i = 0; i < 6; ++i)
    if (mask >> (RH1 + i) & 1u) r[RH1 + i] = load(h[i], a.hist, at, len, s.registers[RH1 + i]);
  if (reads_second) r[RSECOND] = load(a.second, a.net, at_second, len, s.registers[RSECOND]);
  if (a.convert != CONVERT_NONE) {
    const T *g = load(a.first, a.net, at_first, len, s.first);
    if (guided) {
      const T w1 = row[W1], w2 = row[W2], *second = r[RSECOND];
      FD_LOOP
      for (int64_t i = 0; i < len; ++i) s.g[i] = guide(w1, g[i], w2, second[i]);
      g = s.g;
    }
    T *m = s.registers[RM];
    const T *u = r[RU];
    const bool raw = a.rows && a.convert == CONVERT_LINEAR && row[CU] == T(0) && row[CG] == T(1);
    if (a.convert == CONVERT_RAW || raw) {
      r[RM] = g;
    } else if (a.convert == CONVERT_LINEAR) {
      const T cu = row[CU], cg = row[CG];
      if (a.m_reads_u) {
        FD_LOOP
        for (int64_t i = 0; i < len; ++i) m[i] = linear(cu, u[i], cg, g[i]);
      } else {
        FD_LOOP
        for (int64_t i = 0; i < len; ++i) m[i] = cg * g[i];
      }
      r[RM] = m;
    } else {
      const T lo = static_cast<const T *>(a.lo)[b], hi = static_cast<const T *>(a.hi)[b];
      const T scale = static_cast<const T *>(a.scale)[b];
      const T c[8] = {0, 0, 0, 0, row[PU], row[PG], row[QU], row[QX]};
      if (a.m_reads_u) {
        FD_LOOP
        for (int64_t i = 0; i < len; ++i) m[i] = clipped(c, u[i], g[i], lo, hi, scale);
      } else {
        FD_LOOP
        for (int64_t i = 0; i < len; ++i) m[i] = clipped(c, T(0), g[i], lo, hi, scale);
      }
      if (a.convert == CONVERT_BLEND) {
        const T qg = row[QG];
        FD_LOOP
        for (int64_t i = 0; i < len; ++i) m[i] = multiply_add(qg, g[i], m[i]);
      }
      r[RM] = m;
    }
  }
  if (a.learned && (mask >> RSECOND & 3u)) learned_tile(a, row, at_first + a.n, len, s, r);
  const Terms<T> next_u = terms_of(row + NEXT_U, u_mask, r);
  const bool sole = a.u_out && !a.x_mask && !a.m_out && !a.copies;
  if (sole && !past.u) {
    combine(static_cast<T *>(a.u_out) + at, next_u, len);
    return;
  }
  combine(s.u, next_u, len);
  const bool writes_x = a.x_mask && !stays;
  if (writes_x) combine(s.x, terms_of(row + NEXT_X, x_mask, r), len);
  if (m_out) store(m_out, a.hist, at, len, r[RM], past.m);
  if (a.u_out) store(a.u_out, own, at, len, s.u, past.u);
  if (writes_x) store(a.x_out, own, at, len, s.x, past.x);
  if (a.copies) {
    const T *scaled = s.u;
    if (const T in_scale = row[IN_SCALE]; in_scale != T(1)) {
      FD_LOOP
      for (int64_t i = 0; i < len; ++i) s.scaled[i] = in_scale * s.u[i];
      scaled = s.scaled;
    }
    for (int c = 0; c < a.copies; ++c) store(a.net_in, a.in, c * a.batch * a.n + at, len, scaled, past.in);
  }
}

template <class T>
void run_stage(const StageArgs &a, int threads) {
  // A tile's elements have one row: they are of one sample, or of one run of a frame's elements. Such a run may begin
  // inside a block of the noise, of which up to 3 normals more are then made.
  const bool framed = a.inner != 0;
  const int64_t length = framed ? a.inner : a.n, most = framed ? TILE - 4 : TILE, elements = a.batch * a.n;
  const int64_t tiles = (length + most - 1) / most, each = framed ? a.n / a.inner : 1, all = a.batch * each * tiles;
  const PastCache past = past_cache(a, elements * int64_t(sizeof(T)));
  (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1 && elements >= PARALLEL)
  {
    Scratch<T> &scratch = scratch_of_thread<T>();
#pragma omp for schedule(static)
    for (int64_t t = 0; t < all; ++t) {
      const int64_t run = t / tiles, skipped = (t - run * tiles) * most, b = run / each;
      const int64_t row = framed ? a.rows[b * a.frames + run % a.frames] : (a.rows ? a.rows[b] : a.k);
      const int64_t first = (run - b * each) * length + skipped;
      run_tile(a, past, b, row, first, length - skipped < most ? length - skipped : most, scratch);
    }
    fence();
  }
}

void stage(const StageArgs &a, int threads) {
  if (a.state == F32) {
    run_stage<float>(a, threads);
  } else {
    run_stage<double>(a, threads);
  }
}

void normal(const NormalArgs &a, int threads) {
  const int64_t tiles = (a.n + TILE - 1) / TILE, all = a.batch * tiles, elements = a.batch * a.n;
  const bool past = elements * 4 > PAST_CACHE;
  (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1 && elements >= PARALLEL)
  {
    alignas(64) float normals[TILE];
#pragma omp for schedule(static)
    for (int64_t t = 0; t < all; ++t) {
      const int64_t b = t / tiles, first = (t - b * tiles) * TILE, len = a.n - first < TILE ? a.n - first : TILE;
      fill_normals(normals, first / 4, len, stream_of(a.seeds[b], a.index[b], a.draw, a.stream));
      store(a.out, a.dtype, b * a.n + first, len, normals, past);
    }
    fence();
  }
}

}  // namespace

extern const Kernels FD_JOIN(kernels_, FD_LEVEL) = {FD_STRING(FD_LEVEL), stage, normal};

}  // namespace fastdiff
