// The launches of the quantile: one for each digit, or one in all where a block has its sample to itself.
#include "quantile.cuh"

namespace fastdiff {
namespace {

template <class T>
cudaError_t launch(const QuantileArgs &a, void *workspace, cudaStream_t stream) {
  const Shares share = shares(a.batch, a.n);
  const auto selections = static_cast<Selection *>(workspace);
  const auto histograms = reinterpret_cast<unsigned long long *>(selections + a.batch);
  const auto run = [&](int left) {
    quantile_kernel<T><<<uint32_t(a.batch * share.blocks), QUANTILE_THREADS, 0, stream>>>(a, share, pass_of<T>(left),
                                                                                          selections, histograms);
    return cudaGetLastError();
  };
  if (share.blocks == 1) return run(Keys<T>::BITS);
  cudaError_t error = cudaMemsetAsync(workspace, 0, size_t(quantile_workspace(a.batch, a.n)), stream);
  for (int left = Keys<T>::BITS; left > 0 && error == cudaSuccess; left -= DIGIT) error = run(left);
  return error;
}

}  // namespace

cudaError_t launch_quantile(const QuantileArgs &a, void *workspace, cudaStream_t stream) {
  if (a.batch == 0 || a.n == 0) return cudaSuccess;
  return a.dtype == F32 ? launch<float>(a, workspace, stream) : launch<double>(a, workspace, stream);
}

}  // namespace fastdiff
