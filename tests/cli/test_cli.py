"""The command line: texts become values, errors become one sentence and an exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from small_models import AXES, N, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import Axis, BuildSettings
from mlflow_e2eai.artifacts import axes
from mlflow_e2eai.cli import main, verbs
from mlflow_e2eai.engine import profiles
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.pipeline import options

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.fixture
def version(store):
    """Version 1 of the registered model `net`."""
    module = net()
    mlflow_e2eai.log_model(
        module,
        "net",
        input_example={"x": features()},
        dynamic_axes=AXES,
        evaluation_data=labelled(module),
        precisions=("fp32",),
        registered_model_name="net",
    )
    return "1"


def said(capsys):
    captured = capsys.readouterr()
    return captured.out.strip(), captured.err.strip()


def test_each_verb_prints_the_model_that_it_made_for_the_next_one_to_take(version, capsys):
    assert main.main(["export", "--model-uri", "models:/net/1"]) == main.DONE
    raw, _ = said(capsys)
    assert main.main(["clean", "--model-uri", raw]) == main.DONE
    cleaned, _ = said(capsys)
    assert main.main(["convert", "--model-uri", cleaned, "--precision", "fp16"]) == main.DONE
    half, _ = said(capsys)
    assert main.main(["compile", "--model-uri", half, "--targets", "sm86,sm120"]) == main.DONE
    engines, _ = said(capsys)
    assert len(engines.splitlines()) == 2
    assert main.main(["evaluate", "--model-uri", half]) == main.DONE
    out, _ = said(capsys)
    time = r"p50 \S+ ms at batch \d+( \(too noisy to tell\))?"
    for line, expected in zip(
        out.splitlines(),
        [
            f"torch/fp32: passed; {time}",
            rf"onnxruntime-cpu/raw: passed; largest error \S+, {time}",
            rf"onnxruntime-cpu/fp16: passed; largest error \S+, {time}",
        ],
        strict=True,
    ):
        assert re.fullmatch(expected, line)


@pytest.mark.exporters
def test_bisect_prints_its_sentence_and_the_file_that_convert_takes(store, capsys):
    assert main.main(["log", "--model", "small_models:build_overflowing"]) == main.DONE
    model, _ = said(capsys)
    for verb in ("export", "clean"):
        assert main.main([verb, "--model-uri", model]) == main.DONE
        model, _ = said(capsys)
    assert main.main(["bisect", "--model-uri", model]) == main.DONE
    out, _ = said(capsys)
    sentence, uri = out.splitlines()
    assert sentence.startswith("The variant passes when 1 of 4 nodes are kept as they were")
    words = ["convert", "--model-uri", model, "--precision", "fp16", "--keep-fp32"]
    for keep in (uri, "node_linear_1"):
        assert main.main([*words, keep]) == main.DONE
        half, _ = said(capsys)
        assert main.main(["evaluate", "--model-uri", half]) == main.DONE
        out, _ = said(capsys)
        assert out.splitlines()[-1].startswith("onnxruntime-cpu/fp16: passed; largest error ")


def test_each_stage_is_a_line_on_stderr_and_quiet_leaves_the_result_alone(store, capsys):
    assert main.main(["log", "--model", "small_models:build", "--quiet"]) == main.DONE
    model, err = said(capsys)
    assert err == ""
    assert main.main(["export", "--exporter", "trace"]) == main.DONE
    raw, err = said(capsys)
    latest, line, following = err.splitlines()
    assert following == f"next    mlflow_e2eai clean {raw}"
    assert latest == f"latest is {model} (model)"
    compared = r"\d+ samples, parity \d\.\de[-+]\d\d"
    assert re.fullmatch(
        rf"export +trace, {compared}, opset 18, \d+ nodes, \d+\.\d\d MB +\d+\.\d s", line
    )
    assert main.main(["clean"]) == main.DONE
    _, err = said(capsys)
    latest, line, _ = err.splitlines()
    assert latest.startswith(f"latest is {raw} (")
    assert re.match(r"clean +\d+ to \d+ nodes, parity \d\.\de-\d\d, ", line)


def test_a_step_with_nothing_to_take_says_what_comes_first(store, capsys):
    for verb, sentence in (
        ("export", "Experiment 'tests' does not have a PyTorch model; make one with"),
        ("compile", "`mlflow run . -e clean` or `mlflow_e2eai clean` first, or give model_uri."),
        ("promote", "Experiment 'tests' has no registered version with a bundle"),
    ):
        assert main.main([verb]) == main.ERROR
        _, err = said(capsys)
        assert sentence in err
        assert len(err.splitlines()) == 1


def test_bisect_says_so_where_there_is_nothing_to_explain(version, capsys):
    assert main.main(["bisect", "--model-uri", "models:/net/1"]) == main.DONE
    out, _ = said(capsys)
    assert out == "The variant passes as it is: there is nothing to bisect."


def test_nodes_are_read_from_one_word_or_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"nodes": ["a,b", "/c/MatMul"]}')
    assert options.parse_nodes("none") == []
    assert options.parse_nodes("a, /c/MatMul") == ["a", "/c/MatMul"]
    assert options.parse_nodes(str(path)) == ["a,b", "/c/MatMul"]


def test_promote_says_0_for_promoted_and_3_for_rejected(version, capsys, tmp_path):
    assert main.main(["promote", "--name", "net", "--version", "1"]) == main.DONE
    out, _ = said(capsys)
    assert out.endswith("promoted: net 1 is champion")
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: [{metric: task/accuracy, at_least: 2}]")
    words = ["promote", "--name", "net", "--version", "1", "--gates", str(gates)]
    assert main.main(words) == main.NOT_PASSED
    out, _ = said(capsys)
    last = out.splitlines()[-1]
    assert last.startswith("rejected: task/accuracy = 1 (onnxruntime-cpu/fp")
    assert last.endswith("; gate: at least 2)")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("exprt", "There is no verb 'exprt'; did you mean export?"),
        ("banana", "There is no verb 'banana'; there are run, log, export, clean,"),
        ("help exprt", "There is no verb 'exprt'; did you mean export?"),
        ("log", "log: --model is missing: package.module:callable or file.py:callable"),
        (
            "export --model-uri x --opset banana",
            "export: --opset: must be a positive integer, got 'banana'",
        ),
        (
            "export --model-uri x --opset 0",
            "export: --opset: must be a positive integer, got '0'",
        ),
        ("export --model-uri x --exporter magic", "export: --exporter: must be one of auto,"),
        ("export --opset", "Option '--opset' requires an argument."),
        ("export x --model-uri y", "export: the model is given twice; leave --model-uri out."),
        ("export x y", "export: Got unexpected extra argument (y)"),
        ("compile x --rebuild maybe", "compile: --rebuild: must be yes or no, got 'maybe'"),
        ("export --model-uri x --opzet 3", "there is no option --opzet; did you mean --opset?"),
        ("export --model-uri x --dynamic-axes x=N", "'x=N' is not a dynamic axis"),
        ("export --model-uri x --dynamic-axes x:0=N:8:1:64", "min=8, opt=1, max=64"),
        ("export --model-uri models:/nothing/1", "There is no model 'models:/nothing/1'"),
        ("export --model-uri x", "There is no file or folder 'x', and no such model at "),
        ("convert --model-uri x --precision fp12", "The precision is 'fp12', but one of fp32"),
        (
            "convert --model-uri x --precision fp16 --keep-fp32 a.json",
            "Cannot read a.json: No such file",
        ),
        ("bisect --model-uri x --precision fp12", "The precision is 'fp12', but one of fp32"),
        ("bisect --model-uri x", "There is no file or folder 'x', and no such model at "),
        ("compile --model-uri x --targets sm86,sm99", "The target is 'sm99', but one of local"),
        ("compile --model-uri x --targets sm86 --precision fp3", "The precision is 'fp3', but one"),
        ("compile --model-uri x --targets sm86 --tf32 true", "there is no option --tf32"),
        ("compile --model-uri x --targets sm86 --build-settings threads=0", "threads is 0, but"),
        ("clean --model-uri x --plan missing.yaml", "Cannot read missing.yaml: No such file"),
        ("promote --name net --version one", "must be a positive integer, got 'one'"),
        ("promote --name nothing --version 1", "There is no version 1 of 'nothing'"),
        ("log --model nothing --name x", "write package.module:callable"),
    ],
)
def test_a_wrong_word_is_one_sentence_an_exit_code_and_no_traceback(store, capsys, words, sentence):
    assert main.main(words.split()) in (main.ERROR, main.USAGE)
    out, err = said(capsys)
    assert out == ""
    assert err.startswith("mlflow_e2eai: ")
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("exprt", main.USAGE),
        ("export --opzet 3", main.USAGE),
        ("export --opset banana", main.USAGE),
        ("export x --model-uri y", main.USAGE),
        ("log", main.USAGE),
        ("export models:/nothing/1", main.ERROR),
        ("promote --name nothing --version 1", main.ERROR),
    ],
)
def test_wrong_words_have_an_exit_code_of_their_own(store, capsys, words, code):
    assert main.main(words.split()) == code


def test_after_ctrl_c_the_command_that_goes_on_is_named(store, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for function, words, built in (
        ("pipeline.jobs:log", ["log", "--model", "a b.py:c"], ""),
        ("fleet.distributed:compile", ["compile", "m"], "; engines that are built already will"),
        ("flavor.repackage:package", ["pipeline", "m"], "; stages that are done will be linked"),
        ("cli.doctor:diagnose", ["doctor"], ""),
    ):
        module, _, name = function.partition(":")
        monkeypatch.setattr(f"mlflow_e2eai.{module}.{name}", interrupt)
        assert main.main(words) == main.INTERRUPTED
        sentence, going_on = said(capsys)[1].splitlines()
        assert sentence == "mlflow_e2eai: Interrupted by Ctrl-C."
        assert going_on.startswith(f"To continue: mlflow_e2eai {shlex.join(words)}{built}")


@pytest.mark.parametrize("words", ["export --model-uri x --opset banana", "export --model-uri x"])
def test_the_run_that_mlflow_run_made_says_failed_and_why(store, monkeypatch, capsys, words):
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    run = store.create_run(experiment)
    assert run.info.status == "RUNNING"
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert main.main(words.split()) in (main.ERROR, main.USAGE)
    _, err = said(capsys)
    after = store.get_run(run.info.run_id)
    assert after.info.status == "FAILED"
    assert err == f"mlflow_e2eai: {after.data.tags['e2eai.error']}"


def test_no_verb_prints_the_help_and_each_verb_in_it(capsys):
    assert main.main([]) == main.DONE
    out, _ = said(capsys)
    assert main.main(["--help"]) == main.DONE
    assert said(capsys)[0] == out
    assert main.main(["help"]) == main.DONE
    assert said(capsys)[0] == out
    for verb in verbs.VERBS.values():
        assert f"{verb.name} {verb.summary}" in " ".join(out.split())


@pytest.mark.parametrize("verb", verbs.VERBS.values(), ids=lambda verb: verb.name)
def test_the_help_of_a_verb_has_an_example_that_can_be_read_and_every_default(verb, capsys):
    assert main.main([verb.name, "--help"]) == main.DONE
    out, _ = said(capsys)
    example = out.partition("Example:\n")[2].strip()
    assert example == f"mlflow_e2eai {verb.name} {verb.example}"
    help_text = " ".join(out.split())
    for option in verb.all_options():
        if option.default is not None:
            assert f"[default: {option.default}]" in help_text
        assert option.help in help_text or option.argument in verb.positional
    command = main.VerbCommand(verb)
    words = verb.example.replace("gates.yaml", "default").replace("plan.yaml", "default")
    given = command.make_context(verb.name, words.split()).params
    assert given["verbose"] is given["quiet"] is False
    assert main.main(["help", verb.name]) == main.DONE
    assert said(capsys)[0] == out


def test_results_are_data_with_json(version, capsys):
    def data(words, code=main.DONE):
        assert main.main([*words.split(), "--json"]) == code
        return json.loads(said(capsys)[0])

    (cleaned,) = data("export models:/net/1")["models"]
    (half,) = data(f"convert {data(f'clean {cleaned}')['models'][0]}")["models"]
    (machine,) = data(f"evaluate {half} --evidence quick")["machines"]
    assert {each["variant"]: each["outcome"] for each in machine["variants"]} == {
        "torch/fp32": "reference",
        "onnxruntime-cpu/fp16": "passed",
    }
    decision = data("promote --name net --version 1")
    assert (decision["promoted"], decision["version"]) == (True, "1")
    assert all(gate["passed"] for gate in decision["gates"])
    assert data("choose-buckets 1,8:120,32:5 --count 2") == {"buckets": [8, 32]}


def test_a_rejection_as_data_has_its_reasons_and_its_exit_code(version, capsys, tmp_path):
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: [{metric: parity/measured, at_least: 99}]")
    words = ["promote", "--name", "net", "--version", "1", "--gates", str(gates), "--json"]

    assert main.main(words) == main.NOT_PASSED
    data = json.loads(said(capsys)[0])
    assert data["promoted"] is False
    assert data["reasons"] == ["parity/measured = 1 (gate: at least 99)"]


def test_a_model_is_given_by_its_option_or_without_one(capsys, store):
    """Both fail at the same place, which is after the words were read."""
    for words in (["export", "models:/m/1"], ["export", "--model-uri", "models:/m/1"]):
        assert main.main(words) == main.ERROR
        assert "There is no model 'models:/m/1'" in said(capsys)[1]


@pytest.mark.parametrize(
    ("words", "value"),
    [("", False), ("--rebuild", True), ("--rebuild yes", True), ("--rebuild no", False)],
)
def test_a_flag_stands_alone_or_takes_a_word_as_mlproject_gives_it(words, value):
    command = main.VerbCommand(verbs.VERBS["compile"])
    assert command.make_context("compile", words.split()).params["rebuild"] is value


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["help"], []])
def test_the_version_and_the_help_import_nothing_heavy(words):
    code = (
        "import sys; from mlflow_e2eai.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'mlflow', 'torch', 'numpy', 'onnx', 'pandas', 'yaml', 'tqdm'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"
    assert mlflow_e2eai.__version__ in done.stdout or "promote" in done.stdout


@pytest.mark.parametrize("words", [["export", "--help"], ["export", "--opzet", "3"]])
def test_the_help_of_a_verb_and_a_typing_error_import_neither_mlflow_nor_pytorch(words):
    code = (
        "import sys; from mlflow_e2eai.cli.main import main; main(sys.argv[1:]);"
        "print(sorted({'mlflow', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_completes_verbs_options_and_choices(shell):
    def completed(words, word):
        environment = {
            **os.environ,
            "_MLFLOW_E2EAI_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": f"mlflow_e2eai {words} {word}",
            # Fish gives the word, the others its place.
            "COMP_CWORD": word if shell == "fish" else str(len(words.split()) + 1),
        }
        code = "from mlflow_e2eai.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = done.stdout.splitlines()
        if shell == "zsh":  # kind, word and help in turns
            return lines[1::3]
        return [line.partition(",")[2].partition("\t")[0] for line in lines]

    assert completed("", "ex") == ["export", "explain", "export-triton"]
    assert "--exporter" in completed("export", "--ex")
    assert completed("export --exporter", "t") == ["trace"]


def test_dynamic_axes_are_read_from_one_word():
    assert axes.parse_axes("x:0=N:1:4:16") == {"x": {0: N}}
    by_four = axes.parse_axes("x:1=T:4:8:16:4")
    assert by_four == {"x": {1: Axis("T", min=4, opt=8, max=16, multiple=4)}}
    tuned = axes.parse_axes("x:0=N:1:8:64@1+8+32")
    assert tuned == {"x": {0: Axis("N", min=1, opt=8, max=64, buckets=(1, 8, 32))}}
    assert axes.parse_axes("none") == {}
    assert axes.parse_axes("auto") is None
    two = axes.parse_axes("ids:0=N:1:4:16,ids:1=S:8:8:32")
    assert {at: axis.name for at, axis in two["ids"].items()} == {0: "N", 1: "S"}
    assert two["ids"][1].max == 32


def test_build_settings_are_read_from_one_word_or_a_file(tmp_path):
    wanted = BuildSettings(optimization_level=5, refit=True, time_limit_s=90.5)
    assert (
        options.parse_build_settings("optimization_level=5, refit=yes,time_limit_s=90.5") == wanted
    )
    assert options.parse_build_settings(str(wanted)) == wanted
    assert (
        options.parse_build_settings("default")
        == BuildSettings()
        == options.parse_build_settings("threads=")
    )
    file = tmp_path / "build.yaml"
    file.write_text("optimization_level: 5\nrefit: yes\ntime_limit_s: 90.5\n")
    assert options.parse_build_settings(str(file)) == wanted


def test_buckets_are_chosen_from_sizes_in_one_word_or_a_file(tmp_path, capsys):
    assert profiles.parse_seen("1,8:120,1,32:5") == {1: 2, 8: 120, 32: 5}
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps({1: 900, 7: 40, 8: 300, 30: 5, 32: 60}))
    assert main.main(["choose-buckets", str(file), "--count", "3"]) == main.DONE
    out, _ = said(capsys)
    assert out == "1+8+32"
    chosen = axes.parse_axes(f"x:0=N:1:8:64@{out}")
    assert chosen["x"][0].buckets == (1, 8, 32)


@pytest.mark.parametrize("text", ["", "one", "1:two", "folder", "1;2"])
def test_what_holds_no_sizes_is_refused(text, capsys):
    assert main.main(["choose-buckets", text, "--count", "3"]) == main.USAGE
    _, err = said(capsys)
    assert "has no sizes; write 1,8:120,32 or give" in err
    assert len(err.splitlines()) == 1


ABSENT, FOLDER, EMPTY, BINARY = "absent", "folder", b"", b"\xff\xfe\x00"


@pytest.mark.parametrize(
    ("words", "content", "sentence"),
    [
        ("choose-buckets FILE.json --count 2", ABSENT, "FILE.json: No such file or directory; wri"),
        ("choose-buckets FILE.json --count 2", FOLDER, "FILE.json: Is a directory; write 1,8:120"),
        ("choose-buckets FILE.json --count 2", EMPTY, "'FILE.json' has no sizes; write"),
        ("choose-buckets FILE.json --count 2", BINARY, "FILE.json: it is not UTF-8 text; write"),
        ("log --model FILE.py:make", ABSENT, "cannot be created: there is no file FILE.py; check"),
        ("log --model FILE.py:make", FOLDER, "cannot be created: there is no file FILE.py; check"),
        ("log --model FILE.py:make", EMPTY, "There is no callable 'make' in FILE.py; write"),
        ("export --model-uri x --plan FILE.yaml", FOLDER, "Cannot read FILE.yaml: Is a directory;"),
        ("export --model-uri x --plan FILE.yaml", EMPTY, "FILE.yaml is empty; give a file with a"),
        ("export --model-uri x --plan FILE.yaml", BINARY, "it is not UTF-8 text; check the path."),
        ("promote --name x --version 1 --gates FILE.yaml", ABSENT, "FILE.yaml: No such file or d"),
        ("promote --name x --version 1 --gates FILE.yaml", FOLDER, "FILE.yaml: Is a directory;"),
        ("promote --name x --version 1 --gates FILE.yaml", BINARY, "it is not UTF-8 text; give"),
        ("promote --name x --version 1 --gates FILE.yaml", b"a: [\n", "line 2: this is not YAML ("),
        ("clean --onnx FILE.onnx", ABSENT, "There is no file FILE.onnx; check the path."),
        ("clean --onnx FILE.onnx", FOLDER, "Cannot read FILE.onnx: Is a directory; give an ONNX"),
        ("clean --onnx FILE.onnx", EMPTY, "FILE.onnx is not a valid ONNX file: it is empty"),
        ("clean --onnx n.onnx --input-example FILE.npz", ABSENT, "No such file or directory; give"),
        ("clean --onnx n.onnx --input-example FILE.npz", FOLDER, "Is a directory; give an npz"),
        ("clean --onnx n.onnx --input-example FILE.npz", EMPTY, "it is empty; give an npz file"),
        ("show FILE.onnx --no-browser", FOLDER, "There is no bundle at 'FILE.onnx'; give a"),
        ("show FILE.onnx --no-browser", EMPTY, "FILE.onnx is not a valid ONNX file: it is empty"),
        ("export-triton FILE --repository r", ABSENT, "There is no file or folder 'FILE', and no"),
        ("export-triton FILE --repository r", FOLDER, "There is no bundle at 'FILE'; give a"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    words, content, sentence, store, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (name,) = re.findall(r"FILE[.a-z]*", words)
    if content == FOLDER:
        Path(name).mkdir()
    elif content != ABSENT:
        Path(name).write_bytes(content)
    assert main.main(words.split()) in (main.ERROR, main.USAGE)
    _, err = said(capsys)
    assert sentence in err
    assert "Errno" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is not a build setting; write name=value"),
        ("threads", "'threads' is not a build setting"),
        ("threads=[", r"'threads=\[' is not a build setting"),
        ("optimisation_level=5", r"no build setting 'optimisation_level'; did you mean opt"),
        ("fast=yes", "no build setting 'fast'; there are optimization_level, workspace_bytes"),
        ("threads=two", "threads is 'two', but a positive 64-bit integer is expected"),
        ("refit=1", "refit is 1, but True or False is expected"),
    ],
)
def test_what_is_no_build_setting_is_refused(text, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        options.parse_build_settings(text)


def test_a_file_without_build_settings_is_refused(tmp_path):
    file = tmp_path / "build.yaml"
    file.write_text("- threads\n")
    with pytest.raises(InvalidInputError, match=r"build\.yaml has no settings by name"):
        options.parse_build_settings(str(file))


@pytest.mark.parametrize(
    "text", ["", "x", "x:0", "x:0=N", "x:0=N:1:2", "x:a=N:1:2:3", "x:0=N:1:2:c"]
)
def test_what_is_no_dynamic_axis_is_refused(text):
    with pytest.raises(InvalidInputError, match="is not a dynamic axis"):
        axes.parse_axes(text)


def test_the_tables_of_a_new_database_are_no_matter_of_the_user(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_e2eai", "history", "digits"],
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/new.db"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == main.ERROR
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlflow_e2eai: There is no registered model 'digits'")


def test_a_number_of_5000_digits_is_one_short_sentence():
    with pytest.raises(InvalidInputError) as raised:
        options.parse_whole("9" * 5000)

    assert "must be a positive integer of at most 100 digits, got '999" in str(raised.value)
    assert len(str(raised.value)) < 300
