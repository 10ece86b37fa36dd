"""No code of a model's author runs before the caller allows it by name."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from running_pickles import RUNNING, Command, edited, program
from small_models import AXES, features, net
from torch.nn import functional

import mlflow_e2eai
from mlflow_e2eai.cli import main
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.flavor import repackage
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.pytorch import consent
from mlflow_e2eai.pytorch.archives import load_archive
from mlflow_e2eai.tracking import sources


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "ran"


# Files


@pytest.mark.parametrize("way", RUNNING)
def test_a_file_that_runs_code_is_refused_before_it_is_loaded(way, tmp_path, mark):
    path = RUNNING[way](tmp_path, mark)
    with pytest.raises(InvalidInputError) as raised:
        load_archive(path, allow_pickle=False)
    assert "allow_pickle=True" in str(raised.value)
    assert not mark.exists()


@pytest.mark.parametrize("way", ["a pickle of torch.save", "an old pickle of torch.save"])
def test_it_is_loaded_where_the_caller_allows_it(way, tmp_path, mark):
    path = RUNNING[way](tmp_path, mark)
    with pytest.raises(InvalidInputError, match="no model to load them into"):
        load_archive(path, allow_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("a pickle of torch.save", "posix.system"),
        ("a pickle of protocol 5", "posix.system"),
        ("the example of a program", "posix.system"),
        ("a guard of a program", "__import__"),
        ("a library of a program", "model.so"),
    ],
)
def test_the_error_names_what_the_file_asks_for(way, name, tmp_path, mark):
    path = RUNNING[way](tmp_path, mark)
    with pytest.raises(InvalidInputError, match=name):
        load_archive(path, allow_pickle=False)


def test_digests_allow_their_files_and_no_others(tmp_path, mark, monkeypatch):
    monkeypatch.setattr(consent, "_permitted", set())
    path = RUNNING["a pickle of torch.save"](tmp_path, mark)
    with pytest.raises(InvalidInputError, match=r"names posix\.system"):
        consent.require_consent(path, allow_pickle=["0" * 64])
    digest = consent.sha256_of(path)
    assert consent.require_consent(path, allow_pickle=[digest]) == "a pickle"
    assert consent.permitted_digests() == [digest]
    assert consent.require_consent(path, allow_pickle=False) == "a pickle"


def test_a_name_that_a_pickle_puts_together_is_not_taken_for_a_harmless_one(tmp_path):
    """A pickle may push texts that it does not use, so that the last are not its name."""
    names = b"\x8c\x05posix\x8c\x06system\x8c\x0bcollections\x8c\x0bOrderedDict00\x93."
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\x04" + names)
    with pytest.raises(InvalidInputError, match=r"runs code.*names collections\.OrderedDict"):
        load_archive(path, allow_pickle=False)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x80\x02", b"PK\3\4" + b"\0" * 30])
def test_a_broken_file_is_refused_even_where_code_is_allowed(content, tmp_path):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="not a model that PyTorch can read"):
        load_archive(path, allow_pickle=True)


def test_programs_and_scripts_that_are_data_need_no_consent(tmp_path):
    class Sizes(torch.nn.Module):
        def forward(self, x):
            torch._check(x.shape[0] % 2 == 0)
            rows = x.reshape(x.shape[0] // 2, -1)
            return rows.sum() + torch.zeros(x.shape[0] * 2 + 1).sum()

    whole = torch.export.export(
        Sizes(), (torch.ones(4, 8),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    torch.export.save(whole, tmp_path / "sizes.pt2")
    assert consent.require_consent(tmp_path / "sizes.pt2", allow_pickle=False) == "a .pt2 file"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "s.pt")
    assert consent.require_consent(tmp_path / "s.pt", allow_pickle=False) == "TorchScript"
    torch.save(net().state_dict(), tmp_path / "w.pt")
    assert consent.require_consent(tmp_path / "w.pt", allow_pickle=False) == "weights"


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: functional.interpolate(functional.max_pool2d(y, 4), scale_factor=4.0),
        lambda y: functional.interpolate(y, scale_factor=1.37),
        lambda y: y[:, :, : min(y.shape[2], 40)],
        lambda y: y.new_zeros(max(y.shape[2], y.shape[3])) + y.sum(),
        lambda y: y * y.shape[3] ** -0.5,
        lambda y: functional.pad(y, (0, (4 - y.shape[3] % 4) % 4)),
    ],
)
@pytest.mark.parametrize("multiple", [1, 4])
def test_a_program_whose_sizes_are_computed_needs_no_consent(tmp_path, answer, multiple):
    class Net(torch.nn.Module):
        def forward(self, x):
            return answer(2 * x)

    sizes = {at: multiple * torch.export.Dim(f"size{at}", min=12, max=32) for at in (2, 3)}
    if multiple == 1:
        sizes = dict.fromkeys(sizes, torch.export.Dim.DYNAMIC)
    whole = torch.export.export(Net(), (torch.ones(2, 3, 64, 96),), dynamic_shapes=(sizes,))
    torch.export.save(whole, tmp_path / "sizes.pt2")
    assert consent.require_consent(tmp_path / "sizes.pt2", allow_pickle=False) == "a .pt2 file"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("guards_code", "torch.load('x') == 1"),
        ("guards_code", "torch.hub(L) == 1"),
        ("guards_code", "math.__loader__(L) == 1"),
        ("guards_code", "max.__self__.exec(L)"),
        ("expr_str", "Float('1+exec')"),
        ("target", "torch.hub.load"),
        ("target", "torch.ops.load_library"),
        ("expr_str", "Max('__import__(1)', 2)"),
        ("expr_str", "(lambda: 1)()"),
        ("expr_str", "exec(x)"),
        ("expr_str", "s0.__class__"),
        ("guards_code", "1), print(1"),
        ("guards_code", "L['x'].size()[0] == 3\n  print(1)"),
        ("guards_code", "L['\"'] == 1"),
        ("context", '{"__enum__": true, "fqn": "os:system"}'),
        ("context", r'{"__enum\u005f_": true}'),
    ],
)
def test_a_text_that_torch_export_does_not_write_is_a_reason_to_ask(key, text, tmp_path):
    path = edited(
        program(tmp_path / "x.pt2"),
        lambda files: files.update(
            {
                "models/model.json": json.dumps(
                    {**json.loads(files["models/model.json"]), "more": {key: text}}
                ).encode()
            }
        ),
    )
    with pytest.raises(InvalidInputError, match="runs code as it is loaded"):
        consent.require_consent(path, allow_pickle=False)


# Logged models


class Hidden(torch.nn.Linear):
    """A module whose pickle runs a command."""

    def __init__(self, mark: Path) -> None:
        super().__init__(2, 2)
        self.command = Command(mark)


@pytest.fixture
def logged(store, mark):
    """A pickled model of somebody else, and the chain that was made of its harmless form."""
    harmless = jobs.log("small_models:build", name="net")
    raw = jobs.export(harmless)
    cleaned = jobs.clean(raw)
    with mlflow.start_run():
        hidden = mlflow.pytorch.log_model(
            Hidden(mark),
            name="hidden",
            input_example=np.ones((2, 2), np.float32),
            serialization_format="pickle",
            pip_requirements=[],
        ).model_id
    mark.unlink(missing_ok=True)  # MLflow itself loads what it logs, to infer a signature
    client = mlflow.MlflowClient()
    for model in (raw, cleaned):
        client.set_logged_model_tags(model, {"e2eai.source_model": hidden})
    return {"source": hidden, "raw": raw, "cleaned": cleaned}


CALLS = {
    "export": lambda chain: jobs.export(chain["source"]),
    "clean": lambda chain: jobs.clean(chain["raw"]),
    "convert": lambda chain: jobs.convert(chain["cleaned"], precision="fp16"),
    "bisect": lambda chain: jobs.bisect(chain["cleaned"]),
    "evaluate": lambda chain: jobs.evaluate(chain["cleaned"]),
    "pipeline": lambda chain: repackage.package(chain["source"], name="hidden"),
}


def test_no_step_runs_a_pickle_that_nobody_allowed(logged, mark):
    for name, call in CALLS.items():
        with pytest.raises(InvalidInputError, match=r"names .*posix\.system.*allow_pickle=True"):
            call(logged)
        assert not mark.exists(), name


def test_each_step_of_the_command_line_has_the_option_and_refuses_without_it(logged, mark, capsys):
    words = {
        "export": ["export", logged["source"]],
        "clean": ["clean", logged["raw"]],
        "convert": ["convert", logged["cleaned"]],
        "bisect": ["bisect", logged["cleaned"]],
        "evaluate": ["evaluate", logged["cleaned"]],
        "pipeline": ["pipeline", logged["source"]],
        "run": ["run", logged["source"]],
    }
    for each in words.values():
        assert main.main(each) == main.ERROR
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert "--allow-pickle" in line
        assert not mark.exists()
    assert main.main(["export", logged["source"], "--allow-pickle"]) == main.DONE
    assert mark.exists()


def test_a_pickle_that_this_process_wrote_is_its_own(store, tmp_path):
    class Branches(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    uri = sources.log_source(
        Branches(8, 8).eval(),
        {"x": np.abs(features())[:, :8]},
        name="branches",
        run_id=mlflow.start_run().info.run_id,
    )
    mlflow.end_run()
    model = mlflow.get_logged_model(uri)
    (tmp_path / "there").mkdir()
    assert sources.fetch_source(model, tmp_path / "there").model is not None


def test_code_that_was_logged_with_a_model_asks_too(store, tmp_path):
    (tmp_path / "torch_helper.py").write_text("raise SystemExit('imported')\n")
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(
            net(),
            name="coded",
            input_example=features(),
            code_paths=[str(tmp_path / "torch_helper.py")],
            pip_requirements=[],
        )
    with pytest.raises(InvalidInputError, match="logged with Python code"):
        jobs.export(info.model_uri)


def test_weights_without_a_module_are_no_model(store):
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(
            net(), name="net", serialization_format="pickle", pip_requirements=[]
        )
    place = mlflow.get_logged_model(info.model_id).artifact_location.removeprefix("file://")
    torch.save(net().state_dict(), Path(place, "data", "model.pth"))
    with pytest.raises(TrackingError, match="has weights, but no module"):
        jobs.export(info.model_uri)


def test_a_bundle_is_loaded_without_any_pickle(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    mlflow_e2eai.save_model(
        net(), tmp_path / "m", input_example={"x": features()}, dynamic_axes=AXES, evidence="quick"
    )
    monkeypatch.setattr(torch, "load", refuse)
    assert mlflow_e2eai.load_model(str(tmp_path / "m"))(features())
