// The Python module fastdiff._cuda. Importing it needs no driver: the CUDA runtime is linked statically and looks for
// one at the first call.
#include <cstdio>
#include <cstring>
#include <string>

#include "bindings.h"
#include "cuda/current.h"
#include "cuda/launch.h"
#include "cuda/quantile.h"
#include "walk.h"

namespace py = pybind11;

namespace fastdiff {
namespace {

// Sets Python's error, and clears the runtime's: the next call to report one would else be blamed for it.
bool raised(cudaError_t error, const char *where) {
  if (error == cudaSuccess) return false;
  cudaGetLastError();
  PyErr_Format(PyExc_RuntimeError, "CUDA error in %s: %s (%s)", where, cudaGetErrorString(error),
               cudaGetErrorName(error));
  return true;
}

// `launch` on `device`, without the GIL: a launch waits where the queue is full, and the first one loads the kernels.
template <class F>
bool launched(int device, const char *where, F launch) {
  cudaError_t chosen = cudaSuccess, error = cudaSuccess;
  Py_BEGIN_ALLOW_THREADS;
  {
    const Current current{device};
    chosen = current.error();
    if (chosen == cudaSuccess) error = launch();
  }
  Py_END_ALLOW_THREADS;
  if (chosen == cudaSuccess) return !raised(error, where);
  return !raised(chosen, (std::string(where) + " (choosing the device)").c_str());
}

bool launch(const StageArgs &a, long long device, long long stream) {
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  return launched(int(device), "stage", [&] { return launch_stage(a, on); });
}

using Parse = bool (*)(PyObject *const *, Py_ssize_t, StageArgs *, long long *, long long *);

template <Parse parse>
PyObject *stage(PyObject *, PyObject *const *args, Py_ssize_t count) {
  StageArgs a;
  long long device = 0, stream = 0;
  if (!parse(args, count, &a, &device, &stream) || !launch(a, device, stream)) return nullptr;
  Py_RETURN_NONE;
}

// (name, grid_x, grid_y, threads, arguments): what `stage` would launch, or None where there is nothing to do. `name`
// is the beginning of the kernel's mangled name, without its namespace; `arguments` the bytes of its arguments.
PyObject *stage_launch(PyObject *, PyObject *const *args, Py_ssize_t count) {
  StageArgs given;
  long long device = 0, stream = 0;
  if (!parse_stage(args, count, &given, &device, &stream)) return nullptr;
  const StageArgs a = flattened(given);
  if (a.batch == 0 || a.n == 0) Py_RETURN_NONE;
  const Variant v = variant(a);
  const Geometry g = geometry(a, v);
  char name[112];
  std::snprintf(name, sizeof name, "stage_kernelI%cLi%dELi%dELi%dELi%dELb%dELb%dELb%dELb%dELb%dEE",
                a.state == F64 ? 'd' : 'f', v.net, v.hist, v.shape, v.entries, v.paired, v.learned, v.noise, v.path,
                v.wide);
  std::string arguments(sizeof a + sizeof g.groups, '\0');
  std::memcpy(&arguments[0], &a, sizeof a);
  std::memcpy(&arguments[sizeof a], &g.groups, sizeof g.groups);
  return py::make_tuple(std::string(name), g.grid_x, g.grid_y, g.threads, py::bytes(arguments)).release().ptr();
}

PyMethodDef definitions[] = {
    fast_function("stage", stage<parse_stage>,
                  "Launch one stage; see csrc/bindings.h for the arguments, fastdiff/ops/cuda.py for their use."),
    fast_function("pack", pack, "The arguments that the stages of a run share, as bytes; see csrc/bindings.h."),
    fast_function("course", walking::course, "The stages of a plan, as bytes, for a `Walk`; see csrc/walk.h."),
    fast_function("look", look, "Where a model's tensors lie, and its modules' children; see csrc/bindings.h."),
    fast_function("launch", stage<parse_launch>, "Launch a stage of the run that its first argument was packed for."),
    fast_function("stage_launch", stage_launch,
                  "What `stage` would launch: (beginning of the kernel's mangled name, grid_x, grid_y, threads, "
                  "arguments as bytes)."),
};

void normal(uintptr_t out, int dtype, int64_t batch, int64_t n, uintptr_t seeds, uintptr_t index, uint32_t draw,
            uint32_t tag, int device, uintptr_t stream) {
  const NormalArgs a = {at<void>(out), dtype, batch, n, at<const int64_t>(seeds), at<const int32_t>(index), draw, tag};
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  if (!launched(device, "normal", [&] { return launch_normal(a, on); })) throw py::error_already_set();
}

void quantile(uintptr_t out, uintptr_t x, uintptr_t workspace, int dtype, int64_t batch, int64_t n, int64_t low,
              double weight, int device, uintptr_t stream) {
  const QuantileArgs a = {at<void>(out), at<const void>(x), dtype, batch, n, low, weight};
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  const auto launch = [&] { return launch_quantile(a, at<void>(workspace), on); };
  if (!launched(device, "quantile", launch)) throw py::error_already_set();
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

py::tuple launch_geometry(int64_t batch, int64_t n, int each) {
  const Geometry g = geometry(batch, n, each);
  return py::make_tuple(g.groups, g.grid_x, g.grid_y, g.threads);
}

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(_cuda, module) {
  using namespace fastdiff;
  module.doc() =
      "The fused stage and the noise on CUDA devices; takes raw pointers and a stream, knows no tensor library.";
  for (PyMethodDef &definition : definitions) add_fast_function(module, &definition);
  walking::add_type<launch>(module);
  module.attr("INTERFACE") = INTERFACE;
  module.def("normal", normal,
             "Fill `out` with standard normals: (out, dtype, batch, n, seeds, index, draw, tag, device, stream).");
  module.def("quantile", quantile,
             "Quantiles of |x|: (out, x, workspace, dtype, batch, n, low, weight, device, stream).");
  module.def("quantile_workspace", quantile_workspace, "Bytes of workspace that `quantile` takes for (batch, n).");
  module.def("quantile_shares", quantile_shares, "(blocks of a sample, elements of a block) for (batch, n).");
  module.def("devices", devices, "(number of devices, why there is none). Needs no driver.");
  module.def("launch_geometry", launch_geometry, py::arg("batch"), py::arg("n"), py::arg("each") = 1,
             "(groups, grid_x, grid_y, threads) for (batch, n) and so many groups of 4 elements a thread.");
  module.attr("runtime") = CUDART_VERSION;
}
