"""The ops of PopXL: each adds to the current graph and returns the new tensors."""

from popxl.ops import index, utils, var_updates
from popxl.ops.binary import add, add_, div, equal, fmod, greater, mul, sub, where
from popxl.ops.call import call, call_with_info
from popxl.ops.casting import cast
from popxl.ops.conditional import conditional, conditional_with_info
from popxl.ops.copies import io_tile_copy, ipu_copy
from popxl.ops.dynamic import dynamic_slice, dynamic_update, dynamic_update_
from popxl.ops.host import host_load, host_store, print_tensor
from popxl.ops.index import gather
from popxl.ops.init import init
from popxl.ops.joining import concat, concat_, split
from popxl.ops.linalg import matmul
from popxl.ops.logical import logical_and, logical_not, logical_or
from popxl.ops.nn import group_norm, layer_norm, softmax
from popxl.ops.power import pow
from popxl.ops.reduce import max, mean, sum
from popxl.ops.remote import remote_load, remote_load_, remote_store
from popxl.ops.repeat import repeat, repeat_with_info
from popxl.ops.shape import (
    detach,
    detach_,
    flatten,
    flatten_,
    reshape,
    reshape_,
    squeeze,
    transpose,
    transpose_,
)
from popxl.ops.slicing import slice, slice_, subsample
from popxl.ops.unary import (
    exp,
    exp_,
    gelu,
    gelu_,
    geluerf,
    geluerf_,
    identity,
    increment_mod,
    increment_mod_,
    log,
    negate,
    relu,
    relu_,
    rename,
    sqrt,
    tanh,
)

__all__ = [
    "add",
    "add_",
    "call",
    "call_with_info",
    "cast",
    "concat",
    "concat_",
    "conditional",
    "conditional_with_info",
    "detach",
    "detach_",
    "div",
    "dynamic_slice",
    "dynamic_update",
    "dynamic_update_",
    "equal",
    "exp",
    "exp_",
    "flatten",
    "flatten_",
    "fmod",
    "gather",
    "gelu",
    "gelu_",
    "geluerf",
    "geluerf_",
    "greater",
    "group_norm",
    "host_load",
    "host_store",
    "identity",
    "increment_mod",
    "increment_mod_",
    "index",
    "init",
    "io_tile_copy",
    "ipu_copy",
    "layer_norm",
    "log",
    "logical_and",
    "logical_not",
    "logical_or",
    "matmul",
    "max",
    "mean",
    "mul",
    "negate",
    "pow",
    "print_tensor",
    "relu",
    "relu_",
    "remote_load",
    "remote_load_",
    "remote_store",
    "rename",
    "repeat",
    "repeat_with_info",
    "reshape",
    "reshape_",
    "slice",
    "slice_",
    "softmax",
    "split",
    "sqrt",
    "squeeze",
    "sub",
    "subsample",
    "sum",
    "tanh",
    "transpose",
    "transpose_",
    "utils",
    "var_updates",
    "where",
]
