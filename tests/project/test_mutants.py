"""Faults are planted as the list has them, and one that no test notices is named."""

import ast
import shutil

import mutants
import pytest
from mutants import MUTANTS, TESTS, Mutant, mutated


def test_there_are_many_in_every_file_that_decides():
    assert len(MUTANTS) >= 60
    assert {mutant.file for mutant in MUTANTS} == set(TESTS)
    assert len(set(MUTANTS)) == len({(each.file, each.name) for each in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: f"{each.file}: {each.name}")
def test_a_fault_changes_the_code_and_can_be_read(mutant):
    before = (mutants.PACKAGE / mutant.file).read_text()

    assert ast.dump(ast.parse(mutated(mutant))) != ast.dump(ast.parse(before))


def test_a_list_that_is_not_of_the_code_any_more_is_an_error():
    with pytest.raises(ValueError, match="has 0 times what 'gone' replaces"):
        mutated(Mutant("evaluation/gates.py", "gone", "no such text", ""))


@pytest.fixture
def planted(monkeypatch):
    """Runs no tests: says for each tree what they would end with, and remembers the faults."""
    seen, codes = [], {}
    monkeypatch.setattr(shutil, "copytree", copy_gates)

    def run(tree, file):
        text = (tree / "mlflow_e2eai" / file).read_text()
        names = [each.name for each in MUTANTS if each.file == file and mutated(each) == text]
        seen.extend(names)
        return codes.get(names[0] if names else "", 1 if names else 0)

    monkeypatch.setattr(mutants, "run_tests", run)
    return seen, codes


def copy_gates(root, tree, **_):
    for file in TESTS:
        path = tree / "mlflow_e2eai" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((root / "mlflow_e2eai" / file).read_bytes())


def test_each_is_planted_alone_and_all_were_noticed(planted, capsys):
    assert mutants.main([]) == 0
    assert planted[0] == [mutant.name for mutant in MUTANTS]
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop() == f"{len(MUTANTS)} of {len(MUTANTS)} faults were noticed"
    assert [line.startswith("noticed (1, 0 s) ") for line in lines] == [True] * len(MUTANTS)


@pytest.mark.parametrize("code", [0, 2, 4, 5])
def test_one_that_no_test_notices_is_named_and_so_is_one_with_which_none_ran(code, planted, capsys):
    planted[1]["NaN passes"] = code
    assert mutants.main(["evaluation/gates.py"]) == 1
    lines = capsys.readouterr().out.splitlines()
    survived = [line for line in lines if not line.startswith("noticed")]
    assert survived[0] == f"SURVIVED ({code}, 0 s) evaluation/gates.py: NaN passes"


def test_tests_that_fail_without_any_fault_show_nothing(planted, capsys):
    planted[1][""] = 1
    assert mutants.main(["keys.py"]) > 0
    assert "pipeline/keys.py: its tests end with 1 without any fault" in capsys.readouterr().out
