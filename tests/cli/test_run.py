"""`run`: one command from a file, a folder of weights or a callable to a version."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai.cli import main
from mlflow_e2eai.pipeline.model_source import open_model

pytestmark = pytest.mark.usefixtures("on_threads")

AXES_TEXT = "x:0=N:1:4:16"
ASSUMED = r"No input example was given; used instead: two sentences of 16 tokens through the"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One small model in all forms of PyTorch's, and its example."""
    monkeypatch.chdir(tmp_path)
    module, x = net(), torch.from_numpy(features())
    torch.jit.trace(module, x).save("script.pt")
    torch.save(module, "pickled.pth")
    torch.save(module.state_dict(), "weights.pt")
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, "last.ckpt")
    torch.export.save(torch.export.export(module, (x,)), "program.pt2")
    sizes = {"x": {0: torch.export.Dim("batch", min=2, max=16)}}
    program = torch.export.export(module, (x,), dynamic_shapes=sizes)
    torch.export.save(program, "any_size.pt2")
    np.savez("x.npz", x=features())
    return tmp_path


def run(*words):
    return main.main(["run", *words, "--precisions", "fp32", "--evidence", "quick"])


def output_of(model):
    with torch.no_grad():
        return model(torch.from_numpy(features())).numpy()


def test_a_file_becomes_a_version_and_the_next_command_is_named(store, folder, capsys):
    words = ["--input-example", "x.npz", "--dynamic-axes", AXES_TEXT, "--register", "net"]
    assert run("script.pt", *words) == main.DONE

    captured = capsys.readouterr()
    *_, version, model = captured.out.strip().splitlines()
    assert version == "models:/net/1"
    assert re.search(r"^onnxruntime-cpu/fp32 .* passed$", captured.out, re.MULTILINE)
    lines = captured.err.strip().splitlines()
    stages = [line.split("  ")[0] for line in lines]
    assert [s for s in stages if s in ("log", "export", "clean", "evaluate", "package")] == [
        *("log", "export", "clean", "evaluate", "package")
    ]
    report, link, following = (line.split(maxsplit=1) for line in lines[-3:])
    assert (report[0], link[0], following[0]) == ("report", "run", "next")
    assert "<html" in (folder / report[1]).read_text("utf-8")
    assert store.get_run(link[1]).info.run_name == "script v1"
    assert following[1] == "mlflow_e2eai promote net 1"
    loaded = mlflow_e2eai.load_model(model)
    np.testing.assert_allclose(
        loaded(x=features())["output"], output_of(net()), rtol=1e-3, atol=1e-5
    )


def test_the_result_is_data_with_json(store, folder, capsys):
    words = ["--input-example", "x.npz", "--name", "mine", "--json", "--quiet"]
    assert run("script.pt", *words) == main.DONE

    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert {"next", "report", "run", "variants"} < data.keys()
    assert store.get_run(data["run"]).info.run_name == "mine"
    assert data["version"] is None
    assert data["next"].endswith(f"--model-uri {data['model_uri']}")


def test_a_logged_model_and_a_callable_are_sources_too(store, capsys):
    assert run("small_models:build", "--quiet", "--name", "net") == main.DONE
    bundle = capsys.readouterr().out.strip().splitlines()[-1]
    assert run(bundle, "--quiet") == main.DONE
    names = {model.name for model in store.search_logged_models(["1"])}
    assert {"net", "net-source"} < names
    assert not any("source-source" in name for name in names)


def test_an_onnx_file_is_a_source_too(store, folder, capsys):
    raw, _ = mlflow_e2eai.export(
        net(), {"x": features()}, out=folder / "net.onnx", dynamic_axes=AXES
    )
    assert run(str(raw.path), "--dynamic-axes", AXES_TEXT, "--quiet") == main.DONE
    assert "onnxruntime-cpu/fp32" in capsys.readouterr().out


def test_a_pickle_needs_consent_and_its_error_names_what_it_imports(folder):
    refusal = (
        r"pickled.pth is a pickle that runs code .* names .*torch\.nn\.modules\.linear\.Linear"
    )
    with pytest.raises(ValueError, match=refusal):
        open_model("pickled.pth", input_example=folder / "x.npz")


@pytest.mark.parametrize(("name", "allow_pickle"), [("pickled.pth", True), ("program.pt2", False)])
def test_a_module_and_a_program_are_loaded(name, allow_pickle, folder):
    opened = open_model(name, input_example=folder / "x.npz", allow_pickle=allow_pickle)
    model = opened["model"]
    module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    np.testing.assert_array_equal(output_of(module), output_of(net()))


def test_a_program_brings_its_example_and_wants_axes_where_it_leaves_sizes_open(folder):
    opened = open_model("program.pt2")
    np.testing.assert_array_equal(opened["input_example"][0], features())
    with pytest.raises(ValueError, match=r"leaves size 0 of 'x' open.*--dynamic-axes x:0=N:1:8:64"):
        open_model("any_size.pt2")
    assert open_model("any_size.pt2", dynamic_axes=AXES)["dynamic_axes"] == AXES


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("scrpt.pt", "There is no file scrpt.pt; did you mean script.pt?"),
        ("nothing/at.all", "There is no file nothing/at.all; check the path."),
        ("x.npz", "x.npz is not a model file; give a model.pt"),
        (".", "is a folder without config.json; give a model.pt"),
        (
            "mine.py",
            "mine.py needs the name of a callable in it, as mine.py:build; there are: build",
        ),
        ("mine.py:biuld", "There is no callable 'biuld' in mine.py; did you mean build?"),
        ("mine.py:build", "must return a mapping with 'model' and 'input_example'"),
        ("mine.py:build --input-example x.npz", "returns its own input_example and samples_at"),
        ("script.pt", "has no input example; write one with numpy.savez('example.npz', x=...)"),
        (
            "weights.pt",
            "has weights or other values (body.0.weight, body.0.bias, body.1.weight, …)",
        ),
        ("last.ckpt", "has weights or other values (epoch, state_dict), but no model to load"),
        ("broken.pt", "broken.pt is not a model that PyTorch can read"),
        ("models:/net/1", "There is no model 'models:/net/1'"),
        ("models:/net/1 --input-example x.npz", "is logged with its input_example"),
        ("script.pt --name a/b", "MLflow does not take name='a/b'"),
    ],
)
def test_what_is_no_model_is_one_sentence(words, sentence, store, folder, capsys):
    (folder / "mine.py").write_text("class Net: pass\n\ndef build():\n    return 1\n")
    (folder / "broken.pt").write_bytes(b"nothing")
    assert run(*words.split()) == main.ERROR
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_class_that_cannot_be_found_again_is_one_sentence(folder):
    module = type("Gone", (torch.nn.Linear,), {"__module__": "small_models"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("small_models.Gone", module, raising=False)
        torch.save(module(2, 2), "gone.pt")
    with pytest.raises(
        ValueError, match=r"gone.pt was pickled with a class that cannot be imported"
    ):
        open_model("gone.pt", input_example=folder / "x.npz", allow_pickle=True)


# Folders of Hugging Face weights


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder of a small BERT with random weights, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=40, intermediate_size=32, max_position_embeddings=32, **sizes
    )
    transformers.BertForSequenceClassification(config).save_pretrained(place)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "it", "was", "on", "this"]
    (place / "vocab.txt").write_text("\n".join(words))
    vocabulary = {word: at for at, word in enumerate(words)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(place)
    return place


@pytest.mark.exporters
def test_a_folder_of_weights_goes_the_whole_way_and_says_what_it_assumed(store, bert, capsys):
    assert run(str(bert), "--name", "bert", "--register", "bert") == main.DONE
    captured = capsys.readouterr()
    assert "INPUTS ASSUMED" in captured.err
    (report,) = re.findall(r"^report +(.+)$", captured.err, re.MULTILINE)
    assert "two sentences of 16 tokens" in Path(report).read_text("utf-8")
    loaded = mlflow_e2eai.load_model("models:/bert/1")
    assert {"input_ids", "attention_mask"} <= {
        spec.name for spec in loaded.manifest.graphs[0].inputs
    }
    # What was assumed is known to later steps on the model too.
    (source,) = store.search_logged_models(["1"], "name = 'bert-source'")
    assert re.match(ASSUMED, source.tags["e2eai.assumed"])


def test_what_is_given_for_a_folder_is_not_assumed(bert, tmp_path):
    ids = np.ones((2, 16), np.int64)
    np.savez(tmp_path / "example.npz", input_ids=ids, attention_mask=ids)
    assumed = open_model(str(bert))
    assert re.match(ASSUMED, assumed["input_example"].assumptions[0])
    assert len(assumed["input_example"].assumptions) == 1 + 2 * len(assumed["input_example"])
    given = open_model(str(bert), input_example=tmp_path / "example.npz", dynamic_axes={})
    assert type(given["input_example"]) is dict
    assert given["dynamic_axes"] == {}


def test_an_image_model_gets_noise_of_its_size(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=32, patch_size=8, intermediate_size=32, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    assert opened["input_example"]["pixel_values"].shape == (2, 3, 32, 32)
    assert opened["dynamic_axes"]["pixel_values"][0].max == 64


def test_a_folder_whose_head_was_never_trained_is_refused(bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.BertModel.from_pretrained(bert).save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    text["architectures"] = ["BertForTokenClassification"]
    (tmp_path / "config.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"has no weights for classifier.bias and 1 more, so"):
        open_model(str(tmp_path))


def test_without_transformers_the_command_that_installs_it_is_named(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'mlflow_e2eai[transformers]'")):
        open_model(str(bert))


# What was logged, looked at


def test_a_model_is_inspected_and_its_report_is_found(store, folder, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run("small_models:build", "--quiet", "--register", "net") == main.DONE
    capsys.readouterr()

    for name in ("net/1", "net", "models:/net/1"):
        assert main.main(["inspect", name]) == main.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "input   x: float32 [N, 8]",
        "output  output: float32 [N, 3]",
        "axis    N: 1 to 16",
        "opset   18",
    ]
    assert lines[5].startswith("variant ")
    assert main.main(["inspect", "models:/net/1", "--json"]) == main.DONE
    data = json.loads(capsys.readouterr().out)
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 8]}]
    assert "onnxruntime-cpu/fp32" in {row["variant"] for row in data["variants"]}

    assert main.main(["report", "models:/net/1"]) == main.DONE
    page = Path(capsys.readouterr().out.strip())
    assert "<html" in page.read_text("utf-8")
    assert opened == [page.as_uri()]
    assert main.main(["report", "models:/net/1", "--no-browser"]) == main.DONE
    assert len(opened) == 1


def test_a_file_and_a_graph_are_inspected_too(store, folder, capsys):
    raw, _ = mlflow_e2eai.export(
        net(), {"x": features()}, out=folder / "net.onnx", dynamic_axes=AXES
    )
    assert main.main(["clean", "--onnx", str(raw.path), "--dynamic-axes", AXES_TEXT]) == main.DONE
    graph = capsys.readouterr().out.strip()
    for model in (str(raw.path), graph):
        assert main.main(["inspect", model]) == main.DONE
        assert "input   x: float32 [N, 8]\n" in capsys.readouterr().out
    assert main.main(["report", graph, "--no-browser"]) == main.ERROR
    assert "has no report; `mlflow_e2eai pipeline` makes" in capsys.readouterr().err
