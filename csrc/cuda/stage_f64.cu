#include "stage.cuh"

namespace fastdiff {

cudaError_t launch_stage_f64(const StageArgs &args, cudaStream_t stream) { return launch_stage<double>(args, stream); }

}  // namespace fastdiff
