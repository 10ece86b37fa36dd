"""What is simulated has the names that the real TensorRT-RTX has."""

import inspect

import pytest
import simulated_tensorrt
import tensorrt_rtx

SIMULATED = {
    name: kind
    for name, kind in vars(simulated_tensorrt).items()
    if inspect.isclass(kind) and kind.__module__ == "simulated_tensorrt"
}


def test_the_classes_are_found():
    assert {"Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig"} <= set(SIMULATED)


@pytest.mark.parametrize("name", SIMULATED)
def test_every_name_of_a_simulated_class_is_one_of_the_real_class(name):
    public = {each for each in vars(SIMULATED[name]) if not each.startswith("_")}
    assert public <= set(dir(getattr(tensorrt_rtx, name)))
