// What both extension modules share: the arguments of `stage`, read from Python without pybind11's casters, which would
// cost more than a small stage itself.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "stage.h"

namespace fastdiff {

// Raised with every change of what Python and the modules say to each other, here and in fastdiff/ops/layout.py.
constexpr int INTERFACE = 1;

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
  PyObject *const number = PyObject_CallMethodNoArgs(object, name);
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

// The structure, from a tuple in the order of StageSpec.
inline bool parse_spec(PyObject *spec, StageArgs *a) {
  if (!PyTuple_Check(spec) || PyTuple_GET_SIZE(spec) != 8) {
    PyErr_SetString(PyExc_TypeError, "stage: spec must be a tuple of 8 items");
    return false;
  }
  return integer(PyTuple_GET_ITEM(spec, 0), &a->convert) && integer(PyTuple_GET_ITEM(spec, 1), &a->guided) &&
         integer(PyTuple_GET_ITEM(spec, 2), &a->m_reads_u) && integer(PyTuple_GET_ITEM(spec, 3), &a->u_mask) &&
         integer(PyTuple_GET_ITEM(spec, 4), &a->x_mask) && integer(PyTuple_GET_ITEM(spec, 5), &a->copies) &&
         integer(PyTuple_GET_ITEM(spec, 6), &a->learned) && integer(PyTuple_GET_ITEM(spec, 7), &a->path);
}

// Pointers from a tuple or a list; what is not given stays null.
template <size_t N>
bool parse_several(const char *name, PyObject *given, const void *(&to)[N]) {
  const bool list = PyList_Check(given);
  const Py_ssize_t count = list ? PyList_GET_SIZE(given) : PyTuple_Check(given) ? PyTuple_GET_SIZE(given) : N + 1;
  if (count > Py_ssize_t(N)) {
    PyErr_Format(PyExc_TypeError, "stage: %s must be a tuple or a list of at most %zd items", name, Py_ssize_t(N));
    return false;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    void *p = nullptr;
    if (!pointer(list ? PyList_GET_ITEM(given, i) : PyTuple_GET_ITEM(given, i), &p)) return false;
    to[i] = p;
  }
  return true;
}

template <class T>
bool parse_pointer(PyObject *object, T **to) {
  void *p = nullptr;
  if (!pointer(object, &p)) return false;
  *to = static_cast<T *>(p);
  return true;
}

// The coefficients from 8 objects: (table, draws, rows, seeds, index, lo, hi, scale).
inline bool parse_coeffs(PyObject *const *c, StageArgs *a) {
  return parse_pointer(c[0], &a->table) && parse_pointer(c[1], &a->draws) && parse_pointer(c[2], &a->rows) &&
         parse_pointer(c[3], &a->seeds) && parse_pointer(c[4], &a->index) && parse_pointer(c[5], &a->lo) &&
         parse_pointer(c[6], &a->hi) && parse_pointer(c[7], &a->scale);
}

// Whether a stage can run. A stream that the structure needs and that is null raises ValueError: a kernel would read
// address 0.
inline bool complete(const StageArgs &a) {
  if (!known(a)) {
    PyErr_SetString(PyExc_ValueError, "stage: a number of the structure, a dtype or a size is out of range");
    return false;
  }
  if (const char *name = missing(a)) {
    PyErr_Format(PyExc_ValueError, "the stage needs %s, which was not given", name);
    return false;
  }
  return true;
}

// The rows of this call, where frames have rows of their own.
inline bool of_call(StageArgs *a) {
  if (a->inner) a->rows += a->k * a->batch * a->frames;
  return true;
}

inline bool counted(const char *name, Py_ssize_t got, Py_ssize_t expected) {
  if (got != expected) PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, expected, got);
  return got == expected;
}

// (spec, k, batch, n, state, net, hist, in, x, u, first, second, h, z, u_out, x_out, m_out, net_in, table, draws, rows,
// seeds, index, lo, hi, scale, inner, frames, squares, device, last): `spec` a tuple in the order of StageSpec, `h` and
// `z` tuples of pointers; where inner is not 0, `rows` holds (calls, batch, frames) numbers, of which those of call k
// are used; `device` the number of the GPU (0 for the CPU), `last` the thread count or the stream.
inline bool parse_stage(PyObject *const *args, Py_ssize_t count, StageArgs *a, long long *device, long long *last) {
  if (!counted("stage", count, 31)) return false;
  *a = StageArgs{};
  return parse_spec(args[0], a) && integer(args[1], &a->k) && integer(args[2], &a->batch) && integer(args[3], &a->n) &&
         integer(args[4], &a->state) && integer(args[5], &a->net) && integer(args[6], &a->hist) &&
         integer(args[7], &a->in) && parse_pointer(args[8], &a->x) && parse_pointer(args[9], &a->u) &&
         parse_pointer(args[10], &a->first) && parse_pointer(args[11], &a->second) &&
         parse_several("h", args[12], a->h) && parse_several("z", args[13], a->z) &&
         parse_pointer(args[14], &a->u_out) && parse_pointer(args[15], &a->x_out) &&
         parse_pointer(args[16], &a->m_out) && parse_pointer(args[17], &a->net_in) && parse_coeffs(args + 18, a) &&
         integer(args[26], &a->inner) && integer(args[27], &a->frames) && parse_pointer(args[28], &a->squares) &&
         integer(args[29], device) && integer(args[30], last) && complete(*a) && of_call(a);
}

// What the stages of a run share, as Python holds it: the bytes of this.
struct Packed {
  StageArgs args;
  long long device;
};

// (batch, n, state, net, hist, in, table, draws, rows, seeds, index, lo, hi, scale, device) -> bytes.
inline PyObject *pack(PyObject *, PyObject *const *args, Py_ssize_t count) {
  Packed p = {};
  StageArgs *const a = &p.args;
  if (!counted("pack", count, 15) || !integer(args[0], &a->batch) || !integer(args[1], &a->n) ||
      !integer(args[2], &a->state) || !integer(args[3], &a->net) || !integer(args[4], &a->hist) ||
      !integer(args[5], &a->in) || !parse_coeffs(args + 6, a) || !integer(args[14], &p.device))
    return nullptr;
  return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(&p), sizeof p);
}

// (packed, last, spec, k, x, u, first, second, h, u_out, x_out, m_out, net_in): a stage of the run that `packed` was
// made for. `last` is a number as above, or a function that gives it for the number of the device.
inline bool parse_launch(PyObject *const *args, Py_ssize_t count, StageArgs *a, long long *device, long long *last) {
  if (!counted("launch", count, 13)) return false;
  if (!PyBytes_CheckExact(args[0]) || PyBytes_GET_SIZE(args[0]) != sizeof(Packed)) {
    PyErr_SetString(PyExc_TypeError, "launch: packed must be what `pack` returned");
    return false;
  }
  Packed p;
  memcpy(&p, PyBytes_AS_STRING(args[0]), sizeof p);
  *a = p.args, *device = p.device;
  if (PyLong_CheckExact(args[1])) {
    if (!integer(args[1], last)) return false;
  } else {
    PyObject *const index = PyLong_FromLongLong(p.device);
    PyObject *const number = index ? PyObject_CallFunctionObjArgs(args[1], index, nullptr) : nullptr;
    Py_XDECREF(index);
    const bool ok = number && integer(number, last);
    Py_XDECREF(number);
    if (!ok) return false;
  }
  return parse_spec(args[2], a) && integer(args[3], &a->k) && parse_pointer(args[4], &a->x) &&
         parse_pointer(args[5], &a->u) && parse_pointer(args[6], &a->first) && parse_pointer(args[7], &a->second) &&
         parse_several("h", args[8], a->h) && parse_pointer(args[9], &a->u_out) && parse_pointer(args[10], &a->x_out) &&
         parse_pointer(args[11], &a->m_out) && parse_pointer(args[12], &a->net_in) && complete(*a);
}

// What `method`, an unbound one of C without arguments, returns for `object`. Called without its descriptor, which
// would take a third of the time.
inline PyObject *called(PyObject *method, PyObject *object) {
  if (Py_TYPE(method) == &PyMethodDescr_Type) {
    const auto *const d = reinterpret_cast<PyMethodDescrObject *>(method);
    if (d->d_method->ml_flags == METH_NOARGS && PyObject_TypeCheck(object, d->d_common.d_type))
      return d->d_method->ml_meth(object, nullptr);
  }
  return PyObject_CallOneArg(method, object);
}

// Appends the values of a dict: where `address` is given, what it returns for them (null for None), else the objects'
// own addresses.
inline bool append(PyObject *table, PyObject *address, std::vector<void *> *found) {
  if (!PyDict_Check(table)) {
    PyErr_Format(PyExc_TypeError, "look: expected a dict, got %s", Py_TYPE(table)->tp_name);
    return false;
  }
  Py_ssize_t at = 0;
  PyObject *key = nullptr, *value = nullptr;
  while (PyDict_Next(table, &at, &key, &value)) {
    void *p = address ? nullptr : value;
    if (address && value != Py_None) {
      Py_INCREF(value);
      PyObject *const number = called(address, value);
      Py_DECREF(value);
      if (!number) return false;
      p = PyLong_AsVoidPtr(number);
      Py_DECREF(number);
      if (!p && PyErr_Occurred()) return false;
    }
    found->push_back(p);
  }
  return true;
}

// (address, tables, parents) -> bytes: where the tensors in a list of dicts lie, as the function `address` says, and
// which modules are the children of those that a list of weak references leads to. A dead one raises AttributeError.
inline PyObject *look(PyObject *, PyObject *const *args, Py_ssize_t count) {
  static PyObject *const name = PyUnicode_InternFromString("_modules");
  if (!counted("look", count, 3)) return nullptr;
  PyObject *const tables = args[1], *const parents = args[2];
  if (!PyList_CheckExact(tables) || !PyList_CheckExact(parents)) {
    PyErr_SetString(PyExc_TypeError, "look: expected two lists, of dicts and of weak references");
    return nullptr;
  }
  std::vector<void *> found;
  found.reserve(4 * size_t(PyList_GET_SIZE(tables) + PyList_GET_SIZE(parents)));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tables); ++i)
    if (!append(PyList_GET_ITEM(tables, i), args[0], &found)) return nullptr;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(parents); ++i) {
    PyObject *const module = PyObject_CallNoArgs(PyList_GET_ITEM(parents, i));
    PyObject *const children = module ? PyObject_GetAttr(module, name) : nullptr;
    const bool ok = children && append(children, nullptr, &found);
    Py_XDECREF(children);
    Py_XDECREF(module);
    if (!ok) return nullptr;
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(found.data()),
                                   Py_ssize_t(found.size() * sizeof(void *)));
}

using FastFunction = PyObject *(*)(PyObject *, PyObject *const *, Py_ssize_t);

// The definition of a function that takes its arguments as a C array.
inline PyMethodDef fast_function(const char *name, FastFunction function, const char *doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}

inline void add_fast_function(pybind11::module_ &module, PyMethodDef *definition) {
  pybind11::object name = module.attr("__name__");
  PyObject *const function = PyCFunction_NewEx(definition, nullptr, name.ptr());
  if (!function) throw pybind11::error_already_set();
  module.add_object(definition->ml_name, pybind11::reinterpret_steal<pybind11::object>(function));
}

}  // namespace fastdiff
