// Exact selection in two passes: a histogram of the leading bits says which bin holds the order statistic, the elements
// of that bin are gathered, and the statistic is selected among them. A sample may be shared by several threads, each
// with a part of its elements; the result does not depend on the parts.
#include "quantile.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace fastdiff {
namespace {

// Below this many elements a histogram costs more than it saves.
constexpr int64_t SMALL = 2048;
// A part shorter than this is not worth a thread.
constexpr int64_t PART = 1 << 15;

// What a sample's selection, or one part of it, has found.
template <class Key>
struct Found {
  int64_t count = 0;  // gathered elements
  Key above = ~Key(0);  // the least key above those gathered
  Key top = 0;  // the largest key of all
};

// The first bin at which the running sum of `counts` exceeds `rank`; `rank` becomes the rank inside that bin.
template <class C>
int locate(const C *counts, int64_t *rank) {
  int bin = 0;
  while (*rank >= int64_t(counts[bin])) *rank -= int64_t(counts[bin++]);
  return bin;
}

// The order statistic `rank` of the gathered keys, and the next: `above` where there is none.
template <class T, class Key>
T select(Key *keys, int64_t count, int64_t rank, Key above, Key top, double weight) {
  std::nth_element(keys, keys + rank, keys + count);
  const Key low = keys[rank];
  Key high = low;
  if (weight != 0.0) high = rank + 1 < count ? *std::min_element(keys + rank + 1, keys + count) : above;
  return quantile_of<T>(low, high, top, weight);
}

template <class T, class Key>
T small(const T *x, int64_t n, int64_t low, double weight, Key *keys) {
  Key top = 0;
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = key_of(x[i]);
    top = keys[i] > top ? keys[i] : top;
  }
  return select<T>(keys, n, low, ~Key(0), top, weight);
}

// Adds the leading digits of x[0..n) to `counts`, which has two rows: neighbours are often equal, and two additions in
// a row to one address wait for each other.
template <class T, class Key>
Key count(const T *x, int64_t n, uint32_t *counts) {
  constexpr int shift = Keys<T>::BITS - Keys<T>::FIRST, bins = 1 << Keys<T>::FIRST;
  Key top = 0;
  int64_t i = 0;
  for (; i + 1 < n; i += 2) {
    const Key k0 = key_of(x[i]), k1 = key_of(x[i + 1]), larger = k0 > k1 ? k0 : k1;
    top = larger > top ? larger : top;
    ++counts[k0 >> shift];
    ++counts[bins + (k1 >> shift)];
  }
  if (i < n) {
    const Key k = key_of(x[i]);
    top = k > top ? k : top;
    ++counts[k >> shift];
  }
  return top;
}

// Copies the keys of bin `bin` to `keys`, and finds the least key above it.
template <class T, class Key>
void gather(const T *x, int64_t n, Key bin, Key *keys, Found<Key> *found) {
  constexpr int shift = Keys<T>::BITS - Keys<T>::FIRST;
  Key above = ~Key(0);
  int64_t c = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Key k = key_of(x[i]), digit = k >> shift;
    keys[c] = k;
    c += digit == bin;
    const Key candidate = digit > bin ? k : ~Key(0);
    above = candidate < above ? candidate : above;
  }
  found->count = c;
  found->above = above;
}

template <class T>
void run(const QuantileArgs &a, typename Keys<T>::type *workspace, int threads) {
  using Key = typename Keys<T>::type;
  constexpr int bins = 1 << Keys<T>::FIRST;
  const T *const x = static_cast<const T *>(a.x);
  T *const out = static_cast<T *>(a.out);
  const int64_t wanted = (threads + a.batch - 1) / a.batch, most = std::max<int64_t>(1, a.n / PART);
  // Counts are of 32 bits.
  const int64_t parts = std::max(std::min(wanted, most), a.n >> 31);
  const bool few = a.batch * a.n < PART;

  if (a.n < SMALL) {
#pragma omp parallel for schedule(static) num_threads(threads) if (!few)
    for (int64_t b = 0; b < a.batch; ++b) out[b] = small(x + b * a.n, a.n, a.low, a.weight, workspace + b * a.n);
    return;
  }

  if (parts == 1) {
#pragma omp parallel num_threads(threads) if (!few)
    {
      std::vector<uint32_t> counts(2 * bins);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < a.batch; ++b) {
        std::fill(counts.begin(), counts.end(), 0u);
        Found<Key> found;
        found.top = count<T, Key>(x + b * a.n, a.n, counts.data());
        for (int j = 0; j < bins; ++j) counts[j] += counts[bins + j];
        int64_t rank = a.low;
        const Key bin = Key(locate(counts.data(), &rank));
        Key *const keys = workspace + b * a.n;
        gather<T, Key>(x + b * a.n, a.n, bin, keys, &found);
        out[b] = select<T>(keys, found.count, rank, found.above, found.top, a.weight);
      }
    }
    return;
  }

  const int64_t length = (a.n + parts - 1) / parts;
  std::vector<uint32_t> counts(size_t(a.batch * parts) * 2 * bins);
  std::vector<Found<Key>> found(size_t(a.batch * parts));
  std::vector<Key> bin(size_t(a.batch));
  std::vector<int64_t> rank(size_t(a.batch), a.low);
  const auto first = [&](int64_t p) { return std::min(p * length, a.n); };
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.batch * parts; ++i) {
      const int64_t b = i / parts, from = first(i % parts), to = first(i % parts + 1);
      found[i].top = count<T, Key>(x + b * a.n + from, to - from, &counts[size_t(i) * 2 * bins]);
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < a.batch; ++b) {
      std::vector<int64_t> total(bins);
      for (int64_t row = 0; row < 2 * parts; ++row)
        for (int j = 0; j < bins; ++j) total[j] += counts[size_t(2 * b * parts + row) * bins + j];
      bin[b] = Key(locate(total.data(), &rank[b]));
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.batch * parts; ++i) {
      const int64_t b = i / parts, from = first(i % parts), to = first(i % parts + 1);
      gather<T, Key>(x + b * a.n + from, to - from, bin[b], workspace + b * a.n + from, &found[i]);
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < a.batch; ++b) {
      Key *const keys = workspace + b * a.n;
      Found<Key> all;
      for (int64_t p = 0; p < parts; ++p) {
        const Found<Key> &part = found[b * parts + p];
        std::memmove(keys + all.count, keys + first(p), size_t(part.count) * sizeof(Key));
        all.count += part.count;
        all.above = std::min(all.above, part.above);
        all.top = std::max(all.top, part.top);
      }
      out[b] = select<T>(keys, all.count, rank[b], all.above, all.top, a.weight);
    }
  }
}

}  // namespace

void quantile(const QuantileArgs &args, void *workspace, int threads) {
  if (args.dtype == F32) {
    run<float>(args, static_cast<uint32_t *>(workspace), threads);
  } else {
    run<double>(args, static_cast<uint64_t *>(workspace), threads);
  }
}

}  // namespace fastdiff
