#include "quick.h"

#include <ATen/dlpack.h>  // a plain header of C

#include <stdexcept>
#include <vector>

#include "ops/bound_call.h"

namespace py = pybind11;

namespace sparseprune {
namespace {

constexpr Py_ssize_t kAhead = 12;  // rows of which the dicts, and then their keys, are fetched

PyDictObject* dict_at(PyObject* list, Py_ssize_t i) {
  PyObject* dict = PyList_GET_ITEM(list, i);
  if (!PyDict_Check(dict)) throw py::type_error("standing: lists must begin rows with dicts");
  return reinterpret_cast<PyDictObject*>(dict);
}

void fetch(PyObject* list, Py_ssize_t i, Py_ssize_t row) {
  const Py_ssize_t size = PyList_GET_SIZE(list), ahead = i + row * kAhead;
  if (ahead < size) {
    __builtin_prefetch(dict_at(list, ahead)->ma_keys);
    __builtin_prefetch(dict_at(list, ahead)->ma_values);
  }
  if (ahead + row * kAhead < size) __builtin_prefetch(PyList_GET_ITEM(list, ahead + row * kAhead));
}

bool held(PyObject* rows) {
  for (Py_ssize_t i = 0; i + 2 < PyList_GET_SIZE(rows); i += 3) {
    fetch(rows, i, 3);
    auto* dict = reinterpret_cast<PyObject*>(dict_at(rows, i));
    PyObject* value = PyDict_GetItemWithError(dict, PyList_GET_ITEM(rows, i + 1));
    if (!value && PyErr_Occurred()) throw py::error_already_set();
    if (value != PyList_GET_ITEM(rows, i + 2)) return false;
  }
  return true;
}

bool sized(PyObject* sizes) {
  for (Py_ssize_t i = 0; i + 1 < PyList_GET_SIZE(sizes); i += 2) {
    fetch(sizes, i, 2);
    if (dict_at(sizes, i)->ma_used != PyLong_AsSsize_t(PyList_GET_ITEM(sizes, i + 1))) return false;
  }
  return true;
}

py::object attribute(PyObject* of, PyObject* name) {
  auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(of, name));
  if (!found) throw py::error_already_set();
  return found;
}

bool at_version(const py::list& versions) {
  static PyObject* const name = PyUnicode_InternFromString("_version");
  for (size_t i = 0; i + 1 < versions.size(); i += 2)
    if (!attribute(versions[i].ptr(), name).equal(versions[i + 1])) return false;
  return true;
}

bool contiguous(const DLTensor& x) {
  if (!x.strides) return true;
  int64_t floats = 1;
  for (int64_t d = x.ndim - 1; d >= 0; --d) {
    if (x.shape[d] != 1 && x.strides[d] != floats) return false;
    floats *= x.shape[d];
  }
  return true;
}

// A tensor of exactly torch's class; its subclasses have ways of their own.
bool fits(const DLPackExchangeAPI& api, PyObject* x, const py::handle& type, DLTensor& view) {
  static PyObject* const needs_grad = PyUnicode_InternFromString("requires_grad");
  if (reinterpret_cast<PyObject*>(Py_TYPE(x)) != type.ptr()) return false;
  if (attribute(x, needs_grad).ptr() != Py_False) return false;
  if (api.dltensor_from_py_object_no_sync(x, &view)) {
    PyErr_Clear();
    return false;
  }
  return view.device.device_type == kDLCPU && view.dtype.code == kDLFloat &&
         view.dtype.bits == 32 && view.dtype.lanes == 1 && contiguous(view);
}

const float* data(const DLTensor& x) {
  return reinterpret_cast<const float*>(static_cast<const char*>(x.data) + x.byte_offset);
}

// Tensors that torch makes.
class Outputs {
 public:
  Outputs(const DLPackExchangeAPI& api, const py::handle& empty) : api_(api), empty_(empty) {}

  static float* allocate(void* self, const int64_t* sizes, int64_t rank) {
    const py::gil_scoped_acquire python;
    return static_cast<Outputs*>(self)->add(sizes, rank);
  }

  py::list made;

 private:
  float* add(const int64_t* sizes, int64_t rank) {
    py::tuple shape(rank);
    for (int64_t d = 0; d < rank; ++d) shape[d] = sizes[d];
    made.append(empty_(shape));
    DLTensor view;
    if (api_.dltensor_from_py_object_no_sync(made[made.size() - 1].ptr(), &view))
      throw py::error_already_set();
    return const_cast<float*>(data(view));
  }

  const DLPackExchangeAPI& api_;
  py::handle empty_;
};

}  // namespace

bool standing(const py::list& rows, const py::list& sizes, const py::list& versions) {
  return held(rows.ptr()) && sized(sizes.ptr()) && at_version(versions);
}

bool exchanges(const py::capsule& exchange) {
  const auto& api = *exchange.get_pointer<DLPackExchangeAPI>();
  return api.header.version.major == DLPACK_MAJOR_VERSION && api.dltensor_from_py_object_no_sync;
}

py::object run_bound(const py::capsule& exchange, std::uintptr_t function, int64_t number,
                     const py::handle& type, const py::handle& empty, const py::tuple& args) {
  const auto& api = *exchange.get_pointer<DLPackExchangeAPI>();
  std::vector<DLTensor> views(args.size());
  std::vector<const float*> x;
  std::vector<const int64_t*> sizes;
  std::vector<int64_t> counts;
  for (size_t i = 0; i < args.size(); ++i) {
    if (!fits(api, args[i].ptr(), type, views[i])) return py::none();
    x.push_back(data(views[i])), sizes.push_back(views[i].shape), counts.push_back(views[i].ndim);
  }
  Outputs outputs(api, empty);
  const BoundCall call{number,        static_cast<int64_t>(x.size()),
                       x.data(),      sizes.data(),
                       counts.data(), Outputs::allocate,
                       &outputs};
  const char* wrong = nullptr;
  {
    const py::gil_scoped_release others_may_run;
    wrong = reinterpret_cast<RunBound>(function)(&call);
  }
  if (wrong) throw std::runtime_error(wrong);
  return outputs.made;
}

}  // namespace sparseprune
