"""Conversions to another precision, and why a node stays in fp32."""

from __future__ import annotations

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.report.facts import Section


def precision_section(manifest: Manifest) -> Section | None:
    """Every conversion, also those that were refused."""
    if not manifest.conversions:
        return None
    conversions = [
        {
            **conversion_context(report, manifest.environment.get("int8_instructions")),
            "quantized": [
                entry
                for entry in manifest.evidence
                if entry.worth is not None and entry.variant.rpartition("/")[2] == report.precision
            ],
        }
        for report in manifest.conversions
    ]
    return Section("precision", "Precision", {"conversions": conversions})


def conversion_context(
    report: PrecisionReport, int8_instructions: str | None = None
) -> dict[str, object]:
    """The template values of a conversion report.

    Args:
        report: The report.
        int8_instructions: The instruction set of the processor that it was measured on.
    """
    guarded = f"on {report.samples:,} samples" if report.samples else "no ranges were seen"
    summary = [
        ("Nodes in fp32", f"{len(report.kept):,} of {report.nodes:,}", guarded),
        ("Casts", f"{report.casts:,}", "inserted"),
        ("Masks", f"{len(report.saturated):,}", "constants clamped to the fp16 minimum"),
    ]
    if report.calibration is not None:
        calibrator = f"calibrated by {report.calibration.calibrator}, {guarded}"
        summary = [
            ("Nodes quantised", f"{report.quantized:,} of {report.nodes:,}", calibrator),
            ("Q/DQ pairs", f"{report.pairs:,}", "inserted"),
        ]
        if report.precision == "int8" and int8_instructions is not None:
            where = "by ONNX Runtime's exact kernel; not on a GPU"
            summary.append(("Instructions", int8_instructions, where))
    return {"report": report, "summary": summary}
