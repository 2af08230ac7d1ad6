"""What a checkpoint's files hold: lossless JSON for documents, safetensors for tensors. Neither can carry code."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.errors import CheckpointError

# An object that holds exactly one of these keys is not a plain dictionary but an encoded value.
_TAGS = ("__bytes__", "__dict__", "__float__", "__int__", "__ndarray__", "__scalar__", "__tuple__")
_DTYPE = re.compile(r"[<>|=]?([biufcSU?]\d*|[mM]8(\[\d*[a-zA-Zμ]+\])?)")

DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Tensor types and their safetensors names, widest first: the order in which they lie in the file."""


def encode(value: Any, where: str = "document") -> Any:
    """Turn a value into plain JSON that :func:`decode` turns back into exactly that value.

    Beyond JSON it takes bytes, tuples, numpy arrays and scalars, integers of any size, non-finite floats and
    dictionaries with keys that are not strings: what states of environments and of random generators are made of.

    A bytearray comes back as bytes, an array in C order.

    Raises:
        TypeError: the value holds something else (a tensor, an object); the message says where.

    >>> decode(encode({"state": 2**100, "buffer": b"x", "at": (1, float("inf"))}))
    {'state': 1267650600228229401496703205376, 'buffer': b'x', 'at': (1, inf)}
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else {"__int__": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"__float__": repr(value)}
    if kind in (bytes, bytearray):
        return {"__bytes__": base64.b64encode(value).decode()}
    if kind is list:
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is tuple:
        return {"__tuple__": [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, (np.ndarray, np.generic)):
        return _encode_numpy(value, where)
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value) and not any(tag in value for tag in _TAGS):
            return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
        return {"__dict__": [[encode(k, where), encode(item, f"{where}[{k!r}]")] for k, item in value.items()]}
    raise TypeError(
        f"{where} holds a {kind.__module__}.{kind.__qualname__}, which a document cannot; use numbers, text, bytes, "
        "lists, dictionaries or numpy arrays (tensors have files of their own)"
    )


def _encode_numpy(value: np.ndarray | np.generic, where: str) -> dict[str, Any]:
    array = np.asarray(value)
    if not _DTYPE.fullmatch(array.dtype.str):
        raise TypeError(f"{where} has numpy dtype {array.dtype}, which a document cannot hold; use plain numbers")
    tag = "__scalar__" if isinstance(value, np.generic) else "__ndarray__"
    data = base64.b64encode(array.tobytes()).decode()
    return {tag: data, "dtype": array.dtype.str, "shape": list(array.shape)}


def decode(value: Any) -> Any:
    """The inverse of :func:`encode`.

    Raises:
        ValueError: an encoded value makes no sense (wrong length, unknown dtype).
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in _TAGS if key in value), None)
    if tag is None:
        return {key: decode(item) for key, item in value.items()}
    try:
        return _decode_tagged(tag, value)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"an encoded {tag} that makes no sense: {error}") from error


def _decode_tagged(tag: str, value: dict[str, Any]) -> Any:
    held = value[tag]
    if tag == "__int__":
        return int(held, 16)
    if tag == "__float__":
        return float(held)
    if tag == "__bytes__":
        return base64.b64decode(held, validate=True)
    if tag == "__tuple__":
        return tuple(decode(item) for item in held)
    if tag == "__dict__":
        return {decode(key): decode(item) for key, item in held}
    if not _DTYPE.fullmatch(value["dtype"]):
        raise ValueError(f"numpy dtype {value['dtype']!r} is not a plain one")
    data = bytearray(base64.b64decode(held, validate=True))
    array = np.ndarray(tuple(value["shape"]), dtype=np.dtype(value["dtype"]), buffer=data)
    if array.nbytes != len(data):
        raise ValueError(f"{len(data)} bytes for a {value['dtype']} array of shape {array.shape}")
    return array[()] if tag == "__scalar__" else array


def dump_document(value: Any, where: str = "document") -> bytes:
    """A value as the bytes of a JSON file, keys in the order given."""
    return (json.dumps(encode(value, where), allow_nan=False, separators=(",", ":")) + "\n").encode()


def load_document(path: Path) -> Any:
    """Read back what :func:`dump_document` wrote.

    Raises:
        CheckpointError: the file is missing or is not such a document.
    """
    try:
        return decode(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as a document: {error}") from error


def tensor_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, tensor by tensor, so that no second copy of the whole is ever held.

    Layout: header length (u64, little endian), JSON header, padding to 8 bytes, then the tensors in C order.

    Raises:
        TypeError: a value is not a dense tensor of a type that safetensors knows.
    """
    if "__metadata__" in tensors:
        raise TypeError("a tensor cannot be named '__metadata__', safetensors uses that name itself")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.dtype not in DTYPES:
            kind = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name!r} must be a dense tensor of numbers, got {kind}; numbers go into documents")
    rank = {dtype: i for i, dtype in enumerate(DTYPES)}
    names = sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name))
    header: dict[str, Any] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        if tensors[name].numel():
            flat = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """About how many bytes :func:`tensor_chunks` makes."""
    return sum(tensor.numel() * tensor.element_size() + 120 + len(name) for name, tensor in tensors.items()) + 8
