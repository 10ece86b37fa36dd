"""Results of the verbs about a registered model, its versions and aliases, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow_e2eai.cli.main import DONE
from mlflow_e2eai.cli.results import Arguments, exit_code, print_until
from mlflow_e2eai.promotion.redecision import Redecision
from mlflow_e2eai.promotion.registry.approvals import Statement
from mlflow_e2eai.promotion.registry.drift import GuardReport
from mlflow_e2eai.promotion.registry.record import DecisionRecord
from mlflow_e2eai.promotion.registry.timeline import History, Move
from mlflow_e2eai.tracking.store.attestations import Verification


def print_text(result: DecisionRecord | Redecision, _: Arguments) -> int:
    """Print a decision in lines; `NOT_PASSED` where it would be another today."""
    print(result.text())
    return exit_code(result)


def print_history(history: History, _: Arguments) -> int:
    """Print a table of moves, the oldest first."""
    print(history.text())
    return DONE


def print_statement(statement: Statement, _: Arguments) -> int:
    """Print what is on record about a version now."""
    print(f"{statement.name} {statement.version}: {statement}")
    return DONE


def print_verification(verification: Verification, _: Arguments) -> int:
    """Print that all files are as they were logged, and by whom they were signed."""
    print(verification.sentence)
    return DONE


def print_guard(report: GuardReport, _: Arguments) -> int:
    """Print a line for each alias; `NOT_PASSED` where one is not as decided, put back or not.

    It was moved or deleted by hand, its version was rejected, or its decision is gone.
    """
    print(report.text(), flush=True)
    return exit_code(report)


def print_watch(reports: Iterator[GuardReport], arguments: Arguments) -> int:
    """Print each state that differs from the last; see `print_until`."""
    return print_until(reports, arguments, print_guard)


def print_rollback(moves: Move | Sequence[Move], arguments: Arguments) -> int:
    """Print where each alias points now."""
    for move in [moves] if isinstance(moves, Move) else moves:
        before = move.before or "no version"
        print(
            f"rolled back: {arguments['name']} {move.after} is {move.alias} again, before {before}"
        )
    return DONE
