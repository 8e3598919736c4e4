// The Python module fastdiff._cuda. Importing it needs no driver: the CUDA runtime is linked statically and looks for
// one at the first call.
#include "bindings.h"
#include "cuda/launch.h"
#include "cuda/quantile.h"

namespace py = pybind11;

namespace fastdiff {
namespace {

bool raised(cudaError_t error, const char *where) {
  if (error == cudaSuccess) return false;
  PyErr_Format(PyExc_RuntimeError, "CUDA error in %s: %s (%s)", where, cudaGetErrorString(error),
               cudaGetErrorName(error));
  return true;
}

// Makes `device` current for its lifetime; a launch on another device's stream would fail.
class Current {
 public:
  explicit Current(int device) : error_(cudaGetDevice(&before_)), device_(device) {
    if (error_ == cudaSuccess && before_ != device_) error_ = cudaSetDevice(device_);
  }
  ~Current() {
    if (error_ == cudaSuccess && before_ != device_) cudaSetDevice(before_);
  }
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  cudaError_t error_;
  int device_;
};

PyObject *stage(PyObject *, PyObject *const *args, Py_ssize_t count) {
  StageArgs a;
  long long device = 0, stream = 0;
  if (!parse_stage(args, count, &a, &device, &stream)) return nullptr;
  const Current current{int(device)};
  if (raised(current.error(), "stage (choosing the device)")) return nullptr;
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  const cudaError_t error = a.state == F32 ? launch_stage_f32(a, on) : launch_stage_f64(a, on);
  if (raised(error, "stage")) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef stage_definition = {
    "stage", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(stage)), METH_FASTCALL,
    "Launch one stage; see csrc/bindings.h for the arguments, fastdiff/ops/cuda.py for their use."};

void normal(uintptr_t out, int dtype, int64_t batch, int64_t n, uintptr_t seeds, uintptr_t index, uint32_t draw,
            uint32_t tag, int device, uintptr_t stream) {
  const NormalArgs a = {at<void>(out), dtype, batch, n, at<const int64_t>(seeds), at<const int32_t>(index), draw, tag};
  const Current current{device};
  if (raised(current.error(), "normal (choosing the device)") ||
      raised(launch_normal(a, reinterpret_cast<cudaStream_t>(stream)), "normal"))
    throw py::error_already_set();
}

void quantile(uintptr_t out, uintptr_t x, uintptr_t workspace, int dtype, int64_t batch, int64_t n, int64_t low,
              double weight, int device, uintptr_t stream) {
  const QuantileArgs a = {at<void>(out), at<const void>(x), dtype, batch, n, low, weight};
  const Current current{device};
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  if (raised(current.error(), "quantile (choosing the device)") ||
      raised(launch_quantile(a, at<void>(workspace), on), "quantile"))
    throw py::error_already_set();
}

py::tuple quantile_shares(int64_t batch, int64_t n) {
  const Shares s = shares(batch, n);
  return py::make_tuple(s.blocks, s.elements);
}

// (number of devices, why there is none).
py::tuple devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return py::make_tuple(0, std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")");
  }
  return py::make_tuple(count, count ? "" : "the driver reports no device");
}

py::tuple launch_geometry(int64_t batch, int64_t n) {
  const Geometry g = geometry(batch, n);
  return py::make_tuple(g.groups, g.grid_x, g.grid_y, g.threads);
}

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(_cuda, module) {
  using namespace fastdiff;
  module.doc() =
      "The fused stage and the noise on CUDA devices; takes raw pointers and a stream, knows no tensor library.";
  add_fast_function(module, &stage_definition);
  module.def("normal", normal,
             "Fill `out` with standard normals: (out, dtype, batch, n, seeds, index, draw, tag, device, stream).");
  module.def("quantile", quantile,
             "Quantiles of |x|: (out, x, workspace, dtype, batch, n, low, weight, device, stream).");
  module.def("quantile_workspace", quantile_workspace, "Bytes of workspace that `quantile` takes for (batch, n).");
  module.def("quantile_shares", quantile_shares, "(blocks of a sample, elements of a block) for (batch, n).");
  module.def("devices", devices, "(number of devices, why there is none). Needs no driver.");
  module.def("launch_geometry", launch_geometry, "(groups, grid_x, grid_y, threads) for (batch, n).");
  module.attr("runtime") = CUDART_VERSION;
}
