"""NVIDIA's bindings have what we name: TensorRT 10 and 11, whose libraries need not be here.

The bindings are the real ones; of the libraries behind them they only want ten functions, which
are compiled here and never called.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_e2eai import engine
from mlflow_e2eai.engine.backends import BACKENDS

WANTED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getInferLibVersion",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)

LOOK = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
def there(name):
    at = trt
    for part in name.split("."):
        if not hasattr(at, part):
            return False
        at = getattr(at, part)
    return True
print(json.dumps([trt.__version__, [name for name in json.load(sys.stdin) if not there(name)]]))
"""

CLASSES = {
    "builder": "Builder",
    "cache": "IRuntimeCache",
    "config": "IBuilderConfig",
    "execution": "IExecutionContext",
    "first": "ParserError",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "loaded": "ICudaEngine",
    "measured": "ITimingCache",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "reader": "OnnxParserRefitter",
    "refitter": "Refitter",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "result": "ITensor",
}
"""What the variables of mlflow_e2eai/engine/ that hold TensorRT's objects are called."""

ONLY_RTX = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "EngineInvalidityDiagnostics",
    "EngineInvalidityDiagnostics.__members__",
    "EngineInvalidityDiagnostics.__members__.items",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
    "Runtime.get_engine_validity",
}
"""What the code names for TensorRT-RTX alone, where the table says that it has it."""


def names_in(path):
    """What a file of the engine's names of TensorRT, as ``Builder.create_network``."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        owner, *parts = ast.unparse(node).removeprefix("self._").split(".")
        if owner == "trt" and all(part.isidentifier() for part in parts):
            yield ".".join(parts)
        elif owner in CLASSES and parts:
            yield f"{CLASSES[owner]}.{parts[0]}"


FILES = sorted(Path(engine.__file__).parent.glob("*.py"))
NAMES = {name for path in FILES for name in names_in(path)}
TABLE = ("capability_targets", "compatibility", "graph_capture", "kernel_specialisation")
TABLE += ("plugins", "timing_cache", "validity")


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """A folder with libraries that have what the bindings want of them."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("stubs")
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in WANTED))
    for major in (10, 11):
        for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            name = f"lib{library}.so.{major}"
            words = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source]
            subprocess.run([compiler, *words], check=True)
    return folder


@pytest.fixture(params=["10.16.1.11", "11.4.0.106", "rtx"])
def bindings(request, stubs):
    """One version of the bindings: its backend, and what it lacks of some names."""
    module, env = "tensorrt_rtx", dict(os.environ)
    if request.param == "rtx":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    else:
        folder = Path(sys.prefix, f"bindings-{request.param.split('.')[0]}")
        if not folder.exists():
            pytest.skip("the bindings are not here; `make unit` brings them")
        module = "tensorrt_bindings"
        env |= {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(folder)}

    def missing(names):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", LOOK, module],
            input=json.dumps(sorted(names)),
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        version, lacking = json.loads(done.stdout)
        assert request.param in ("rtx", version)
        assert int(version.split(".")[0]) in backend.versions
        return set(lacking)

    backend = BACKENDS["tensorrt_rtx" if request.param == "rtx" else "tensorrt"]
    return backend, missing


def test_the_names_that_the_code_uses_are_found_in_it():
    assert {
        "Builder.build_serialized_network",
        "BuilderFlag.TF32",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "ICudaEngine.create_execution_context",
        "IRuntimeConfig.cuda_graph_strategy",
        "IExecutionContext.execute_async_v3",
        "ILogger.Severity.INTERNAL_ERROR",
        "IPluginRegistry.load_library",
        "ITensor.dtype",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParserRefitter.refit_from_file",
        "OnnxParser.parse_from_file",
        "ParserError.node_operator",
        "Runtime.deserialize_cuda_engine",
    } <= NAMES


def test_every_name_that_the_code_uses_exists(bindings):
    backend, missing = bindings
    assert missing(NAMES) == (set() if backend.module == "tensorrt_rtx" else ONLY_RTX)


def test_the_table_says_what_each_version_has_and_lacks(bindings):
    backend, missing = bindings
    named = {
        field: getattr(row, field)
        for row in BACKENDS.values()
        for field in TABLE
        if getattr(row, field)
    }
    assert set(named) == set(TABLE)
    lacking = missing(named.values())
    for field, name in named.items():
        has = name not in lacking
        # TensorRT-RTX has them and says that they are not supported, or deprecated.
        there = field in ("compatibility", "timing_cache")
        assert has == (getattr(backend, field) == name or there)


def test_flags_are_never_written_as_numbers():
    """TensorRT 10 and 11 number theirs differently."""
    flagged = ("builder.create_network", "config.set_flag", "config.clear_flag", "config.get_flag")
    calls = [
        node
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in flagged
    ]
    assert {ast.unparse(call.func) for call in calls} >= {"builder.create_network"}
    words = [word for call in calls for argument in call.args for word in ast.walk(argument)]
    assert not any(isinstance(word, ast.Constant) for word in words)
