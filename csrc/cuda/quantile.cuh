// Radix selection on the GPU, 11 bits a pass from the top. Every block counts the digits of its share in shared memory
// and adds them to the sample's histogram; the block that finishes last picks the digit. Counts are integers, so the
// result does not depend on the order of the blocks. A block that has its sample to itself makes all passes in one
// launch.
#pragma once

#include "quantile.h"

namespace fastdiff {

// The digit of `width` bits above `shift`; only keys that agree with the selection above it are counted.
struct Pass {
  int shift, width;
  bool first, last;
};

// The largest of the threads' values. `scratch` has an entry for each thread, and may be used again afterwards.
__device__ inline uint64_t block_max(uint64_t value, uint64_t *scratch) {
  const int t = threadIdx.x;
  scratch[t] = value;
  __syncthreads();
  for (int half = QUANTILE_THREADS / 2; half; half /= 2) {
    if (t < half && scratch[t + half] > scratch[t]) scratch[t] = scratch[t + half];
    __syncthreads();
  }
  const uint64_t largest = scratch[0];
  __syncthreads();
  return largest;
}

// The sum of the values of this thread and of those before it.
__device__ inline uint64_t running_sum(uint64_t value, uint64_t *scratch) {
  const int t = threadIdx.x;
  scratch[t] = value;
  __syncthreads();
  for (int step = 1; step < QUANTILE_THREADS; step *= 2) {
    const uint64_t before = t >= step ? scratch[t - step] : 0;
    __syncthreads();
    scratch[t] += before;
    __syncthreads();
  }
  return scratch[t];
}

// As many elements as one access takes.
template <class T>
struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T v[SIZE];
};

// One pass over this block's share. `found` and `total` are what the blocks of the sample share; a block alone has
// `own`, in shared memory, and no histogram but its counts.
template <class T>
__device__ inline void select_digit(const QuantileArgs &a, const Shares &share, const Pass &pass, Selection &mine,
                                    Selection *const found, unsigned long long *const total) {
  using Key = typename Keys<T>::type;
  constexpr int own_bins = BINS / QUANTILE_THREADS, PACK = Pack<T>::SIZE;
  __shared__ unsigned int counts[BINS];
  __shared__ uint64_t scratch[QUANTILE_THREADS];
  __shared__ int64_t inside;
  __shared__ uint64_t equals;
  __shared__ int chosen, later;
  __shared__ bool finishes;
  const int t = threadIdx.x;
  const int64_t b = blockIdx.x / share.blocks, part = blockIdx.x % share.blocks;
  const bool alone = share.blocks == 1;

  for (int i = t; i < BINS; i += QUANTILE_THREADS) counts[i] = 0;
  Key prefix = 0;
  int64_t rank = a.low;
  if (!pass.first) {
    if (alone) {
      prefix = Key(mine.prefix), rank = mine.rank;
    } else {
      prefix = Key(found->prefix), rank = found->rank;
    }
  }
  const int above = pass.shift + pass.width;
  const Key digits = (Key(1) << pass.width) - 1;
  __syncthreads();

  const T *const x = static_cast<const T *>(a.x) + b * a.n;
  const int64_t from = part * share.elements;
  const int64_t to = from + share.elements < a.n ? from + share.elements : a.n;
  Key top = 0, not_above = 0;
  const auto count = [&](T value) {
    const Key key = key_of(value), leading = key >> above;
    if (leading == prefix) atomicAdd(&counts[(key >> pass.shift) & digits], 1u);
    if (pass.last) {
      top = key > top ? key : top;
      if (leading > prefix && Key(~key) > not_above) not_above = Key(~key);
    }
  };
  if (a.n % PACK == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0) {
#pragma unroll 2
    for (int64_t i = from + PACK * t; i < to; i += PACK * QUANTILE_THREADS) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T> *>(x + i);
#pragma unroll
      for (int e = 0; e < PACK; ++e) count(pack.v[e]);
    }
  } else {
#pragma unroll 4
    for (int64_t i = from + t; i < to; i += QUANTILE_THREADS) count(x[i]);
  }
  uint64_t block_top = 0, block_not_above = 0;
  if (pass.last) {
    block_top = block_max(top, scratch);
    block_not_above = block_max(not_above, scratch);
  }
  __syncthreads();

  if (!alone) {
    for (int i = t; i < BINS; i += QUANTILE_THREADS)
      if (counts[i]) atomicAdd(&total[i], static_cast<unsigned long long>(counts[i]));
    if (t == 0 && pass.last) {
      atomicMax(&found->top, static_cast<unsigned long long>(block_top));
      atomicMax(&found->not_above, static_cast<unsigned long long>(block_not_above));
    }
    // All that the block added is visible before it counts as done.
    __threadfence();
    __syncthreads();
    if (t == 0) finishes = atomicAdd(&found->done, 1u) == share.blocks - 1;
    __syncthreads();
    if (!finishes) return;
    __threadfence();
  }

  uint64_t own[own_bins], sum = 0;
#pragma unroll
  for (int i = 0; i < own_bins; ++i) {
    const int bin = t * own_bins + i;
    // Other blocks wrote there: not from this multiprocessor's cache.
    own[i] = alone ? counts[bin] : __ldcg(&total[bin]);
    if (!alone) total[bin] = 0;
    sum += own[i];
  }
  int64_t before = int64_t(running_sum(sum, scratch) - sum);
#pragma unroll
  for (int i = 0; i < own_bins; ++i) {
    if (before <= rank && rank < before + int64_t(own[i])) {
      chosen = t * own_bins + i;
      equals = own[i];
      inside = rank - before;
      later = BINS;
    }
    before += int64_t(own[i]);
  }
  __syncthreads();
  if (pass.last) {
#pragma unroll
    for (int i = own_bins - 1; i >= 0; --i)
      if (own[i] && t * own_bins + i > chosen) atomicMin(&later, t * own_bins + i);
    __syncthreads();
  }
  if (t == 0) {
    const Key leading = Key(prefix << pass.width), key = leading | Key(chosen);
    if (alone) {
      mine.prefix = key;
      mine.rank = inside;
    } else {
      found->prefix = key;
      found->rank = inside;
      found->done = 0;
    }
    if (pass.last) {
      if (!alone) {
        block_top = __ldcg(&found->top);
        block_not_above = __ldcg(&found->not_above);
      }
      // The next order statistic: another element with this key, or with a later digit, or above all that were counted.
      const Key next = inside + 1 < int64_t(equals) ? key : later < BINS ? leading | Key(later) : Key(~block_not_above);
      static_cast<T *>(a.out)[b] = quantile_of<T>(key, next, Key(block_top), a.weight);
    }
  }
}

template <class T>
__host__ __device__ inline Pass pass_of(int left) {
  const int width = left < DIGIT ? left : DIGIT;
  return {left - width, width, left == Keys<T>::BITS, left == width};
}

// One of a sample's passes, or all of them where a block has its sample to itself.
template <class T>
__global__ void __launch_bounds__(QUANTILE_THREADS)
    quantile_kernel(const QuantileArgs a, const Shares share, const Pass pass, Selection *const selections,
                    unsigned long long *const histograms) {
  __shared__ Selection mine;
  if (share.blocks > 1) {
    const int64_t b = blockIdx.x / share.blocks;
    select_digit<T>(a, share, pass, mine, selections + b, histograms + b * BINS);
    return;
  }
#pragma unroll 1
  for (int left = Keys<T>::BITS; left > 0; left -= DIGIT) {
    select_digit<T>(a, share, pass_of<T>(left), mine, nullptr, nullptr);
    __syncthreads();
  }
}

}  // namespace fastdiff
