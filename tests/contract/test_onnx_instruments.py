"""The ONNX instruments on small models that are built here, with the inputs and outputs of the real files. What the real
weights answer is not tested; what is fed to them is, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lora_foundry.backends.onnx.embedders import CcipEmbedder, DinoEmbedder
from lora_foundry.backends.onnx.faces import ArcFaceEmbedder, SFaceEmbedder, YuNetDetector, align
from lora_foundry.backends.onnx.files import OnnxModel
from lora_foundry.backends.onnx.wd_tagger import WdTagger, prepare
from lora_foundry.domain.character import Character
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.download import Source
from lora_foundry.files.images import save_picture
from lora_foundry.recipe_files import load_recipe

FLOAT = TensorProto.FLOAT


def save(path: Path, inputs: list[Any], outputs: list[Any], nodes: list[Any], values: dict[str, Any]) -> None:
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    info = [
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "small", info[0], info[1], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def node(kind: str, inputs: list[str], output: str, **options: Any) -> Any:
    return helper.make_node(kind, inputs, [output], **options)


def make_mean_embedder(path: Path, side: int, tokens: bool) -> None:
    """Mean colour of each picture, (n, 3), or as the first of two tokens, (n, 2, 3)."""
    nodes = [node("ReduceMean", ["pixel_values"], "mean", axes=[2, 3], keepdims=0)]
    out: list[Any] = ["n", 3]
    if tokens:
        nodes += [
            node("Unsqueeze", ["mean", "axis"], "first"),
            node("Neg", ["first"], "second"),
            node("Concat", ["first", "second"], "out", axis=1),
        ]
        out = ["n", 2, 3]
    else:
        nodes += [node("Identity", ["mean"], "out")]
    axis = {"axis": np.array([1], np.int64)} if tokens else {}
    save(path, [("pixel_values", ["n", 3, side, side])], [("out", out)], nodes, axis)


@pytest.mark.parametrize(("kind", "side", "tokens"), [(DinoEmbedder, 224, True), (CcipEmbedder, 384, False)])
def test_an_embedder_gives_a_unit_row_a_picture(tmp_path: Path, kind: Any, side: int, tokens: bool) -> None:
    make_mean_embedder(tmp_path / kind.source.name, side, tokens)
    images = [Image.new("RGB", (300, 200), colour) for colour in ("red", "red", "blue")]
    rows = kind(tmp_path).embed(images)
    assert rows.shape == (3, 3)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows[0], rows[1])
    assert float(rows[0] @ rows[2]) < 0.5
    assert len(kind(tmp_path).embed([])) == 0


def test_dino_sees_the_middle_with_imagenets_mean(tmp_path: Path) -> None:
    make_mean_embedder(tmp_path / DinoEmbedder.source.name, 224, True)
    image = Image.new("RGB", (640, 256), "black")
    image.paste((255, 0, 0), (208, 0, 432, 256))
    colour = (np.array([1.0, 0, 0]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    row = DinoEmbedder(tmp_path).embed([image])[0]
    assert np.allclose(row, colour / np.linalg.norm(colour), atol=0.02)


def reference_input(image: Image.Image) -> np.ndarray:
    """What a WD v3 tagger is fed, written out: alpha over white, a centred white square, 448 px bicubic, BGR."""
    rgba = np.asarray(image.convert("RGBA"), np.float64)
    alpha = rgba[:, :, 3:] / 255
    flat = np.rint(rgba[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    height, width = flat.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = flat
    if side != 448:
        square = np.asarray(Image.fromarray(square).resize((448, 448), Image.Resampling.BICUBIC))
    return np.stack([square[:, :, 2], square[:, :, 1], square[:, :, 0]], axis=2).astype(np.float32)


@pytest.mark.parametrize(("size", "mode"), [((448, 448), "RGB"), ((300, 517), "RGB"), ((64, 64), "RGB"),
                                            ((901, 333), "RGBA"), ((120, 80), "L")])  # fmt: skip
def test_the_taggers_input_is_the_reference_pixel_by_pixel(size: tuple[int, int], mode: str) -> None:
    rng = np.random.default_rng(size[0])
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels, mode=None)
    found, expected = prepare(image), reference_input(image)
    assert found.dtype == np.float32
    assert found.shape == (448, 448, 3)
    assert np.abs(found - expected).max() <= (1 if mode == "RGBA" else 0)  # blending may round a level apart


TAGS = ("general_rating", "1girl", "red_hair", "^_^", "from_behind", "elara_(story)")
CATEGORIES = (9, 0, 0, 0, 0, 4)


def make_tagger(folder: Path, tags: int = len(TAGS)) -> WdTagger:
    """Chances that hang on the picture's blue, green and red, which come in that order: red hair where it is red."""
    weights = np.zeros((3, tags), np.float32)
    weights[2, 2], weights[1, 4], weights[0, 5] = 8 / 255, 8 / 255, 4 / 255
    bias = np.full(tags, -4, np.float32)
    bias[1] = 4
    nodes = [
        node("ReduceMean", ["input"], "mean", axes=[1, 2], keepdims=0),
        node("Gemm", ["mean", "w", "b"], "logits"),
        node("Sigmoid", ["logits"], "output"),
    ]
    sides: list[Any] = ["n", 448, 448, 3]
    save(folder / WdTagger.model.name, [("input", sides)], [("output", ["n", tags])], nodes,
         {"w": weights, "b": bias})  # fmt: skip
    rows = [f"{at},{name},{kind},1" for at, (name, kind) in enumerate(zip(TAGS, CATEGORIES, strict=True))]
    (folder / WdTagger.names.name).write_text("tag_id,name,category,count\n" + "\n".join(rows) + "\n")
    return WdTagger(folder)


def test_the_tagger_says_what_it_sees_and_answers_what_it_is_asked(tmp_path: Path) -> None:
    tagger = make_tagger(tmp_path)
    asked = tagger.understand(["1girl", "red hair", "back view", "a mood"])
    assert [trait.attribute for trait in asked] == ["1girl", "red hair", "from behind"]
    red, green = (Image.new("RGB", (50, 40), colour) for colour in ("red", "lime"))
    assert tagger.read([red, green]) == [
        {"1girl": "yes", "red hair": "yes", "from behind": "no"},
        {"1girl": "yes", "red hair": "no", "from behind": "yes"},
    ]


def test_the_tagger_captions_with_general_tags_alone(tmp_path: Path) -> None:
    tagger, character = make_tagger(tmp_path), Character(name="Elara", description="1girl")
    plan = plan_pictures(character, load_recipe("mini"), "x")
    record = save_picture(tmp_path / plan.record(0).file, Image.new("RGB", (64, 64), "red"), plan.record(0))
    assert tagger.describe(character, [record], tmp_path) == [["red hair", "1girl"]], "the surest first"
    (tmp_path / record.file).unlink()
    with pytest.raises(BackendError, match="cannot be read"):
        tagger.describe(character, [record], tmp_path)


def test_a_list_of_another_model_is_noticed(tmp_path: Path) -> None:
    tagger = make_tagger(tmp_path, tags=9)
    with pytest.raises(BackendError, match="9 tags"):
        tagger.read([Image.new("RGB", (8, 8))])


def make_yunet(path: Path, faces: list[tuple[int, int, int]]) -> None:
    """Answers with the given faces, (stride, column, row), whatever the picture: twelve outputs, as in the real file."""
    values, outputs, nodes = {}, [], []
    for stride in (8, 16, 32):
        columns = 640 // stride
        cells = columns * columns
        parts = {"cls": np.zeros((1, cells, 1)), "obj": np.zeros((1, cells, 1)), "bbox": np.zeros((1, cells, 4)),
                 "kps": np.zeros((1, cells, 10))}  # fmt: skip
        for wanted, column, row in faces:
            if wanted == stride:
                cell = row * columns + column
                parts["cls"][0, cell] = parts["obj"][0, cell] = 0.9
                parts["bbox"][0, cell] = [0.5, 0.5, np.log(4), np.log(5)]
                parts["kps"][0, cell] = [-1, -1, 1, -1, 0, 0, -0.8, 1, 0.8, 1]
        for name, part in parts.items():
            values[f"{name}{stride}"] = part.astype(np.float32)
            outputs.append((f"{name}_{stride}", list(part.shape)))
            nodes.append(node("Add", [f"{name}{stride}", "none"], f"{name}_{stride}"))
    nodes.insert(0, node("ReduceMean", ["input"], "mean", axes=[0, 1, 2, 3], keepdims=0))
    nodes.insert(1, node("Mul", ["mean", "zero"], "none"))
    values["zero"] = np.float32(0)
    save(path, [("input", [1, 3, 640, 640])], outputs, nodes, values)


def test_yunets_outputs_become_faces_in_the_pictures_own_pixels(tmp_path: Path) -> None:
    make_yunet(tmp_path / YuNetDetector.source.name, [(16, 10, 5), (16, 11, 5), (32, 2, 15)])
    detector = YuNetDetector(tmp_path)
    image = Image.new("RGB", (320, 320))
    faces = detector.faces(image)
    assert [len(each) for each in detector.find([image])] == [len(faces)] == [2], "overlapping ones are one"
    assert detector.find([image])[0][0] == pytest.approx(tuple(faces[0].box))
    assert faces[0].box.tolist() == pytest.approx([(168 - 32) / 2, (88 - 40) / 2, 32, 40], abs=0.1)
    assert faces[0].points[2].tolist() == pytest.approx([80, 40], abs=0.1)
    make_yunet(tmp_path / YuNetDetector.source.name, [])
    assert YuNetDetector(tmp_path).find([image]) == [[]]


def test_a_face_is_brought_to_its_place() -> None:
    places = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
                       [70.7299, 92.2041]], np.float32)  # fmt: skip
    turn = 1.7 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]], np.float32)
    there = places @ turn.T + [60, 30]
    image = Image.new("RGB", (400, 400), "black")
    x, y = there[0]
    image.paste((255, 0, 0), (int(x) - 3, int(y) - 3, int(x) + 4, int(y) + 4))
    crop = np.asarray(align(image, there.astype(np.float32)), float)[:, :, 0]
    rows, columns = np.nonzero(crop > 128)
    assert crop.shape == (112, 112)
    assert columns.mean() == pytest.approx(places[0, 0], abs=1)
    assert rows.mean() == pytest.approx(places[0, 1], abs=1)


@pytest.mark.parametrize("kind", [SFaceEmbedder, ArcFaceEmbedder])
def test_a_face_embedder_says_nothing_where_there_is_no_face(tmp_path: Path, kind: Any) -> None:
    nodes = [
        node("ReduceMean", ["data"], "mean", axes=[2, 3], keepdims=0),
        node("Gemm", ["mean", "w"], "out"),
    ]
    save(tmp_path / kind.source.name, [("data", [1, 3, 112, 112])], [("out", [1, kind.width])], nodes,
         {"w": np.random.default_rng(0).normal(size=(3, kind.width)).astype(np.float32)})  # fmt: skip
    make_yunet(tmp_path / YuNetDetector.source.name, [(16, 10, 5)])
    images = [Image.new("RGB", (320, 320), colour) for colour in ("red", "blue")]
    rows = kind(tmp_path).embed(images)
    assert rows.shape == (2, kind.width)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    make_yunet(tmp_path / YuNetDetector.source.name, [])
    assert not kind(tmp_path).embed(images).any()


def test_a_file_that_is_nowhere_says_where_it_would_come_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="non-commercial"):
        OnnxModel(ArcFaceEmbedder.source, tmp_path).run(np.zeros((1, 3, 112, 112), np.float32))
    source = Source("x.onnx", "MIT", "nobody/nothing", "x.onnx")
    with pytest.raises(InputError, match=r"nobody/nothing.*model\.instruments"):
        OnnxModel(source, tmp_path).run(np.zeros((1, 3), np.float32))


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / CcipEmbedder.source.name).write_bytes(b"not a model")
    with pytest.raises(InputError, match=CcipEmbedder.source.name):
        CcipEmbedder(tmp_path).embed([Image.new("RGB", (9, 9))])
