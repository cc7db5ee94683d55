// Python module sparseprune._native: what this machine and this build can do, and what Python does
// slowly on every call. No torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernels/cpu/table.h"
#include "quick.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "CPU features and the table of compiled kernels.";
  m.def(
      "kernels",
      [] {
        py::list rows;
        for (const auto& row : sparseprune::kernel_table())
          rows.append(py::dict(py::arg("stem") = row.stem, py::arg("dtype") = row.dtype,
                               py::arg("isa") = sparseprune::isa_name(row.isa),
                               py::arg("supported") = row.isa <= sparseprune::detected_isa()));
        return rows;
      },
      "One dict per row of table.def, best first: stem, dtype, isa, supported by this CPU.");
  m.def(
      "detected_isa", [] { return sparseprune::isa_name(sparseprune::detected_isa()); },
      "The best instruction set level of this CPU: scalar, avx2 or avx512.");
  m.def(
      "current_isa", [] { return sparseprune::isa_name(sparseprune::current_isa()); },
      "The level in use: SPARSEPRUNE_ISA, or the best. Raises RuntimeError if that is unknown.");
  m.def("standing", sparseprune::standing, py::arg("rows"), py::arg("sizes"), py::arg("versions"),
        "Whether every dict of [dict, key, value, ...] holds this very value, every one of [dict, "
        "count, ...] so many, and every tensor of [tensor, version, ...] was not written to.");
  m.def("exchanges", sparseprune::exchanges, py::arg("exchange"),
        "Whether run_bound can read tensors by this Tensor.__dlpack_c_exchange_api__.");
  m.def("run_bound", sparseprune::run_bound, py::arg("exchange"), py::arg("function"),
        py::arg("number"), py::arg("type"), py::arg("empty"), py::arg("args"),
        "The outputs of a bound program, without torch's dispatcher. None where args are not "
        "contiguous float32 tensors of this very type on the CPU that need no gradient.");
}
