"""Results of `list`, `compare`, `targets` and `gates` as tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_e2eai.cli.main import DONE
from mlflow_e2eai.cli.readers import ListedGpu
from mlflow_e2eai.cli.results import Arguments
from mlflow_e2eai.flavor.tables import compare_versions
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.requirements import RequiredApproval, RequiredSigner, RequiredTarget

if TYPE_CHECKING:
    import pandas as pd

_ABSENT = "-"

_COMPARED = (
    *("version", "variant", "machine", "items", "outcome", "max_abs_error"),
    *("p50_ms", "ratio", "ratio_low", "ratio_high"),
)
"""Columns of `compare_versions` that fit a terminal, before those of task metrics."""


def print_targets(listed: Sequence[ListedGpu], _: Arguments) -> int:
    """Print a line for each compute capability."""
    for capability in dict.fromkeys(each.capability for each in listed):
        own = [each for each in listed if each.capability == capability]
        how = f"{own[0].target}, built {own[0].built}" if own[0].target else "too old"
        print(f"{capability:6} {how:26} {', '.join(each.gpu for each in own)}")
    print("rtx    rtx, built anywhere        every GPU from sm80 on, later ones too")
    return DONE


def compare_named(name: str, versions: Sequence[str]) -> pd.DataFrame:
    """The evidence of versions of a registered model; see `compare_versions`."""
    return compare_versions(name, *versions)


def print_comparison(frame: pd.DataFrame, _: Arguments) -> int:
    """Print a line for each variant, batch size and version, those of one variant together."""
    tasks = [column for column in map(str, frame) if column.startswith("task/")]
    rows = frame.sort_values(["variant", "items"], kind="stable")
    rows.loc[rows["busy"], "p50_ms"] = float("nan")  # too noisy to tell
    columns = [*_COMPARED, *tasks]
    if len(set(frame["machine"])) <= 1:
        columns.remove("machine")
    return print_frame(rows[columns], {})


def print_frame(frame: pd.DataFrame, _: Arguments) -> int:
    """Print a table; what is missing as a dash."""
    if frame.empty:
        print("none")
        return DONE
    texts = frame.astype(object).where(frame.notna(), _ABSENT)
    print(texts.map(_cell).to_string(index=False))
    return DONE


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_gates(policy: Policy, _: Arguments) -> int:
    """Print a line for each rule, with its severity."""
    for gate in policy.gates:
        print(f"{gate.severity:7} {gate}{'; only where there is data' if gate.optional else ''}")
    rules: list[RequiredTarget | RequiredApproval | RequiredSigner]
    rules = [*policy.required_targets, *policy.approvals, *policy.signers]
    for required in rules:
        print(f"{required.severity:7} {required}")
    print(f"{policy.unmeasured:7} engines that were not measured on a GPU of their target")
    return DONE
