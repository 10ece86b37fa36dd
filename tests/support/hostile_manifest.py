"""A manifest with one hostile text wherever text can be."""

import dataclasses
from pathlib import Path

from small_manifest import TORCH, compared, full, timed

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.latency.report import GpuRecord, LatencyFinding
from mlflow_e2eai.parity.report import Element, Finding
from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.report.page import html
from mlflow_e2eai.surgery.outline import Outline, OutlineNode

HOSTILE = "</title></style></code>'\"><script>document.title='owned'</script><img src=x onerror=a>"

SILENT = GpuRecord(
    name=None,
    samples=0,
    sm_clock_min_mhz=None,
    sm_clock_max_mhz=None,
    power_max_w=None,
    temperature_max_c=None,
    throttle_reasons=None,
)


def hostile(name: str) -> Manifest:
    """A manifest with this text wherever text can be."""
    found = full()
    report = compared(0.5, passed=False)
    wrong = Element(sample=1, index=(0,), reference=name, candidate=name)
    output = dataclasses.replace(report.outputs[0], name=name, first_wrong=wrong)
    finding = Finding(kind="tolerance", output=name, sentence=name)
    report = dataclasses.replace(report, outputs=(output,), findings=(finding,))
    entries = (
        dataclasses.replace(TORCH, task={f"a{name}": 1.0}),
        Evidence(
            variant=f"v{name}",
            sha256=name,
            measured=True,
            parity={f"k{name}": report},
            before=TORCH.variant,
            against_before=report,
            lost_at=f"l{name}",
        ),
        Evidence(variant=f"w{name}", sha256=name, measured=False, reason=f"r{name}"),
    )
    spec = dataclasses.replace(found.inputs[0], name=name, shape=(f"s{name}", 3))
    graph = dataclasses.replace(
        found.graphs[0], path=Path(f"p{name}"), sha256=f"h{name}", inputs=(spec,), outputs=(spec,)
    )
    surgery = dataclasses.replace(
        found.surgery,
        edits={f"e{name}": 1},
        operators_before={f"o{name}": 2},
        operators_after={f"o{name}": 1},
        outline=Outline(
            nodes=(OutlineNode(name=f"n{name}", operator=f"o{name}", state="removed"),),
            kept=(),
            removed=(),
            added=(),
            beyond={},
        ),
    )
    latency = {f"l{name}": timed({"torch/fp32": [1.0] * 9, f"v{name}": [2.0] * 9})}
    latency["opt"] = dataclasses.replace(
        timed({"torch/fp32": [1.0] * 9, f"v{name}": [2.0] * 9}, items=9),
        findings=(LatencyFinding(kind="drift", variant=f"v{name}", sentence=name),),
        gpu=dataclasses.replace(SILENT, name=name, throttle_reasons=(name,)),
    )
    return dataclasses.replace(
        found,
        evidence=entries,
        graphs=(graph,),
        surgery=surgery,
        latency=latency,
        package_version=name,
        source_model=f"m{name}",
        environment={f"n{name}": name},
    )


def hostile_page(name: str) -> str:
    verdict = Verdict(
        metric=f"g{name}",
        found=1.0,
        wanted=f"w{name}",
        passed=False,
        scope=f"s{name}",
        source=f"o{name}",
        reason=f"r{name}",
    )
    decision = Decision(verdicts=(verdict,), excluded=(f"x{name}",))
    origin = Origin(
        name=f"n{name}",
        version=f"v{name}",
        model_id=f"m{name}",
        run_id=f"r{name}",
        experiment_id=f"e{name}",
        model_ids={f"h{name}": f"i{name}"},
        tracking_uri="http://localhost:5000",
    )
    return html(hostile(name), decision, origin=origin)
