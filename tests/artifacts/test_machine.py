import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_e2eai.artifacts import machine
from mlflow_e2eai.artifacts.machine import driver_version, gpu_name, processors
from mlflow_e2eai.flavor.run_context import GpuContext

INFORMATION = """\
Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 186
GPU UUID: \t GPU-00000000-0000-0000-0000-000000000000
Video BIOS: \t 96.00.74.00.01
Bus Type: \t PCIe
"""

CLOSED = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
"""

OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (builder@U16)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""

OPEN_ARM = """\
NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.65.06  Release Build  (builder@U22)
"""


def write_gpu(driver: Path, address: str, text: str) -> None:
    (driver / "gpus" / address).mkdir(parents=True)
    (driver / "gpus" / address / "information").write_text(text, encoding="utf-8")


def test_the_gpu_has_the_name_that_its_driver_gives_it(tmp_path):
    write_gpu(tmp_path, "0000:04:00.0", INFORMATION)

    assert gpu_name(tmp_path) == "NVIDIA H100 80GB HBM3"


def test_of_several_gpus_the_first_by_bus_address_is_named(tmp_path):
    write_gpu(tmp_path, "0000:81:00.0", "Model: \t\t NVIDIA T4\n")
    write_gpu(tmp_path, "0000:04:00.0", "Model: \t\t NVIDIA L4\n")

    assert gpu_name(tmp_path) == "NVIDIA L4"


def test_a_gpu_that_says_nothing_is_passed_over_for_one_that_does(tmp_path):
    write_gpu(tmp_path, "0000:04:00.0", "")
    write_gpu(tmp_path, "0000:81:00.0", "Model: \t\t NVIDIA T4\n")

    assert gpu_name(tmp_path) == "NVIDIA T4"


@pytest.mark.parametrize("text", ["", "IRQ: 5\n", "Model:", "Model: \t\t \nIRQ:   \t\t 186\n"])
def test_a_gpu_whose_information_names_no_model_has_no_name(tmp_path, text):
    write_gpu(tmp_path, "0000:04:00.0", text)

    assert gpu_name(tmp_path) is None


def test_a_folder_in_the_place_of_the_information_is_no_gpu(tmp_path):
    (tmp_path / "gpus" / "0000:04:00.0" / "information").mkdir(parents=True)

    assert gpu_name(tmp_path) is None


def test_bytes_that_are_no_text_break_nothing(tmp_path):
    write_gpu(tmp_path, "0000:04:00.0", INFORMATION)
    (tmp_path / "gpus" / "0000:04:00.0" / "information").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "version").write_bytes(b"\xff\xfe\x00")

    assert (gpu_name(tmp_path), driver_version(tmp_path)) == (None, None)


@pytest.mark.parametrize(
    ("text", "version"),
    [(CLOSED, "535.129.03"), (OPEN, "570.86.15"), (OPEN_ARM, "580.65.06")],
    ids=["closed", "open", "open on Arm"],
)
def test_the_driver_has_the_version_that_its_kernel_module_says(tmp_path, text, version):
    (tmp_path / "version").write_text(text, encoding="utf-8")

    assert driver_version(tmp_path) == version


@pytest.mark.parametrize(
    "text", ["", "NVRM version: unknown\n", "GCC version:  gcc version 12.2.0\n"]
)
def test_a_broken_version_file_is_no_version(tmp_path, text):
    (tmp_path / "version").write_text(text, encoding="utf-8")

    assert driver_version(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "0 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu.max": "200000 0"}, 8),
        ({"cpu.max": "broken"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000"}, 8),
    ],
)
def test_a_container_with_a_quota_has_as_many_processors_as_that_lets_run(
    files, count, tmp_path, monkeypatch
):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    assert processors(tmp_path) == count


def test_an_environment_names_what_limits_the_threads_of_pytorch(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    known = machine.environment()
    assert known["omp_num_threads"] == "3"
    assert "mkl_num_threads" not in known


def test_a_machine_without_the_driver_has_neither(tmp_path):
    nowhere = tmp_path / "absent"

    assert (gpu_name(nowhere), driver_version(nowhere)) == (None, None)


def test_the_provider_says_what_is_known(monkeypatch):
    monkeypatch.setattr(machine, "gpu_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(machine, "driver_version", lambda: "570.86.15")

    assert GpuContext().in_context() is True
    assert GpuContext().tags() == {
        "e2eai.gpu_name": "NVIDIA L4",
        "e2eai.driver_version": "570.86.15",
    }


def test_the_provider_leaves_out_what_is_unknown(monkeypatch):
    monkeypatch.setattr(machine, "gpu_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(machine, "driver_version", lambda: None)

    assert GpuContext().in_context() is True
    assert GpuContext().tags() == {"e2eai.gpu_name": "NVIDIA L4"}


def test_the_provider_is_out_of_context_where_nothing_is_known(monkeypatch):
    monkeypatch.setattr(machine, "gpu_name", lambda: None)
    monkeypatch.setattr(machine, "driver_version", lambda: None)

    assert GpuContext().in_context() is False
    assert GpuContext().tags() == {}


def test_the_provider_has_what_mlflow_asks_of_one():
    from mlflow.tracking.context.abstract_context import RunContextProvider

    asked = {n for n, f in vars(RunContextProvider).items() if hasattr(f, "__isabstractmethod__")}

    assert asked == {"in_context", "tags"}
    for method in asked:
        assert not inspect.signature(getattr(GpuContext(), method)).parameters


def test_mlflow_finds_the_provider_by_its_entry_point():
    from importlib.metadata import entry_points

    (found,) = entry_points(group="mlflow.run_context_provider", name="e2eai_gpu")

    assert found.load() is GpuContext


def test_the_module_is_written_with_the_standard_library_only():
    tree = ast.parse(inspect.getsource(machine))
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}

    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_importing_the_module_brings_nothing_but_the_package_itself():
    code = (
        "import sys; before = set(sys.modules); import mlflow_e2eai.flavor.run_context;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )

    assert done.stdout.split() == ["mlflow_e2eai"]


@pytest.mark.parametrize(
    ("flags", "instructions", "saturates"),
    [
        ("fpu sse4_1 avx avx2 fma", "avx2", True),
        ("avx avx2 avx512f avx512bw avx512vl", "avx512bw", True),
        ("avx2 avx512bw avx512_vnni", "avx512_vnni", False),
        ("avx2 avx_vnni", "avx_vnni", False),
        ("avx2 avx512_vnni amx_int8", "amx_int8", False),
        ("fpu sse2", None, True),
    ],
)
def test_a_processor_without_vnni_saturates(flags, instructions, saturates, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: {flags}\n", encoding="utf-8")
    found = machine.int8_instructions(file)
    monkeypatch.setattr(machine, "int8_instructions", lambda: found)
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")

    assert (found, machine.int8_saturates()) == (instructions, saturates)
