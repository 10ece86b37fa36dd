"""Processes that promote versions of one model to one alias, and a witness in the database."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranked_versions import GATES, WORSE

NAME, ALIAS = "net", "champion"

WITNESS = """
CREATE TABLE IF NOT EXISTS alias_witness (
  id serial PRIMARY KEY, alias text, before text, after text, decision text, run_id text
);
CREATE OR REPLACE FUNCTION witness_alias() RETURNS trigger AS $$
DECLARE was text; now_at text;
BEGIN
  IF TG_OP <> 'INSERT' THEN was := OLD.version; END IF;
  IF TG_OP <> 'DELETE' THEN now_at := NEW.version; END IF;
  IF was IS DISTINCT FROM now_at THEN
    INSERT INTO alias_witness (alias, before, after, decision, run_id) VALUES (
      COALESCE(NEW.alias, OLD.alias), was, now_at,
      (SELECT value FROM model_version_tags t WHERE t.name = NEW.name
        AND t.version = NEW.version AND t.key = 'e2eai.decision'),
      (SELECT value FROM model_version_tags t WHERE t.name = NEW.name
        AND t.version = NEW.version AND t.key = 'e2eai.decision_run'));
  END IF;
  RETURN NULL;
END $$ LANGUAGE plpgsql;
CREATE OR REPLACE TRIGGER witness AFTER INSERT OR UPDATE OR DELETE ON registered_model_aliases
  FOR EACH ROW EXECUTE FUNCTION witness_alias();
"""
"""A trigger of the database: it sees each move of an alias, whoever makes it, and the decision that
the version had then."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A move of the alias as the database saw it, with the version's tags at that moment."""

    before: str | None
    after: str | None
    decision: str | None
    run_id: str | None


def install_witness(database: str) -> None:
    """Let the database write down each move of an alias."""
    _execute(database, WITNESS)


def sightings(database: str) -> list[Sighting]:
    """The moves of the alias, in order."""
    rows = _execute(
        database,
        f"SELECT before, after, decision, run_id FROM alias_witness WHERE alias = '{ALIAS}'"  # noqa: S608 - of this file
        " ORDER BY id",
    )
    return [Sighting(*row) for row in rows]


def _execute(database: str, sql: str) -> list[tuple[Any, ...]]:
    from sqlalchemy import create_engine, text

    engine = create_engine(database)
    with engine.begin() as connection:
        result = connection.execute(text(sql))
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


# Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the promoters do.

    Attributes:
        uris: The tracking URIs of one registry's servers; the promoters take them in turn.
        versions: Versions to choose from.
        rounds: Promotions of each.
        folder: Each writes a file there: a line before a promotion, and one after it.
        kill_share: Share of promotions in which the promoter is killed in the middle, at a moment
            by chance.
        lease_s: Seconds after which others take a promoter for dead; None for the package's own.
    """

    uris: Sequence[str]
    versions: Sequence[str]
    rounds: int
    folder: Path
    kill_share: float = 0.0
    lease_s: float | None = None


def run_promoters(plan: Plan, count: int) -> dict[str, Any]:
    """Run so many promoters until all are done; who is killed starts again.

    Returns:
        Numbers: promotions that ended, by result, kills and seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["promoters", "mlflow", "mlflow_e2eai.promotion"])
    began, kills = time.monotonic(), 0

    def start(number: int) -> Any:
        process = context.Process(target=_promote_in_turn, args=(plan, number))
        process.start()
        return process

    running = {number: start(number) for number in range(count)}
    try:
        while running:
            time.sleep(0.05)
            for number, process in list(running.items()):
                if process.exitcode is None:
                    continue
                if process.exitcode == -signal.SIGKILL:
                    kills += 1
                    running[number] = start(number)
                else:
                    assert process.exitcode == 0, f"promoter {number}: {process.exitcode}"
                    del running[number]
    finally:
        for process in running.values():
            process.kill()
            process.join()
    ends = Counter(line["result"] for line in ended(plan))
    return {
        "promotions": sum(ends.values()),
        **ends,
        "kills": kills,
        "seconds": round(time.monotonic() - began, 1),
    }


def reasons(plan: Plan) -> list[str]:
    """Why promotions were refused."""
    lines = (line for path in plan.folder.glob("*.jsonl") for line in _lines(path))
    return [line["why"] for line in lines if "why" in line]


def ended(plan: Plan) -> Iterator[Mapping[str, Any]]:
    """The lines of all promotions that ended."""
    for path in sorted(plan.folder.glob("*.jsonl")):
        yield from (line for line in _lines(path) if "result" in line)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _promote_in_turn(plan: Plan, number: int) -> None:
    import logging

    import mlflow

    import mlflow_e2eai
    from mlflow_e2eai.errors import E2EAIError
    from mlflow_e2eai.promotion.registry import lease

    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # bars of downloads
    mlflow.set_tracking_uri(plan.uris[number % len(plan.uris)])
    mlflow.set_experiment("tests")
    if plan.lease_s is not None:
        lease.LEASE_S = plan.lease_s
    path = plan.folder / f"{number}.jsonl"
    lines = _lines(path)
    done = sum("result" in line for line in lines)
    # One that was killed begins with what it was at, and is not killed again.
    repeated = lines[-1]["version"] if lines and "result" not in lines[-1] else None
    # No secret; another seed after each kill.
    chance = random.Random(f"{number} {len(lines)}")  # noqa: S311
    with path.open("a", buffering=1) as out:
        for _ in range(done, plan.rounds):
            version = repeated or chance.choice(plan.versions)
            out.write(json.dumps({"version": version}) + "\n")
            if repeated is None and chance.random() < plan.kill_share:
                _arm(chance.choice(["tags", "alias", "confirmation"]))
            line: dict[str, Any] = {"version": version}
            try:
                decision = mlflow_e2eai.promote(NAME, version, gates=GATES)
                line["result"] = "promoted" if decision.promoted else "rejected"
            except E2EAIError as error:
                line |= {"result": "refused", "why": str(error)}
            out.write(json.dumps(line) + "\n")
            repeated = None


def _arm(moment: str) -> None:
    """Let this process die before the tags, before the alias, or before the move is confirmed."""
    from mlflow_e2eai.promotion import stage
    from mlflow_e2eai.promotion.registry import moves

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "tags":
        stage.tag_version = die
    elif moment == "alias":
        moves._set_alias = die
    else:
        set_alias = moves._set_alias

        def set_and_die(*words: Any) -> None:
            set_alias(*words)
            die()

        moves._set_alias = set_and_die


# Laws


def broken_laws(database: str, accuracies: Mapping[str, float], plan: Plan) -> list[str]:
    """What does not hold after promoters ran, in sentences; nothing where all is well."""
    seen = sightings(database)
    return [
        *_without_a_yes(seen, accuracies),
        *_not_in_history(seen),
        *_badly_recorded(accuracies, plan),
    ]


def _may_follow(version: str, before: str | None, accuracies: Mapping[str, float]) -> bool:
    """Whether the gates let a version replace another, by arithmetic of our own."""
    return before is None or accuracies[before] - accuracies[version] <= WORSE + 1e-6


def _without_a_yes(seen: Sequence[Sighting], accuracies: Mapping[str, float]) -> Iterator[str]:
    """Moves that do not begin where the one before ended, or had no yes against that version."""
    from mlflow_e2eai.promotion.registry.record import read_record

    at: str | None = None
    for sight in seen:
        if sight.before != at:
            yield f"{sight}: the alias stood at {at}"
        at = sight.after
        if sight.decision != "promoted" or sight.after is None:
            yield f"{sight}: no yes was on the version"
            continue
        record = read_record(str(sight.run_id))
        if record.challenger.version != sight.after or not record.decision.promoted:
            yield f"{sight}: its decision is {record.text()}"
        if [each.version for each in record.incumbents] != ([sight.before] if sight.before else []):
            yield f"{sight}: decided against another, {record.text()}"
        if not _may_follow(sight.after, sight.before, accuracies):
            yield f"{sight}: worse by more than the gates admit"


def _not_in_history(seen: Sequence[Sighting]) -> Iterator[str]:
    import mlflow_e2eai
    from mlflow_e2eai.promotion.registry.timeline import registered_model

    moves = [(move.before, move.after) for move in mlflow_e2eai.history(NAME).moves]
    if moves != [(sight.before, sight.after) for sight in seen]:
        yield f"the history is {moves}, and the database saw {seen}"
    stands = registered_model(NAME).aliases.get(ALIAS)
    if seen and str(stands) != str(seen[-1].after):
        yield f"the alias stands at {stands}, and was moved last to {seen[-1].after}"


def _badly_recorded(accuracies: Mapping[str, float], plan: Plan) -> Iterator[str]:
    """Runs whose decision is another than their record says, or than it should be."""
    from mlflow_e2eai.promotion.registry.record import read_record
    from mlflow_e2eai.promotion.registry.timeline import decision_runs, registered_model

    words: Counter[str] = Counter()
    for run in decision_runs(registered_model(NAME)):
        word = run.data.tags.get("e2eai.decision")
        if word is None:
            if run.info.status != "RUNNING":  # whoever was at it was killed
                yield f"run {run.info.run_id} has no decision and is {run.info.status}"
            continue
        words[word] += 1
        record = read_record(run.info.run_id)
        version, incumbents = record.challenger.version, record.incumbents
        before = incumbents[0].version if incumbents else None
        if word != "superseded" and (word == "promoted") != record.decision.promoted:
            yield f"run {run.info.run_id} says {word}, and {record.text()}"
        if record.decision.promoted != _may_follow(version, before, accuracies):
            yield f"run {run.info.run_id}: {version} against {before} is {word}"
    results = Counter(line["result"] for line in ended(plan))
    if words["rejected"] < results["rejected"]:
        yield f"{results['rejected']} were told no, and {words} are on record"


def numbers_on_record(database: str) -> dict[str, int]:
    """Moves that the database saw, and decisions by word."""
    from mlflow_e2eai.promotion.registry.timeline import decision_runs, registered_model

    runs = decision_runs(registered_model(NAME))
    words = Counter(run.data.tags.get("e2eai.decision", "cut off") for run in runs)
    return {"moves": len(sightings(database)), "decisions": len(runs), **words}
