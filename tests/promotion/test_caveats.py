"""Doubts that block no promotion are read everywhere: page, description, run, decision, line."""

from __future__ import annotations

import json

import pytest
import torch
from registered_bundles import altered, holder, register
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai import Axis, bundle
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.report.sections.doubts import doubts
from mlflow_e2eai.tracking.lineage import PARENT_RUN

pytestmark = [pytest.mark.exporters, pytest.mark.usefixtures("on_threads")]


class Pools(torch.nn.Module):
    """Takes multiples of 8 only, as a network does that halves three times and joins again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(x, 8)
        return torch.cat([x, torch.nn.functional.interpolate(pooled, scale_factor=8.0)], 1)


def axes(**options: int) -> dict[str, dict[int, Axis]]:
    return {
        "x": {
            0: Axis("N", min=1, opt=2, max=4),
            2: Axis("H", min=32, opt=64, max=128, **options),
        }
    }


def logged(module, example, **options):
    info = mlflow_e2eai.log_model(
        module,
        "net",
        input_example=example,
        precisions=["fp32"],
        registered_model_name="net",
        **options,
    )
    return str(info.registered_model_version)


def caveats(version):
    with mlflow_e2eai.load_model(f"models:/net/{version}") as model:
        return [text for text, is_linked in doubts(model.manifest) if not is_linked]


def tags_of(client, version):
    """The tags of the run of a version and of its stages."""
    run_id = client.get_model_version("net", version).run_id
    experiment = client.get_run(run_id).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`{PARENT_RUN}` = '{run_id}'")
    return {key: value for run in runs for key, value in run.data.tags.items()}


def warned(decision):
    return [verdict.metric for verdict in decision.verdicts if not verdict.passed]


def test_sizes_that_pytorch_refuses_are_a_caveat_everywhere_with_the_multiple_to_declare(store):
    version = logged(Pools().eval(), {"x": torch.rand(2, 3, 64, 16)}, dynamic_axes=axes())
    decision = mlflow_e2eai.promote("net", version)

    (caveat,) = caveats(version)
    assert caveat.startswith("PyTorch itself refuses ")
    assert "sizes within the dynamic axes that were tried (N=3, H=" in caveat
    declare = "declare Axis('H', ..., multiple=8), or narrow the axes."
    assert f"Every size that it took is a multiple of 8 along H: {declare}" in caveat
    assert caveat in store.get_model_version("net", version).description
    assert "H=33" in tags_of(store, version)["e2eai.refused_sizes"]
    assert (warned(decision), holder(store)) == (["evidence/refused_sizes"], version)
    assert any(declare in remedy for remedy in decision.remedies)
    assert "sizes within the dynamic axes that PyTorch itself refuses" in (
        mlflow_e2eai.explain("net", version).text()
    )


def test_an_axis_with_the_multiple_that_the_module_takes_has_no_caveat(store):
    version = logged(Pools().eval(), {"x": torch.rand(2, 3, 64, 16)}, dynamic_axes=axes(multiple=8))

    assert caveats(version) == []
    assert warned(mlflow_e2eai.promote("net", version)) == []


class Asks(torch.nn.Module):
    """The tracer warns of two questions, whose answers are always the same; no script of it."""

    def forward(self, x, *others):
        x = x * 2 if bool((x * 0 == 0).all()) else x
        return x + 1 if bool((x * 0 == 0).any()) else x


def test_values_that_a_trace_froze_are_a_caveat_with_their_lines(store, caplog):
    with caplog.at_level("INFO", logger="mlflow_e2eai"):
        version = logged(Asks().eval(), {"x": features()}, opset=17, exporter="trace")
    decision = mlflow_e2eai.promote("net", version)

    (caveat,) = caveats(version)
    assert caveat.startswith("The trace exporter took values of the input example for constants (")
    assert caveat.count("test_caveats.py:") == 2
    assert "unlike the " in caveat
    assert caveat in store.get_model_version("net", version).description
    assert tags_of(store, version)["e2eai.frozen"].count("test_caveats.py:") == 2
    assert (warned(decision), holder(store)) == (["evidence/frozen"], version)


def no_item_is_right(outputs, labels):
    return float((outputs["output"].argmax(-1) == labels).mean())


@pytest.mark.parametrize(("name", "count"), [("right", 1), ("neg_wrong", 0)])
def test_a_model_that_scores_0_itself_is_a_caveat_unless_0_is_the_best(name, count, store):
    version = logged(
        net(),
        {"x": features()},
        dynamic_axes=AXES,
        evaluation_data=(features(), torch.full((len(features()),), 99).numpy()),
        metrics={name: no_item_is_right},
    )
    decision = mlflow_e2eai.promote("net", version)

    about = [text for text in caveats(version) if f"itself scores 0 by {name}" in text]
    assert len(about) == count
    assert warned(decision) == ["evidence/zero_scores"] * count
    assert decision.promoted
    described = store.get_model_version("net", version).description
    assert ("check the labels and the metric" in described) == bool(count)


def without_sizes(data):
    assert data["export"].pop("sizes")["refused"] == []


def test_evidence_from_before_sizes_were_recorded_has_no_caveat(store, good, tmp_path):
    place = altered(good, tmp_path, without_sizes)
    decision = mlflow_e2eai.promote("net", register(place))

    assert bundle.audit(place).export.sizes is None
    assert (warned(decision), decision.promoted) == ([], True)


def test_sizes_are_read_as_they_were_written(good):
    report = bundle.audit(bundle.find(good)).export

    assert json.loads(to_json(report))["sizes"]["taken"]
    assert from_json(type(report), to_json(report)).sizes == report.sizes
