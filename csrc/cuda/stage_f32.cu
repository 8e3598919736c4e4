#include "stage.cuh"

namespace fastdiff {

cudaError_t launch_stage_f32(const StageArgs &args, cudaStream_t stream) { return launch_stage<float>(args, stream); }

}  // namespace fastdiff
