// What both extension modules share: the arguments of `stage`, read from Python without pybind11's casters, which would
// cost more than a small stage itself.
#pragma once

#include <pybind11/pybind11.h>

#include "stage.h"

namespace fastdiff {

// A pointer: None, an integer, or an object with data_ptr(), such as a tensor. Returns false with a Python error set.
inline bool pointer(PyObject *object, void **result) {
  static PyObject *const name = PyUnicode_InternFromString("data_ptr");
  if (object == Py_None) {
    *result = nullptr;
    return true;
  }
  if (PyLong_CheckExact(object)) {
    *result = PyLong_AsVoidPtr(object);
    return !(*result == nullptr && PyErr_Occurred());
  }
  PyObject *const number = PyObject_CallMethodObjArgs(object, name, nullptr);
  if (!number) return false;
  *result = PyLong_AsVoidPtr(number);
  Py_DECREF(number);
  return !(*result == nullptr && PyErr_Occurred());
}

// The pointer that Python gives as an integer.
template <class T>
T *at(uintptr_t address) {
  return reinterpret_cast<T *>(address);
}

template <class T>
bool integer(PyObject *object, T *result) {
  const long long value = PyLong_AsLongLong(object);
  *result = static_cast<T>(value);
  return !(value == -1 && PyErr_Occurred());
}

// What a stage's structure reads or writes and has no memory: the name of a field of `Buffers` or `Coeffs`, or null
// where nothing is missing.
inline const char *missing(const StageArgs &a) {
  static constexpr const char *H[] = {"h1", "h2", "h3", "h4", "h5", "h6"};
  const uint32_t mask = a.u_mask | a.x_mask;
  const auto reads = [&](int j) { return (mask >> j & 1u) != 0; };
  const bool converts = a.convert != CONVERT_NONE;
  if (!a.table) return "table";
  if (reads(RX) && !a.x) return "x";
  if ((reads(RU) || a.m_reads_u) && !a.u) return "u";
  if ((converts || (a.learned && (mask >> RSECOND & 3u))) && !a.first) return "first";
  if ((reads(RSECOND) || a.guided) && !a.second) return "second";
  if ((reads(RM) || a.m_out) && !converts) return "first, which m is made of,";
  for (int i = 0; i < 6; ++i)
    if (reads(RH1 + i) && !a.h[i]) return H[i];
  for (int i = 0; i < 3; ++i)
    if (reads(RZA + i) && !a.z[i] && !(a.draws && a.seeds && a.index)) return "draws, seeds or index";
  if (a.convert >= CONVERT_CLIP && !(a.lo && a.hi && a.scale)) return "lo, hi or scale";
  if (a.x_mask && !a.x_out) return "x_out";
  if (a.copies && !a.net_in) return "net_in";
  return nullptr;
}

// Whether the numbers are ones that the kernels know.
inline bool known(const StageArgs &a) {
  const auto dtype = [](int d) { return d >= F16 && d <= F64; };
  return a.convert >= CONVERT_NONE && a.convert <= CONVERT_BLEND && (a.u_mask | a.x_mask) >> NREG == 0 &&
         a.copies >= 0 && a.copies <= 2 && a.learned >= 0 && a.learned <= 2 && a.path >= 0 && a.path <= PATH_TERMS &&
         (a.state == F32 || a.state == F64) && dtype(a.net) && dtype(a.hist) && dtype(a.in) && a.batch >= 0 &&
         a.n >= 0 && a.k >= 0 &&
         (a.inner ? a.inner > 0 && a.frames > 0 && a.rows && a.n % (a.inner * a.frames) == 0 : true) &&
         !(a.squares && (a.inner || !((a.u_mask | a.x_mask) >> RZA & 1u))) && !(a.path && (a.inner || a.squares));
}

constexpr Py_ssize_t STAGE_ARGUMENTS = 31;

// (spec, k, batch, n, state, net, hist, in, x, u, first, second, h, z, u_out, x_out, m_out, net_in, table, draws, rows,
// seeds, index, lo, hi, scale, inner, frames, squares, device, last): `spec` a tuple in the order of StageSpec, `h` and
// `z` tuples of pointers, where inner is not 0, `rows` holds (calls, batch, frames) numbers, of which those of call k
// are used; `device` the number of the GPU (0 for the CPU), `last` the thread count or the stream. A stream that the
// structure needs and that is null raises ValueError: a kernel would read address 0.
inline bool parse_stage(PyObject *const *args, Py_ssize_t count, StageArgs *a, long long *device, long long *last) {
  if (count != STAGE_ARGUMENTS) {
    PyErr_Format(PyExc_TypeError, "stage takes %zd arguments, got %zd", STAGE_ARGUMENTS, count);
    return false;
  }
  PyObject *const spec = args[0], *const h = args[12], *const z = args[13];
  if (!PyTuple_Check(spec) || PyTuple_GET_SIZE(spec) != 8 || !PyTuple_Check(h) || PyTuple_GET_SIZE(h) > 6 ||
      !PyTuple_Check(z) || PyTuple_GET_SIZE(z) != 3) {
    PyErr_SetString(PyExc_TypeError, "stage: spec, h and z must be tuples of 8, at most 6, and 3 items");
    return false;
  }
  *a = StageArgs{};
  bool ok = integer(PyTuple_GET_ITEM(spec, 0), &a->convert) && integer(PyTuple_GET_ITEM(spec, 1), &a->guided) &&
            integer(PyTuple_GET_ITEM(spec, 2), &a->m_reads_u) && integer(PyTuple_GET_ITEM(spec, 3), &a->u_mask) &&
            integer(PyTuple_GET_ITEM(spec, 4), &a->x_mask) && integer(PyTuple_GET_ITEM(spec, 5), &a->copies) &&
            integer(PyTuple_GET_ITEM(spec, 6), &a->learned) && integer(PyTuple_GET_ITEM(spec, 7), &a->path) &&
            integer(args[1], &a->k) && integer(args[2], &a->batch) && integer(args[3], &a->n) &&
            integer(args[4], &a->state) && integer(args[5], &a->net) && integer(args[6], &a->hist) &&
            integer(args[7], &a->in);
  const auto read = [&](int i, auto **to) {
    void *p = nullptr;
    ok = ok && pointer(args[i], &p);
    *to = static_cast<std::remove_reference_t<decltype(*to)>>(p);
  };
  read(8, &a->x), read(9, &a->u), read(10, &a->first), read(11, &a->second);
  const auto item = [&](PyObject *tuple, Py_ssize_t i, const void **to) {
    void *p = nullptr;
    ok = ok && pointer(PyTuple_GET_ITEM(tuple, i), &p);
    *to = p;
  };
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(h); ++i) item(h, i, &a->h[i]);
  for (Py_ssize_t i = 0; i < 3; ++i) item(z, i, &a->z[i]);
  read(14, &a->u_out), read(15, &a->x_out), read(16, &a->m_out), read(17, &a->net_in);
  read(18, &a->table), read(19, &a->draws), read(20, &a->rows), read(21, &a->seeds), read(22, &a->index);
  read(23, &a->lo), read(24, &a->hi), read(25, &a->scale);
  ok = ok && integer(args[26], &a->inner) && integer(args[27], &a->frames);
  read(28, &a->squares);
  if (!ok || !integer(args[29], device) || !integer(args[30], last)) return false;
  if (!known(*a)) {
    PyErr_SetString(PyExc_ValueError, "stage: a number of the structure, a dtype or a size is out of range");
    return false;
  }
  if (a->inner) a->rows += a->k * a->batch * a->frames;
  if (const char *name = missing(*a)) {
    PyErr_Format(PyExc_ValueError, "the stage needs %s, which was not given", name);
    return false;
  }
  return true;
}

// Adds a function that takes its arguments as a C array.
inline void add_fast_function(pybind11::module_ &module, PyMethodDef *definition) {
  pybind11::object name = module.attr("__name__");
  PyObject *const function = PyCFunction_NewEx(definition, nullptr, name.ptr());
  if (!function) throw pybind11::error_already_set();
  module.add_object(definition->ml_name, pybind11::reinterpret_steal<pybind11::object>(function));
}

}  // namespace fastdiff
