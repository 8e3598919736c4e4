// Enough of CUDA to run csrc/cuda/quantile.cuh on the host: the threads of a block are threads, blocks run one by one.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

typedef int cudaError_t;
typedef void *cudaStream_t;

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx;
inline Index blockIdx;
inline std::barrier<> *block;

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(threads)

inline void __syncthreads() { block->arrive_and_wait(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
template <class A>
A __ldcg(const A *p) {
  return std::atomic_ref<A>(*const_cast<A *>(p)).load();
}
template <class A, class V>
A atomicAdd(A *p, V v) {
  return std::atomic_ref<A>(*p).fetch_add(A(v));
}
template <class A>
A atomicMax(A *p, A v) {
  std::atomic_ref<A> to(*p);
  A old = to.load();
  while (old < v && !to.compare_exchange_weak(old, v)) {
  }
  return old;
}
template <class A>
A atomicMin(A *p, A v) {
  std::atomic_ref<A> to(*p);
  A old = to.load();
  while (v < old && !to.compare_exchange_weak(old, v)) {
  }
  return old;
}

#include "cuda/quantile.cuh"

// `elements` a block, so that several share a sample; blocks in order, or backwards.
extern "C" void quantile_on_host(const void *x, void *out, int dtype, int64_t batch, int64_t n, int64_t low,
                                 double weight, int64_t elements, int backwards) {
  using namespace fastdiff;
  const QuantileArgs a = {out, x, dtype, batch, n, low, weight};
  const Shares share = {uint32_t((n + elements - 1) / elements), elements};
  std::vector<Selection> selections(batch, Selection{});
  std::vector<unsigned long long> histograms(size_t(batch) * BINS);
  std::barrier<> all(QUANTILE_THREADS);
  block = &all;
  const int bits = dtype == F32 ? Keys<float>::BITS : Keys<double>::BITS;
  const unsigned blocks = unsigned(batch) * share.blocks;
  std::vector<std::thread> threads;
  for (int t = 0; t < QUANTILE_THREADS; ++t)
    threads.emplace_back([&, t] {
      threadIdx.x = unsigned(t);
      // A block that has its sample to itself makes all passes at once.
      for (int left = bits; left > 0; left -= share.blocks > 1 ? DIGIT : bits) {
        const Pass pass = dtype == F32 ? pass_of<float>(left) : pass_of<double>(left);
        for (unsigned i = 0; i < blocks; ++i) {
          __syncthreads();
          if (t == 0) blockIdx.x = backwards ? blocks - 1 - i : i;
          __syncthreads();
          if (dtype == F32)
            quantile_kernel<float>(a, share, pass, selections.data(), histograms.data());
          else
            quantile_kernel<double>(a, share, pass, selections.data(), histograms.data());
        }
      }
    });
  for (std::thread &thread : threads) thread.join();
}
