// A run whose stages are one launch after the other: what stands between two calls of the network, without Python.
//
// It takes an output that is like the one before it (same dtype, shape and device, contiguous, alone in its storage),
// keeps the history and launches the stage. Whatever is unlike is left to `fastdiff.run.loop`, which looks closer and
// says what is wrong; `resume` goes on from there.
#pragma once

#include <structmember.h>

#include <cstddef>
#include <cstring>

#include "bindings.h"

namespace fastdiff {

// A stage, from a `Launched` of fastdiff/bind/program.py: its structure, its row, and which slots it reads and writes
// (`x_to` is -1 where x is not written).
struct Course {
  StageArgs spec;
  int32_t x, u, u_to, x_to;
  bool evaluate, keep;
};

// Launches a stage on a device (its number) and a stream, or with so many threads; false with Python's error set.
using LaunchStage = bool (*)(const StageArgs &, long long device, long long last);

namespace walking {

constexpr int HISTORY = 6, SLOTS = 2;

struct Names {
  PyObject *dtype, *shape, *device, *version, *untyped_storage, *nbytes, *data_ptr, *is_contiguous, *is_neg;
};

inline const Names &names() {
  static const Names n = {PyUnicode_InternFromString("dtype"),           PyUnicode_InternFromString("shape"),
                          PyUnicode_InternFromString("device"),          PyUnicode_InternFromString("_version"),
                          PyUnicode_InternFromString("untyped_storage"), PyUnicode_InternFromString("nbytes"),
                          PyUnicode_InternFromString("data_ptr"),        PyUnicode_InternFromString("is_contiguous"),
                          PyUnicode_InternFromString("is_neg")};
  return n;
}

// A reference that is given back at the end of its scope.
struct Owned {
  PyObject *object;
  explicit Owned(PyObject *o = nullptr) : object(o) {}
  ~Owned() { Py_XDECREF(object); }
  Owned(const Owned &) = delete;
  Owned &operator=(const Owned &) = delete;
  explicit operator bool() const { return object != nullptr; }
};

inline void assign(PyObject **to, PyObject *value) {
  PyObject *const old = *to;
  Py_XINCREF(value);
  *to = value;
  Py_XDECREF(old);
}

// An earlier model value. Of one that is the network's own, the storage and its version: -1 where it has none.
struct Kept {
  PyObject *value;
  void *at, *storage;
  long long version;
  bool own;
};

struct Walk {
  PyObject_HEAD StageArgs args;
  long long device;
  // The stream or the number of threads, or a function that gives it for the number of the device.
  PyObject *last;
  PyObject *course;
  PyObject *tensor, *dtype, *shape, *on;
  PyObject *halves[SLOTS], *inputs[SLOTS], *times, *fresh, *x;
  PyObject *ring[HISTORY];
  void *places[SLOTS], *shared;
  Kept kept[HISTORY];
  long long nbytes, version;
  Py_ssize_t count, k;
  int length, held, rings;
  bool guided, keeps_input;
  LaunchStage launch;

  // Before them is the opening, which writes x into its slot and the network's first input.
  const Course *stages() const { return reinterpret_cast<const Course *>(PyBytes_AS_STRING(course)) + 1; }
  PyObject *input(const Course &s) const { return inputs[s.u]; }
};

template <class T>
bool number_of(PyObject *object, PyObject *name, T *result) {
  const Owned value(PyObject_GetAttr(object, name));
  return value && integer(value.object, result);
}

template <class T>
bool number_from(PyObject *object, PyObject *method, T *result) {
  const Owned value(PyObject_CallMethodNoArgs(object, method));
  return value && integer(value.object, result);
}

// 1, 0, or -1 with Python's error set.
inline int holds(PyObject *object, PyObject *method) {
  const Owned value(PyObject_CallMethodNoArgs(object, method));
  return value ? PyObject_IsTrue(value.object) : -1;
}

inline int equal(PyObject *object, PyObject *name, PyObject *expected) {
  const Owned value(PyObject_GetAttr(object, name));
  return value ? PyObject_RichCompareBool(value.object, expected, Py_EQ) : -1;
}

// The version of a tensor, -1 for those of inference mode, which have none. False with another error set.
inline bool version_of(PyObject *tensor, long long *version) {
  if (number_of(tensor, names().version, version)) return true;
  if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) return false;
  PyErr_Clear();
  *version = -1;
  return true;
}

// Whether an output is like the one before it, and where it lies: 1, 0, or -1 with Python's error set.
inline int alike(const Walk *w, PyObject *out, PyObject *given, void **at) {
  const Names &n = names();
  if (reinterpret_cast<PyObject *>(Py_TYPE(out)) != w->tensor) return 0;
  const Owned dtype(PyObject_GetAttr(out, n.dtype));
  if (!dtype) return -1;
  if (dtype.object != w->dtype) return 0;
  if (w->keeps_input) {
    long long version = 0;
    if (!number_of(given, n.version, &version)) return -1;
    if (version != w->version) return 0;
  }
  const Owned storage(PyObject_CallMethodNoArgs(out, n.untyped_storage));
  long long bytes = 0;
  if (!storage || !number_from(storage.object, n.nbytes, &bytes)) return -1;
  if (bytes != w->nbytes) return 0;
  if (const int r = equal(out, n.shape, w->shape); r != 1) return r;
  if (const int r = holds(out, n.is_contiguous); r != 1) return r;
  if (const int r = holds(out, n.is_neg); r != 0) return r < 0 ? r : 0;
  if (const int r = equal(out, n.device, w->on); r != 1) return r;
  const Owned begin(PyObject_CallMethodNoArgs(storage.object, n.data_ptr));
  if (!begin) return -1;
  *at = PyLong_AsVoidPtr(begin.object);
  if (!*at) return PyErr_Occurred() ? -1 : 0;
  return *at != w->places[0] && *at != w->places[1] && *at != w->shared;
}

// Whether the kept values are as they were, and the new output lies elsewhere: 1, 0, or -1 with Python's error set.
inline int lasting(const Walk *w, const void *storage) {
  for (int i = 0; i < w->held; ++i) {
    const Kept &e = w->kept[i];
    if (!e.own) continue;
    if (e.storage == storage) return 0;
    if (e.version < 0) continue;
    long long version = 0;
    if (!number_of(e.value, names().version, &version)) return -1;
    if (version != e.version) return 0;
  }
  return 1;
}

// A buffer for m. The oldest value may be overwritten: every element is read before it is written.
inline PyObject *slot(const Walk *w) {
  for (int j = 0; j < w->rings; ++j) {
    bool needed = false;
    for (int i = 0; i < w->held && i < w->length - 1; ++i) needed |= w->kept[i].value == w->ring[j];
    if (!needed) return w->ring[j];
  }
  return nullptr;
}

inline bool data_of(PyObject *tensor, void **at) {
  const Owned number(PyObject_CallMethodNoArgs(tensor, names().data_ptr));
  if (!number) return false;
  *at = PyLong_AsVoidPtr(number.object);
  return !(*at == nullptr && PyErr_Occurred());
}

inline void structure(const StageArgs &spec, StageArgs *a) {
  a->convert = spec.convert, a->guided = spec.guided, a->m_reads_u = spec.m_reads_u, a->u_mask = spec.u_mask;
  a->x_mask = spec.x_mask, a->copies = spec.copies, a->learned = spec.learned, a->path = spec.path, a->k = spec.k;
}

inline bool launched(const Walk *w, const StageArgs &a) {
  long long last = 0;
  if (PyLong_CheckExact(w->last)) {
    if (!integer(w->last, &last)) return false;
  } else {
    const Owned device(PyLong_FromLongLong(w->device));
    const Owned number(device ? PyObject_CallOneArg(w->last, device.object) : nullptr);
    if (!number || !integer(number.object, &last)) return false;
  }
  return complete(a) && w->launch(a, w->device, last);
}

// Where u' goes, which is also the network's input where that is no memory of its own.
inline void send(const Walk *w, void *to, StageArgs *a) {
  a->u_out = to;
  if (!a->copies) return;
  a->net_in = w->shared ? w->shared : to;
  if (!w->shared) a->u_out = nullptr;
}

// Stage k, of an output that lies at `first`, or of none. False with Python's error set.
inline bool step(Walk *w, PyObject *out, void *first) {
  const Course &s = w->stages()[w->k];
  StageArgs a = w->args;
  structure(s.spec, &a);
  a.x = w->places[s.x], a.u = w->places[s.u], a.first = first;
  if (first && w->guided) a.second = static_cast<char *>(first) + w->nbytes / 2;
  for (int i = 0; i < w->held; ++i) a.h[i] = w->kept[i].at;
  const bool keeps = s.keep && out && w->length;
  Kept made = {out, first, first, -1, true};
  if (keeps) {
    if (PyObject *const ring = slot(w)) {
      if (!data_of(ring, &a.m_out)) return false;
      made = {ring, a.m_out, nullptr, -1, false};
    } else if (!version_of(out, &made.version)) {
      return false;
    }
  }
  send(w, w->places[s.u_to], &a);
  Owned own;
  if (!a.copies && w->k + 1 == w->count && w->fresh != Py_None) {
    own.object = PyObject_CallNoArgs(w->fresh);
    if (!own || !data_of(own.object, &a.u_out)) return false;
  }
  if (s.x_to >= 0) a.x_out = w->places[s.x_to];
  if (!launched(w, a)) return false;
  if (keeps) {
    PyObject *const oldest = w->held == w->length ? w->kept[--w->held].value : nullptr;
    for (int i = w->held; i > 0; --i) w->kept[i] = w->kept[i - 1];
    Py_INCREF(made.value);
    w->kept[0] = made;
    ++w->held;
    Py_XDECREF(oldest);
  }
  assign(&w->x, own ? own.object : w->halves[s.u_to]);
  ++w->k;
  return true;
}

// The stages that need no network, up to the next that does, whose input is then marked. False with an error set.
inline bool settle(Walk *w) {
  while (w->k < w->count) {
    const Course &s = w->stages()[w->k];
    if (s.evaluate) return !w->keeps_input || number_of(w->input(s), names().version, &w->version);
    if (!step(w, nullptr, nullptr)) return false;
  }
  return true;
}

// 1 where the output was taken, 0 where it is to be looked at, -1 with Python's error set.
inline int take(Walk *w, PyObject *out) {
  void *at = nullptr;
  int found = alike(w, out, w->input(w->stages()[w->k]), &at);
  if (found == 1) found = lasting(w, at);
  if (found < 0 && (PyErr_ExceptionMatches(PyExc_RuntimeError) || PyErr_ExceptionMatches(PyExc_NotImplementedError))) {
    // It has no memory of its own.
    PyErr_Clear();
    return 0;
  }
  if (found != 1) return found;
  return step(w, out, at) && settle(w) ? 1 : -1;
}

inline void forget(Walk *w) {
  while (w->held) {
    --w->held;
    Py_CLEAR(w->kept[w->held].value);
  }
}

inline Walk *of(PyObject *self) { return reinterpret_cast<Walk *>(self); }

inline bool due(const Walk *w) {
  if (w->k < w->count) return true;
  PyErr_SetString(PyExc_ValueError, "the walk is complete");
  return false;
}

inline PyObject *take_output(PyObject *self, PyObject *out) {
  Walk *const w = of(self);
  if (!due(w)) return nullptr;
  const int found = take(w, out);
  return found < 0 ? nullptr : PyBool_FromLong(found);
}

// (x): begin with the state at this address.
inline PyObject *open(PyObject *self, PyObject *x) {
  Walk *const w = of(self);
  StageArgs a = w->args;
  structure(w->stages()[-1].spec, &a);
  if (!parse_pointer(x, &a.x)) return nullptr;
  send(w, w->places[0], &a);
  if (!launched(w, a)) return nullptr;
  forget(w);
  w->k = 0;
  assign(&w->x, w->halves[0]);
  if (!settle(w)) return nullptr;
  Py_RETURN_NONE;
}

inline PyObject *run(PyObject *self, PyObject *call) {
  Walk *const w = of(self);
  while (w->k < w->count) {
    // A network that is all C would leave no other moment for Ctrl-C.
    if (PyErr_CheckSignals() < 0) return nullptr;
    PyObject *const given[] = {w->input(w->stages()[w->k]), PyTuple_GET_ITEM(w->times, w->k)};
    Owned out(PyObject_Vectorcall(call, given, 2, nullptr));
    if (!out) return nullptr;
    const int found = take(w, out.object);
    if (found < 0) return nullptr;
    if (!found) {
      PyObject *const left = out.object;
      out.object = nullptr;
      return left;
    }
  }
  Py_RETURN_NONE;
}

inline PyObject *history(PyObject *self, PyObject *) {
  Walk *const w = of(self);
  PyObject *const list = PyList_New(w->held);
  for (int i = 0; list && i < w->held; ++i) {
    const Kept &e = w->kept[i];
    PyObject *const at = PyLong_FromVoidPtr(e.at);
    PyObject *const storage = e.own ? PyLong_FromVoidPtr(e.storage) : PyLong_FromLong(-1);
    PyObject *const version = e.own && e.version >= 0 ? PyLong_FromLongLong(e.version) : Py_NewRef(Py_None);
    PyObject *const entry = at && storage && version ? PyTuple_Pack(4, e.value, at, storage, version) : nullptr;
    Py_XDECREF(at), Py_XDECREF(storage), Py_XDECREF(version);
    if (!entry) {
      Py_DECREF(list);
      return nullptr;
    }
    PyList_SET_ITEM(list, i, entry);
  }
  return list;
}

// (k, x, history): go on before stage k, an evaluation, with the latest state and what `history` returns.
inline PyObject *resume(PyObject *self, PyObject *const *args, Py_ssize_t count) {
  Walk *const w = of(self);
  Py_ssize_t k = 0;
  if (!counted("resume", count, 3) || !integer(args[0], &k)) return nullptr;
  if (!PyList_CheckExact(args[2]) || PyList_GET_SIZE(args[2]) > w->length || k < 0 || k > w->count) {
    PyErr_SetString(PyExc_ValueError, "resume: no such stage, or more values than the stages read");
    return nullptr;
  }
  Kept kept[HISTORY];
  const int held = int(PyList_GET_SIZE(args[2]));
  for (int i = 0; i < held; ++i) {
    PyObject *const entry = PyList_GET_ITEM(args[2], i);
    if (!PyTuple_CheckExact(entry) || PyTuple_GET_SIZE(entry) != 4) {
      PyErr_SetString(PyExc_TypeError, "resume: a value is (tensor, address, storage, version)");
      return nullptr;
    }
    long long storage = 0;
    Kept e = {PyTuple_GET_ITEM(entry, 0), nullptr, nullptr, -1, false};
    if (!pointer(PyTuple_GET_ITEM(entry, 1), &e.at) || !integer(PyTuple_GET_ITEM(entry, 2), &storage)) return nullptr;
    e.own = storage != -1;
    if (e.own) e.storage = reinterpret_cast<void *>(storage);
    PyObject *const version = PyTuple_GET_ITEM(entry, 3);
    if (version != Py_None && !integer(version, &e.version)) return nullptr;
    kept[i] = e;
  }
  forget(w);
  for (; w->held < held; ++w->held) {
    w->kept[w->held] = kept[w->held];
    Py_INCREF(kept[w->held].value);
  }
  w->k = k;
  assign(&w->x, args[1]);
  if (!settle(w)) return nullptr;
  Py_RETURN_NONE;
}

// (packed, course, like, length, guided, keeps_input, last, tensors, ring, times, fresh): `like` is what outputs have,
// (class, dtype, shape, device, bytes); `length` how many values are kept; `tensors` both slots' states, both slots,
// and the network's own input or None; `ring` buffers for model values that are copied; `times` a tensor for each
// stage; `fresh` makes the tensor of the result, where None does not leave it to a slot.
template <LaunchStage launch>
PyObject *make(PyTypeObject *type, PyObject *args, PyObject *) {
  PyObject *packed = nullptr, *last = nullptr, *course = nullptr, *like = nullptr, *tensors = nullptr, *ring = nullptr;
  PyObject *times = nullptr, *fresh = nullptr;
  int length = 0, guided = 0, keeps = 0;
  if (!PyArg_ParseTuple(args, "SSO!ippOO!O!O!O", &packed, &course, &PyTuple_Type, &like, &length, &guided, &keeps,
                        &last, &PyTuple_Type, &tensors, &PyList_Type, &ring, &PyTuple_Type, &times, &fresh))
    return nullptr;
  const Py_ssize_t stages = PyBytes_GET_SIZE(course) / Py_ssize_t(sizeof(Course)) - 1;
  if (PyBytes_GET_SIZE(packed) != sizeof(Packed) || stages < 0 ||
      PyBytes_GET_SIZE(course) != (stages + 1) * Py_ssize_t(sizeof(Course))) {
    PyErr_SetString(PyExc_TypeError, "Walk: expected what `pack` and `course` returned");
    return nullptr;
  }
  if (length < 0 || length > HISTORY || PyList_GET_SIZE(ring) > length || PyTuple_GET_SIZE(like) != 5 ||
      PyTuple_GET_SIZE(tensors) != 2 * SLOTS + 1 || PyTuple_GET_SIZE(times) != stages) {
    PyErr_SetString(PyExc_ValueError, "Walk: a number of values, tensors or times is out of range");
    return nullptr;
  }
  Walk *const w = of(type->tp_alloc(type, 0));
  if (!w) return nullptr;
  Owned self(reinterpret_cast<PyObject *>(w));
  Packed p;
  memcpy(&p, PyBytes_AS_STRING(packed), sizeof p);
  w->args = p.args, w->device = p.device, w->count = stages, w->length = length;
  w->guided = guided != 0, w->keeps_input = keeps != 0, w->launch = launch;
  assign(&w->last, last), assign(&w->course, course), assign(&w->times, times), assign(&w->fresh, fresh);
  assign(&w->tensor, PyTuple_GET_ITEM(like, 0)), assign(&w->dtype, PyTuple_GET_ITEM(like, 1));
  assign(&w->shape, PyTuple_GET_ITEM(like, 2)), assign(&w->on, PyTuple_GET_ITEM(like, 3));
  if (!integer(PyTuple_GET_ITEM(like, 4), &w->nbytes)) return nullptr;
  PyObject *const shared = PyTuple_GET_ITEM(tensors, 2 * SLOTS);
  if (shared != Py_None && !data_of(shared, &w->shared)) return nullptr;
  for (int i = 0; i < SLOTS; ++i) {
    PyObject *const given = PyTuple_GET_ITEM(tensors, SLOTS + i);
    assign(&w->halves[i], PyTuple_GET_ITEM(tensors, i));
    assign(&w->inputs[i], shared == Py_None ? given : shared);
    if (!data_of(given, &w->places[i])) return nullptr;
  }
  for (; w->rings < PyList_GET_SIZE(ring); ++w->rings) assign(&w->ring[w->rings], PyList_GET_ITEM(ring, w->rings));
  self.object = nullptr;
  return reinterpret_cast<PyObject *>(w);
}

inline void destroy(PyObject *self) {
  Walk *const w = of(self);
  forget(w);
  for (PyObject **held : {&w->last, &w->course, &w->tensor, &w->dtype, &w->shape, &w->on, &w->times, &w->fresh, &w->x})
    Py_CLEAR(*held);
  for (PyObject *&held : w->halves) Py_CLEAR(held);
  for (PyObject *&held : w->inputs) Py_CLEAR(held);
  for (PyObject *&held : w->ring) Py_CLEAR(held);
  PyTypeObject *const type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// (`Program.opening`, `Program.launches`) -> bytes, which a `Walk` reads.
inline PyObject *course(PyObject *, PyObject *const *args, Py_ssize_t count) {
  if (!counted("course", count, 2)) return nullptr;
  const Py_ssize_t stages = PyTuple_Check(args[1]) ? PyTuple_GET_SIZE(args[1]) : -1;
  std::vector<Course> found(1);
  if (!parse_spec(args[0], &found[0].spec)) return nullptr;
  for (Py_ssize_t i = 0; i < stages; ++i) {
    PyObject *const move = PyTuple_GET_ITEM(args[1], i);
    Course c = {};
    const auto item = [&](int j) { return PyTuple_GET_ITEM(move, j); };
    if (!PyTuple_Check(move) || PyTuple_GET_SIZE(move) != 8) break;
    if (!parse_spec(item(0), &c.spec) || !integer(item(1), &c.spec.k) || !integer(item(2), &c.x) ||
        !integer(item(3), &c.u) || !integer(item(4), &c.u_to))
      return nullptr;
    c.x_to = -1;
    if (item(5) != Py_None && !integer(item(5), &c.x_to)) return nullptr;
    const auto outside = [](int32_t slot) { return slot < 0 || slot >= SLOTS; };
    if (outside(c.x) || outside(c.u) || outside(c.u_to) || c.x_to >= SLOTS) break;
    c.evaluate = PyObject_IsTrue(item(6)) == 1, c.keep = PyObject_IsTrue(item(7)) == 1;
    found.push_back(c);
  }
  if (Py_ssize_t(found.size()) != stages + 1) {
    PyErr_SetString(PyExc_TypeError, "course: expected the opening and a tuple of stages, as a `Program` has them");
    return nullptr;
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(found.data()),
                                   Py_ssize_t(found.size() * sizeof(Course)));
}

// The type `Walk` of a module, whose stages go through `launch`.
template <LaunchStage launch>
void add_type(pybind11::module_ &module) {
  static PyMethodDef methods[] = {
      {"run", run, METH_O, "Call the network until all is done, which returns None, or an output is not taken: that."},
      {"take", take_output, METH_O, "Whether an output of the network was taken, and all done up to the next."},
      {"history", history, METH_NOARGS, "[(tensor, address, storage, version)] of the kept values, newest first."},
      {"open", open, METH_O, "Begin with the state at this address."},
      fast_function("resume", resume, "(k, x, history): go on before stage k."),
      {nullptr, nullptr, 0, nullptr}};
  static PyMemberDef members[] = {
      {const_cast<char *>("k"), T_PYSSIZET, offsetof(Walk, k), READONLY, nullptr},
      {const_cast<char *>("x"), T_OBJECT, offsetof(Walk, x), READONLY, nullptr},
      {const_cast<char *>("version"), T_LONGLONG, offsetof(Walk, version), READONLY, nullptr},
      {nullptr, 0, 0, 0, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void *>(make<launch>)},
                                {Py_tp_dealloc, reinterpret_cast<void *>(destroy)},
                                {Py_tp_methods, methods},
                                {Py_tp_members, members},
                                {0, nullptr}};
  static PyType_Spec spec = {"fastdiff.Walk", int(sizeof(Walk)), 0, Py_TPFLAGS_DEFAULT, slots};
  PyObject *const type = PyType_FromSpec(&spec);
  if (!type) throw pybind11::error_already_set();
  module.add_object("Walk", pybind11::reinterpret_steal<pybind11::object>(type));
}

}  // namespace walking
}  // namespace fastdiff
