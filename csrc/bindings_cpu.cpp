// The Python module fastdiff._cpu.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bindings.h"
#include "cpu/kernel.h"
#include "cpu/quantile.h"
#include "walk.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace py = pybind11;

namespace fastdiff {
namespace {

// Below this many elements another Python thread gains nothing from the interpreter lock.
constexpr int64_t RELEASE = 1 << 16;

// What this processor can run, the widest last.
std::vector<const Kernels *> supported() {
  std::vector<const Kernels *> found{&kernels_portable};
#if defined(FASTDIFF_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.push_back(&kernels_avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      found.push_back(&kernels_avx512);
  }
#endif
  return found;
}

const Kernels *active = &kernels_portable;

py::tuple simd_levels() {
  py::list names;
  for (const Kernels *k : supported()) names.append(k->name);
  return py::tuple(names);
}

void set_simd(const std::string &name) {
  std::string names;
  for (const Kernels *k : supported()) {
    if (name == k->name) {
      active = k;
      return;
    }
    names += names.empty() ? k->name : std::string(", ") + k->name;
  }
  throw py::value_error("SIMD level '" + name + "' cannot run here: this build on this processor has " + names +
                        " (unset FASTDIFF_SIMD for the widest)");
}

bool launch(const StageArgs &a, long long, long long threads) {
  if (a.batch * a.n >= RELEASE) {
    Py_BEGIN_ALLOW_THREADS;
    active->stage(a, int(threads));
    Py_END_ALLOW_THREADS;
  } else {
    active->stage(a, int(threads));
  }
  return true;
}

using Parse = bool (*)(PyObject *const *, Py_ssize_t, StageArgs *, long long *, long long *);

template <Parse parse>
PyObject *stage(PyObject *, PyObject *const *args, Py_ssize_t count) {
  StageArgs a;
  long long device = 0, threads = 0;
  if (!parse(args, count, &a, &device, &threads) || !launch(a, device, threads)) return nullptr;
  Py_RETURN_NONE;
}

// Of finite numbers the products with 0 are all 0. Several sums at once, so that SIMD instructions add them.
template <class T>
bool finite(const void *values, int64_t count, int threads) {
  constexpr int64_t LANES = 16, BLOCK = 1 << 14;
  const T *const v = static_cast<const T *>(values);
  const int64_t blocks = (count + BLOCK - 1) / BLOCK;
  T total = 0;
  (void)threads;
#pragma omp parallel for num_threads(threads) reduction(+ : total) if (threads > 1 && count >= RELEASE)
  for (int64_t k = 0; k < blocks; ++k) {
    const T *const block = v + k * BLOCK;
    const int64_t length = count - k * BLOCK < BLOCK ? count - k * BLOCK : BLOCK;
    T sums[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
      for (int64_t j = 0; j < LANES; ++j) sums[j] += block[i + j] * T(0);
    for (; i < length; ++i) sums[0] += block[i] * T(0);
    for (int64_t j = 0; j < LANES; ++j) total += sums[j];
  }
  return total == T(0);
}

// (x, elements, dtype, threads) -> the address of x, a tensor of that many elements and of a state's dtype: 0 where it
// is not contiguous, wants a gradient, has less memory than elements, or values that are not finite.
PyObject *start(PyObject *, PyObject *const *args, Py_ssize_t count) {
  using namespace walking;
  static PyObject *const requires_grad = PyUnicode_InternFromString("requires_grad");
  int64_t elements = 0, bytes = 0;
  int dtype = 0, threads = 0;
  if (!counted("start", count, 4) || !integer(args[1], &elements) || !integer(args[2], &dtype) ||
      !integer(args[3], &threads))
    return nullptr;
  PyObject *const x = args[0];
  const Owned grad(PyObject_GetAttr(x, requires_grad)), storage(PyObject_CallMethodNoArgs(x, names().untyped_storage));
  void *at = nullptr, *begin = nullptr;
  if (!grad || !storage || !data_of(x, &at) || !data_of(storage.object, &begin) ||
      !number_from(storage.object, names().nbytes, &bytes))
    return nullptr;
  const int contiguous = holds(x, names().is_contiguous), negative = holds(x, names().is_neg);
  if (contiguous < 0 || negative < 0) return nullptr;
  const int64_t needed = elements * (dtype == F64 ? 8 : 4) + (static_cast<char *>(at) - static_cast<char *>(begin));
  bool good = contiguous && !negative && grad.object == Py_False && begin && needed <= bytes;
  if (good) {
    Py_BEGIN_ALLOW_THREADS;
    good = dtype == F64 ? finite<double>(at, elements, threads) : finite<float>(at, elements, threads);
    Py_END_ALLOW_THREADS;
  }
  return PyLong_FromVoidPtr(good ? at : nullptr);
}

// (a, b, bytes) -> whether the memory at two addresses is the same.
PyObject *same(PyObject *, PyObject *const *args, Py_ssize_t count) {
  const void *a = nullptr, *b = nullptr;
  int64_t bytes = 0;
  if (!counted("same", count, 3) || !parse_pointer(args[0], &a) || !parse_pointer(args[1], &b) ||
      !integer(args[2], &bytes))
    return nullptr;
  return PyBool_FromLong(bytes <= 0 || (a && b && memcmp(a, b, size_t(bytes)) == 0));
}

PyMethodDef definitions[] = {
    fast_function("start", start, "Where a tensor lies that a run may begin with, or 0; see csrc/bindings_cpu.cpp."),
    fast_function("same", same, "Whether the memory at two addresses is the same: (a, b, bytes)."),
    fast_function("stage", stage<parse_stage>,
                  "Run one stage; see csrc/bindings.h for the arguments, fastdiff/ops/cpu.py for their use."),
    fast_function("pack", pack, "The arguments that the stages of a run share, as bytes; see csrc/bindings.h."),
    fast_function("course", walking::course, "The stages of a plan, as bytes, for a `Walk`; see csrc/walk.h."),
    fast_function("look", look, "Where a model's tensors lie, and its modules' children; see csrc/bindings.h."),
    fast_function("launch", stage<parse_launch>, "Run a stage of the run that its first argument was packed for."),
};

// As `missing` in bindings.h, for functions that take addresses. Tensors without elements have none.
void require(const char *name, uintptr_t address, int64_t elements) {
  if (!address && elements > 0) throw py::value_error(std::string(name) + " has no memory");
}

void normal(uintptr_t out, int dtype, int64_t batch, int64_t n, uintptr_t seeds, uintptr_t index, uint32_t draw,
            uint32_t tag, int threads) {
  require("out", out, batch * n), require("seeds", seeds, batch), require("index", index, batch);
  const NormalArgs a = {at<void>(out), dtype, batch, n, at<const int64_t>(seeds), at<const int32_t>(index), draw, tag};
  py::gil_scoped_release release;
  active->normal(a, threads);
}

void quantile_of_samples(uintptr_t out, uintptr_t x, int dtype, int64_t batch, int64_t n, int64_t low, double weight,
                         uintptr_t workspace, int threads) {
  require("out", out, batch), require("x0", x, batch * n), require("workspace", workspace, batch * n);
  const QuantileArgs a = {at<void>(out), at<const void>(x), dtype, batch, n, low, weight};
  py::gil_scoped_release release;
  quantile(a, at<void>(workspace), threads);
}

py::tuple philox_words(py::tuple counter, py::tuple key) {
  const auto word = [](py::handle h) { return h.cast<uint32_t>(); };
  const Block r =
      philox({word(counter[0]), word(counter[1]), word(counter[2]), word(counter[3])}, word(key[0]), word(key[1]));
  return py::make_tuple(r.c0, r.c1, r.c2, r.c3);
}

bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

int max_threads() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  return 1;
#endif
}

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(_cpu, module) {
  using namespace fastdiff;
  module.doc() = "The fused stage and the noise on the CPU; takes raw pointers, knows no tensor library.";
  active = supported().back();
  if (const char *forced = std::getenv("FASTDIFF_SIMD"); forced && *forced) set_simd(forced);
  for (PyMethodDef &definition : definitions) add_fast_function(module, &definition);
  walking::add_type<launch>(module);
  module.attr("INTERFACE") = INTERFACE;
  module.def("normal", normal,
             "Fill `out` with standard normals: (out, dtype, batch, n, seeds, index, draw, tag, threads).");
  module.def("quantile", quantile_of_samples,
             "Quantiles of |x|, one for each sample: (out, x, dtype, batch, n, low, weight, workspace, threads).");
  module.def("philox", philox_words, "Philox4x32-10 of (counter: 4 words, key: 2 words).");
  module.def("simd_level", [] { return active->name; }, "The instruction set in use: portable, avx2 or avx512.");
  module.def("simd_levels", simd_levels, "Those that this build and processor have, the widest last.");
  module.def("set_simd", set_simd, "Use the named instruction set from now on. Raises ValueError where it cannot run.");
  module.def("has_openmp", has_openmp, "Whether the module runs on several threads.");
  module.def("max_threads", max_threads, "OpenMP's thread count; 1 without OpenMP.");
}
