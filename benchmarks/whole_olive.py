"""One run of Olive on the CNN of benchmarks/whole.py, in Olive's own environment.

``python whole_olive.py FOLDER`` prints the seconds of the call and of its imports as JSON, and
leaves ``model/model.onnx`` in the folder.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def configuration(folder: Path, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Olive's own defaults, but for what is said here: the passes, the opset, and the CPU.

    Args:
        folder: Where the cache and the result go.
        name: Name of the input.
        shape: Its shape.
    """
    inputs = {"input_names": [name], "input_shapes": [list(shape)], "input_types": ["float32"]}
    return {
        "input_model": {
            "type": "PyTorchModel",
            "model_loader": "build",
            "model_script": str(HERE / "whole_model.py"),
            "io_config": {
                **inputs,
                "output_names": ["output"],
                "dynamic_axes": {name: {"0": "N"}, "output": {"0": "N"}},
            },
        },
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [
                    {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
                ],
            }
        },
        "data_configs": [
            {"name": "normals", "type": "DummyDataContainer", "load_dataset_config": inputs}
        ],
        "evaluators": {
            "speed": {
                "metrics": [
                    {
                        "name": "latency",
                        "type": "latency",
                        "data_config": "normals",
                        "sub_types": [{"name": "avg"}],
                    }
                ]
            }
        },
        "passes": {
            "conversion": {"type": "OnnxConversion", "target_opset": 18},
            "peephole": {"type": "OnnxPeepholeOptimizer"},
            "fp16": {"type": "OnnxFloatToFloat16", "keep_io_types": True},
        },
        "engine": {
            "host": "here",
            "target": "here",
            "evaluator": "speed",
            "cache_dir": str(folder / "cache"),
            "output_dir": str(folder / "model"),
        },
    }


def main(folder: Path) -> None:
    """Run Olive once, and print what it took."""
    started = time.perf_counter()
    from olive.workflows import run

    imported = time.perf_counter()
    import whole_model

    config = configuration(folder, whole_model.NAME, whole_model.SHAPE)
    begun = time.perf_counter()
    run(config)
    ended = time.perf_counter()
    print(json.dumps({"imports": imported - started, "call": ended - begun}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
