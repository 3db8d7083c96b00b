"""ggml's own matrix product, of one layer at a time: the library that llama.cpp computes with, called where it lies."""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

MISSING: Final = "llama.cpp comes with the package xllamacpp, which is not installed"
ROOM: Final = 2**20  # bytes for a graph of one node, and its tensors' descriptions


class Parameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@cache
def library() -> Any:
    """Raises ImportError where xllamacpp is not installed."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ImportError(MISSING, name="xllamacpp")
    files = list(Path(spec.origin).parent.glob("*.so"))
    if not files:
        raise ImportError("the library of xllamacpp is called through Linux and macOS alone", name="xllamacpp")
    found = ctypes.CDLL(str(files[0]))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    for name, answer, arguments in (
        ("ggml_init", pointer, [Parameters]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, integer, integer]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_nbytes", ctypes.c_size_t, [pointer]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_new_graph", pointer, [pointer]),
        ("ggml_build_forward_expand", None, [pointer, pointer]),
        ("ggml_graph_compute_with_ctx", ctypes.c_int, [pointer, pointer, ctypes.c_int]),
        ("ggml_cpu_init", None, []),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = answer, arguments
    found.ggml_cpu_init()
    return found


def product(rows: NDArray[np.uint8], kind: str, x: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
    """x [n, in] times the transpose of a matrix [out, in] that lies in `rows`, uint8 [out, bytes], as ggml's type
    `kind`: [n, out]."""
    ggml = library()
    out, (count, columns) = len(rows), x.shape
    room = rows.nbytes + 4 * x.size + 8 * count * out + 64 * columns + ROOM
    context = ggml.ggml_init(Parameters(2 * room, None, False))
    try:
        weight = ggml.ggml_new_tensor_2d(context, int(gguf.GGMLQuantizationType[kind]), columns, out)
        inputs = ggml.ggml_new_tensor_2d(context, int(gguf.GGMLQuantizationType.F32), columns, count)
        assert (ggml.ggml_nbytes(weight), ggml.ggml_nbytes(inputs)) == (rows.nbytes, x.nbytes)
        for tensor, data in ((weight, rows), (inputs, x)):
            ctypes.memmove(ggml.ggml_get_data(tensor), np.ascontiguousarray(data).ctypes.data, data.nbytes)
        answer = ggml.ggml_mul_mat(context, weight, inputs)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, answer)
        if status := ggml.ggml_graph_compute_with_ctx(context, graph, threads):
            raise ValueError(f"ggml does not compute this product: it answers {status}")
        got = (ctypes.c_float * (count * out)).from_address(ggml.ggml_get_data(answer))
        return np.frombuffer(got, np.float32).reshape(count, out).copy()
    finally:
        ggml.ggml_free(context)
