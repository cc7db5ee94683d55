// What a planned model asks and does on every call, where Python would be slow: after a program the
// caches hold nothing of the interpreter, and little of torch.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

namespace sparseprune {

// Whether every dict of [dict, key, value, ...] holds this very value, every one of
// [dict, count, ...] so many, and every tensor of [tensor, version, ...] was not written to.
bool standing(const pybind11::list& rows, const pybind11::list& sizes,
              const pybind11::list& versions);

// Whether torch's tensors can be read so: the version of DLPack that this was compiled with.
bool exchanges(const pybind11::capsule& exchange);

// The outputs of a bound program (ops/bound_call.h), a list; None where args do not fit it.
// `exchange` is Tensor.__dlpack_c_exchange_api__, `function` the address of sparseprune_run_bound.
pybind11::object run_bound(const pybind11::capsule& exchange, std::uintptr_t function,
                           int64_t number, const pybind11::handle& type,
                           const pybind11::handle& empty, const pybind11::tuple& args);

}  // namespace sparseprune
