"""The names and module paths that a program can import (spec core.md §1)."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import popxl
import popxl.testing

NAMES = """
    get_current_graph get_main_graph get_ir gcg gmg gir in_sequence name_scope ipu io_tiles
    dtype bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 half float8_143 float8_152 float16 float float32
    double float64 complex64 complex128
    Graph Ir Module create_seeds RemoteBuffer remote_buffer ReplicaGrouping
    HostToDeviceStream DeviceToHostStream h2d_stream d2h_stream
    Tensor variable remote_variable remote_replica_sharded_variable replica_sharded_variable replica_sharded_buffer
    constant graph_input graph_output TensorByRef TensorSpec
    TensorStorage TensorLocation ReplicatedTensorSharding TileSet ExecutionContext
    Session __version__ transforms
"""

SUBMODULES = """
    context dtypes errors fp8_utils graph ir module ops random_seed replica_grouping session streams tensor
    tensorlocation transforms typing_ utils
"""

# Module, and the names that programs and companion libraries take from it.
PATHS = {
    "popxl.tensor": "Tensor Variable Constant TensorSpec TensorByRef HostTensor HostScalarTensor ScalarType TensorLike "
    "host_tensor_types constant variable remote_variable remote_replica_sharded_variable replica_sharded_variable "
    "replica_sharded_buffer graph_input graph_output",
    "popxl.dtypes": "dtype float8_143 np_dtype_float8_143 np_dtype_float8_152",
    "popxl.context": "get_current_context debug_context_frame_offset op_debug_context get_source_location "
    "_execution_context get_current_graph get_main_graph get_ir gcg gmg gir in_sequence name_scope ipu io_tiles",
    "popxl.streams": "Stream HostToDeviceStream DeviceToHostStream h2d_stream d2h_stream",
    "popxl.remote_buffer": "RemoteBuffer remote_buffer",
    "popxl.replica_grouping": "ReplicaGrouping",
    "popxl.session": "Session",
    "popxl.graph": "Graph",
    "popxl.ir": "Ir",
    "popxl.module": "Module",
    "popxl.errors": "UndefinedValue",
    "popxl.utils": "to_numpy table_to_string downcast_np_dtypes np_dtype_float8_143 np_dtype_float8_152 "
    "host_pow2scale_cast_to_fp8",
    "popxl.fp8_utils": "host_pow2scale_cast_to_fp8 host_pow2scale_cast_from_fp8 host_fp8_mse_scale "
    "host_fp8_mse_scale_pb",
    "popxl.tensorlocation": "TensorStorage TensorLocation ReplicatedTensorSharding TileSet ExecutionContext",
    "popxl.typing_": "NewAliasAnnotation",
    "popxl.random_seed": "create_seeds",
    "popxl.ops.utils": "check_in_graph check_tensor_ipu_and_tile_set cast_if_needed handle_negative_axis",
    "popxl.ops.call": "call call_with_info CallSiteInfo",
    "popxl.ops.conditional": "conditional conditional_with_info ConditionalSiteInfo",
    "popxl.ops.var_updates": "accumulate_ copy_var_update_",
    "popxl.transforms": "merge_exchange io_tile_exchange",
    "popxl.testing": "get_all_dtypes get_all_int_dtypes",
}


@pytest.mark.parametrize("name", NAMES.split())
def test_name_is_exported(name: str) -> None:
    assert hasattr(popxl, name)


def test_all_lists_every_documented_name() -> None:
    assert set(NAMES.split()) <= set(popxl.__all__)


def test_all_lists_only_what_is_there() -> None:
    assert [name for name in popxl.__all__ if not hasattr(popxl, name)] == []


@pytest.mark.parametrize("name", ["Variable", "Constant", "int", "str", "bfloat16"])
def test_name_is_not_at_the_top(name: str) -> None:
    assert not hasattr(popxl, name)


def test_import_loads_the_submodules_and_leaves_testing_alone() -> None:
    code = f"""
import popxl
print([name for name in {SUBMODULES.split()} if type(getattr(popxl, name)).__name__ != "module"])
print(hasattr(popxl, "testing"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


@pytest.mark.parametrize(("module", "names"), PATHS.items())
def test_module_path_provides_its_names(module: str, names: str) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(loaded, name)] == []


def test_function_remote_buffer_shadows_its_module_and_both_work() -> None:
    assert callable(popxl.remote_buffer)
    assert importlib.import_module("popxl.remote_buffer").RemoteBuffer is popxl.RemoteBuffer


def test_functions_of_ops_shadow_their_modules_and_both_work() -> None:
    from popxl import ops

    assert callable(ops.call)
    assert callable(ops.conditional)
    assert importlib.import_module("popxl.ops.call").call is ops.call


def test_aliases_are_the_same_objects() -> None:
    assert popxl.gcg is popxl.get_current_graph
    assert popxl.gmg is popxl.get_main_graph
    assert popxl.gir is popxl.get_ir
    assert popxl.half is popxl.float16
    assert popxl.float is popxl.float32
    assert popxl.double is popxl.float64


def test_version_is_text() -> None:
    assert isinstance(popxl.__version__, str)


def test_unknown_name_of_tensor_module_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        importlib.import_module("popxl.tensor").no_such_name  # noqa: B018 - the access is the test


def test_undefined_value_is_an_exception() -> None:
    assert issubclass(popxl.errors.UndefinedValue, Exception)
