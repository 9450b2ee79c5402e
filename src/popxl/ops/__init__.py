"""The ops of PopXL: each adds to the current graph and returns the new tensors."""

from popxl.ops import collectives, index, utils, var_updates
from popxl.ops._windows import PadType
from popxl.ops.activations import gelu, gelu_, geluerf, geluerf_, relu, relu_, swish, swish_, tanh
from popxl.ops.arg_extremes import argmax, argmin
from popxl.ops.batch_norm import batch_norm_inference
from popxl.ops.binary import add, add_, div, fmod, mul, sub
from popxl.ops.call import call, call_with_info
from popxl.ops.casting import cast
from popxl.ops.classify import isfinite, isinf, isnan
from popxl.ops.code_copy import remote_code_load
from popxl.ops.comparison import equal, greater, maximum, where
from popxl.ops.conditional import conditional, conditional_with_info
from popxl.ops.conv import conv, conv_pow2scaled, conv_transpose, conv_transpose_pow2scaled
from popxl.ops.copies import io_tile_copy, ipu_copy
from popxl.ops.cumulative import cumsum
from popxl.ops.dropouts import dropout, shaped_dropout
from popxl.ops.dynamic import dynamic_slice, dynamic_update, dynamic_update_
from popxl.ops.float8 import matmul_pow2scaled, pow2scale_cast_from_fp8, pow2scale_cast_to_fp8
from popxl.ops.gathers import gather, groupedgather, tied_gather
from popxl.ops.histograms import histogram
from popxl.ops.host import host_load, host_store, print_tensor
from popxl.ops.increment import increment_mod, increment_mod_
from popxl.ops.init import init
from popxl.ops.interpolation import interpolate
from popxl.ops.joining import concat, concat_, split
from popxl.ops.linalg import matmul
from popxl.ops.log_sums import logsum, logsumexp
from popxl.ops.logical import logical_and, logical_not, logical_or
from popxl.ops.medians import median
from popxl.ops.negative_log_likelihood import nll_loss, nll_loss_with_softmax_grad
from popxl.ops.nn import group_norm, layer_norm, softmax
from popxl.ops.norms import l1, l2, lamb_square, sumsquare
from popxl.ops.onehots import onehot
from popxl.ops.pooling import average_pool, max_pool
from popxl.ops.power import pow
from popxl.ops.random_seed import split_random_seed
from popxl.ops.randoms import random_normal, random_uniform
from popxl.ops.ranking import topk
from popxl.ops.reduce import max, mean, min, prod, sum
from popxl.ops.regions import roi_align
from popxl.ops.remote import remote_load, remote_load_, remote_store
from popxl.ops.repeat import repeat, repeat_with_info
from popxl.ops.rounding import abs, ceil, clamp, clip, floor, sign
from popxl.ops.scaled import scaled_add, scaled_add_
from popxl.ops.scatter_reductions import ScatterReductionType, scatter_reduce
from popxl.ops.scatters import scatter
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
from popxl.ops.unary import cos, exp, exp_, identity, log, log2, negate, rename, sin, sqrt

__all__ = [
    "PadType",
    "ScatterReductionType",
    "abs",
    "add",
    "add_",
    "argmax",
    "argmin",
    "average_pool",
    "batch_norm_inference",
    "call",
    "call_with_info",
    "cast",
    "ceil",
    "clamp",
    "clip",
    "collectives",
    "concat",
    "concat_",
    "conditional",
    "conditional_with_info",
    "conv",
    "conv_pow2scaled",
    "conv_transpose",
    "conv_transpose_pow2scaled",
    "cos",
    "cumsum",
    "detach",
    "detach_",
    "div",
    "dropout",
    "dynamic_slice",
    "dynamic_update",
    "dynamic_update_",
    "equal",
    "exp",
    "exp_",
    "flatten",
    "flatten_",
    "floor",
    "fmod",
    "gather",
    "gelu",
    "gelu_",
    "geluerf",
    "geluerf_",
    "greater",
    "group_norm",
    "groupedgather",
    "histogram",
    "host_load",
    "host_store",
    "identity",
    "increment_mod",
    "increment_mod_",
    "index",
    "init",
    "interpolate",
    "io_tile_copy",
    "ipu_copy",
    "isfinite",
    "isinf",
    "isnan",
    "l1",
    "l2",
    "lamb_square",
    "layer_norm",
    "log",
    "log2",
    "logical_and",
    "logical_not",
    "logical_or",
    "logsum",
    "logsumexp",
    "matmul",
    "matmul_pow2scaled",
    "max",
    "max_pool",
    "maximum",
    "mean",
    "median",
    "min",
    "mul",
    "negate",
    "nll_loss",
    "nll_loss_with_softmax_grad",
    "onehot",
    "pow",
    "pow2scale_cast_from_fp8",
    "pow2scale_cast_to_fp8",
    "print_tensor",
    "prod",
    "random_normal",
    "random_uniform",
    "relu",
    "relu_",
    "remote_code_load",
    "remote_load",
    "remote_load_",
    "remote_store",
    "rename",
    "repeat",
    "repeat_with_info",
    "reshape",
    "reshape_",
    "roi_align",
    "scaled_add",
    "scaled_add_",
    "scatter",
    "scatter_reduce",
    "shaped_dropout",
    "sign",
    "sin",
    "slice",
    "slice_",
    "softmax",
    "split",
    "split_random_seed",
    "sqrt",
    "squeeze",
    "sub",
    "subsample",
    "sum",
    "sumsquare",
    "swish",
    "swish_",
    "tanh",
    "tied_gather",
    "topk",
    "transpose",
    "transpose_",
    "utils",
    "var_updates",
    "where",
]
