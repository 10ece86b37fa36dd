import builtins
import inspect
import re
import subprocess
import sys
import time

import pytest

from mlflow_e2eai import errors
from mlflow_e2eai.errors import (
    E2EAIError,
    EngineBuildError,
    EngineMismatchError,
    InvalidInputError,
    MissingDependencyError,
    SurgeryError,
    errors_about,
)

CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and found.__module__ == errors.__name__
}

DRAWN = {
    match["name"]: match["also"]
    for match in re.finditer(
        r"^ *[├└]── (?P<name>\w+)(?: \((?:also )?(?P<also>\w+)\))? +\w.*$",
        errors.__doc__ or "",
        re.MULTILINE,
    )
}


def test_the_drawing_shows_every_error_and_no_other():
    assert {E2EAIError.__name__, *DRAWN} == set(CLASSES)


def test_the_drawing_begins_with_the_root():
    tree = (errors.__doc__ or "").split("\n\n")[1]

    assert tree.splitlines()[0].strip() == E2EAIError.__name__


@pytest.mark.parametrize("name", DRAWN)
def test_an_error_hangs_where_it_is_drawn(name):
    also = [getattr(builtins, DRAWN[name])] if DRAWN[name] else []

    assert CLASSES[name].__bases__ == (E2EAIError, *also)


@pytest.mark.parametrize("found", CLASSES.values(), ids=CLASSES)
def test_every_error_says_what_it_means(found):
    assert found.__doc__
    assert found.__doc__ is not Exception.__doc__


def test_the_root_is_a_plain_exception_that_catches_nothing_of_the_builtins():
    assert E2EAIError.__bases__ == (Exception,)


def test_wrong_input_is_a_value_error():
    with pytest.raises(ValueError, match="give a number"):
        raise InvalidInputError("give a number")  # noqa: EM101, TRY003 - any message will do


def test_a_missing_dependency_is_an_import_error_that_names_the_extra():
    error = MissingDependencyError(
        package="tensorrt_rtx", extra="rtx", purpose="A TensorRT-RTX engine"
    )

    assert isinstance(error, ImportError)
    assert isinstance(error, E2EAIError)
    assert (error.package, error.extra) == ("tensorrt_rtx", "rtx")
    assert str(error) == (
        "A TensorRT-RTX engine needs tensorrt_rtx, which is not installed; "
        "install it with: pip install 'mlflow_e2eai[rtx]'"
    )


def test_an_engine_mismatch_keeps_what_was_wanted_and_what_was_found():
    error = EngineMismatchError(wanted="a GPU of sm86", found="one of sm90")

    assert (error.wanted, error.found) == ("a GPU of sm86", "one of sm90")
    assert "needs a GPU of sm86" in str(error)
    assert "has one of sm90" in str(error)


def test_a_refused_graph_keeps_the_node_its_operator_and_the_reason():
    error = EngineBuildError("no", reason="plugin not found", node="n1", operator="devtech::FooOp")

    assert (error.node, error.operator, error.reason) == (
        "n1",
        "devtech::FooOp",
        "plugin not found",
    )
    assert str(error) == "no"


def test_a_refused_graph_may_name_no_node():
    error = EngineBuildError("no", reason="out of memory")

    assert (error.node, error.operator) == (None, None)


def test_a_surgery_error_keeps_its_rule_or_means_the_whole_plan():
    assert SurgeryError("no", rule="bypass").rule == "bypass"
    assert SurgeryError("no").rule is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql+psycopg2://mlflow:geheim@host:5432/db", "postgresql+psycopg2://***@host"),
        ("at https://geheim@host/path", "https://***@host/path"),
        ("at pg://mlflow:geh@geheim/m@host/db", "pg://***@host/db"),
        ("at pg://mlflow:geheimhost/db", "pg://***/db"),
        ("at 'pg:/mlflow:geheim@host'", "'pg:/***@host'"),
        ("at mlflow:geheim@host", "at ***@host"),
        ("at s3://bucket/file?X-Amz-Signature=geheim&x=1", "Signature=***&x=1"),
        ("{'Authorization': 'Basic geheim=='}", "'Basic ***'"),
    ],
)
def test_a_message_holds_no_secret(text, shown):
    assert "geheim" not in str(InvalidInputError(text))
    assert shown in str(InvalidInputError(text))


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models and http://[::1]:5000.",
        "models:/digits@champion, models:/digits/1 and s3://bucket/folder",
        "onnx::Add_3 at 10:20; basic operators; tokens=3",
    ],
)
def test_other_texts_stay(text):
    assert str(InvalidInputError(text)) == text


@pytest.mark.parametrize("word", ["://", "a:", "//a:b", "x://a:b", "@a:b", "a:/@"])
@pytest.mark.parametrize("end", ["", "@"])
def test_the_message_of_a_hostile_name_is_made_at_once_and_is_bounded(word, end):
    begin = time.process_time()

    error = E2EAIError(f"The tensor {word * 50_000}{end} is not there; name another one.")

    assert time.process_time() - begin < 2
    assert len(str(error)) < 6_000
    assert str(error).endswith("is not there; name another one.")


def test_a_long_message_keeps_its_begin_and_its_end_and_says_what_is_left_out():
    message = str(E2EAIError(f"The name {'x' * 100_000} is too long; take a shorter one."))

    begin, end = r"The name x+…", r"…x+ is too long; take a shorter one\."
    assert re.fullmatch(rf"{begin} \(95,042 characters left out\) {end}", message)


def test_the_value_of_a_setting_that_is_a_secret_is_in_no_message(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    assert str(E2EAIError("no geheim here")) == "no *** here"


def run_as_script(path, text):
    path.write_text(text)
    words = [sys.executable, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=path.parent)
    return done.stderr.splitlines()[0]


WARNS = """import click
from mlflow_e2eai.errors import warn_caller
namespace = {"__name__": "mlflow_e2eai.bundle.load", "warn_caller": warn_caller}
exec("def load(): warn_caller('Falling back')", namespace)
click.Command("predict", callback=namespace["load"])([])
"""


def test_a_warning_in_a_command_names_no_line_of_it(tmp_path):
    assert run_as_script(tmp_path / "mlflow", WARNS) == "mlflow_e2eai:1: UserWarning: Falling back"


def test_a_warning_in_a_script_of_the_user_names_its_line_and_none_of_click(tmp_path):
    script = tmp_path / "script.py"
    assert run_as_script(script, WARNS) == f"{script}:5: UserWarning: Falling back"


def test_an_error_about_a_model_begins_with_its_name_once():
    for text in ("It is a pickle.", "models:/net/11: It is a pickle."):
        with pytest.raises(InvalidInputError) as caught, errors_about("models:/net/1"):
            raise InvalidInputError(text)
        assert str(caught.value) == f"models:/net/1: {text}"
    named = InvalidInputError("It is a pickle: models:/net/1.")
    with pytest.raises(InvalidInputError, match=r"^It is a pickle"), errors_about("models:/net/1"):
        raise named
