"""Small ONNX models that stand for the published face models, and the red faces that they know.

They are written byte by byte, so that no package for it is needed: a detector with the names and shapes of YuNet's
twelve outputs, and embedders with the inputs of SFace (pixels) and of insightface's packs (-1 to 1).
"""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

FLOAT, INT64 = 1, 7


def _varint(value: int) -> bytes:
    value, made = value % 2**64, bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def _field(number: int, value) -> bytes:
    """One field of a protobuf message: a whole number, a float, or bytes (texts and messages)."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _tensor(name: str, array: np.ndarray) -> bytes:
    kind = INT64 if array.dtype == np.int64 else FLOAT
    dims = b"".join(_field(1, int(side)) for side in array.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, np.ascontiguousarray(array).tobytes())


def _attribute(name: str, value) -> bytes:
    if isinstance(value, float):
        return _field(1, name) + _field(2, value) + _field(20, 1)
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, 2)
    return _field(1, name) + b"".join(_field(8, one) for one in value) + _field(20, 7)


def _value(name: str, shape: tuple) -> bytes:
    dims = b"".join(_field(1, _field(1, one) if isinstance(one, int) else _field(2, one)) for one in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, FLOAT) + _field(2, dims)))


class Graph:
    """Collects the nodes and constants of a model; `add` gives the name of what the node puts out."""

    def __init__(self):
        self.nodes, self.constants, self.count = b"", b"", 0

    def constant(self, array) -> str:
        array = np.asarray(array)
        array = array if array.dtype == np.int64 else array.astype(np.float32)
        self.count += 1
        self.constants += _field(5, _tensor(f"c{self.count}", array))
        return f"c{self.count}"

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes) -> str:
        self.count += 1
        out = name or f"n{self.count}"
        node = b"".join(_field(1, one) for one in inputs) + _field(2, out) + _field(3, f"node_{out}") + _field(4, kind)
        self.nodes += _field(1, node + b"".join(_field(5, _attribute(*one)) for one in attributes.items()))
        return out

    def save(self, path: Path, source: tuple[str, tuple], results: dict[str, tuple]) -> Path:
        ends = _field(11, _value(*source)) + b"".join(_field(12, _value(*one)) for one in results.items())
        graph = self.nodes + _field(2, "toy") + self.constants + ends
        path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
        return path


# Where the eyes, the nose and the corners of the mouth of a red face are said to be, in its sides from its middle.
PLACES = ((-0.2, -0.15), (0.2, -0.15), (0.0, 0.05), (-0.16, 0.25), (0.16, 0.25))


def write_detector(path: Path, fixed: bool = True) -> Path:
    """Finds what is red and lies in a window of 7x7 cells of 32 pixels: its middle, its side, five landmarks.

    `fixed`: the shape of the 2023 file, else that of the one of 2026 whose height and width are open.
    """
    graph = Graph()
    red = graph.add("Conv", "input", graph.constant(np.array([-0.5, -0.5, 1.0]).reshape(1, 3, 1, 1) / 255))  # BGR
    red = graph.add("Clip", graph.add("Relu", red), graph.constant(0.0), graph.constant(0.7))
    results = {}

    def put(kind: str, stride: int, source: str, width: int) -> None:
        moved = graph.add("Transpose", source, perm=[0, 2, 3, 1])
        name = f"{kind}_{stride}"
        graph.add("Reshape", moved, graph.constant(np.array([1, -1, width])), name=name)
        results[name] = (1, (640 // stride) ** 2 if fixed else f"n{stride}", width)

    for stride in (8, 16):  # nothing is ever found in these
        cells = graph.add("AveragePool", red, kernel_shape=[stride, stride], strides=[stride, stride])
        for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            put(kind, stride, graph.add("Conv", cells, graph.constant(np.zeros((width, 1, 1, 1)))), width)
    cells = graph.add("AveragePool", red, kernel_shape=[32, 32], strides=[32, 32])
    cells = graph.add("Mul", cells, graph.constant(1 / 0.7))
    y, x = np.mgrid[-3:4, -3:4].astype(np.float32)
    edge = np.maximum(abs(x), abs(y)) == 3

    def window(weights: np.ndarray) -> str:
        return graph.add("Conv", cells, graph.constant(weights.reshape(1, 1, 7, 7)), pads=[3, 3, 3, 3])

    area = graph.add("Add", window(np.ones((7, 7))), graph.constant(1e-6))
    across, down = (graph.add("Div", window(one), area) for one in (x, y))
    parts = []
    for offset in (across, down):  # it is this cell's if its middle is here
        near = graph.add("Sub", graph.constant(0.55), graph.add("Abs", offset))
        parts.append(graph.add("Mul", near, graph.constant(30.0)))
    parts.append(graph.add("Sub", graph.constant(1.0), graph.add("Mul", window(edge), graph.constant(8.0))))
    parts.append(graph.add("Mul", area, graph.constant(2.0)))
    score = None
    for part in parts:
        part = graph.add("Clip", part, graph.constant(0.0), graph.constant(1.0))
        score = part if score is None else graph.add("Mul", score, part)
    side = graph.add("Sqrt", area)
    middle = [graph.add("Add", one, graph.constant(0.5)) for one in (across, down)]
    log_side = graph.add("Log", side)
    points = [
        graph.add("Add", middle[axis], graph.add("Mul", side, graph.constant(place[axis])))
        for place in PLACES
        for axis in (0, 1)
    ]
    put("cls", 32, score, 1)
    put("obj", 32, score, 1)
    put("bbox", 32, graph.add("Concat", *middle, log_side, log_side, axis=1), 4)
    put("kps", 32, graph.add("Concat", *points, axis=1), 10)
    return graph.save(path, ("input", (1, 3, 640, 640) if fixed else (1, 3, "height", "width")), results)


def write_embedder(path: Path, features: int = 128) -> Path:
    """Features of the green and blue in 6x6 parts of an aligned face; 128 from pixels as SFace, 512 from -1 to 1."""
    rng, graph, scaled = np.random.default_rng(0), Graph(), features == 512
    weights = np.zeros((2, 3, 1, 1))
    weights[0, 1] = weights[1, 2] = 127.5 if scaled else 1  # of RGB
    shift = np.full(2, 127.5 - 45 if scaled else -45.0)
    colours = graph.add("Conv", "data", graph.constant(weights), graph.constant(shift))
    parts = graph.add("AveragePool", colours, kernel_shape=[14, 14], strides=[14, 14])
    if scaled:  # the layers that the packs are made of
        ones, zeros = graph.constant(np.ones(2)), graph.constant(np.zeros(2))
        parts = graph.add("BatchNormalization", parts, ones, zeros, zeros, ones, epsilon=1e-5)
        parts = graph.add("PRelu", parts, graph.constant(np.full((2, 1, 1), 0.9)))
    flat = graph.add("Flatten", parts, axis=1)
    matrix = np.zeros((features, 2, 8, 8))  # around the face lies the background, which is ignored
    matrix[:, :, 2:, 1:7] = rng.standard_normal((features, 2, 6, 6)) / 100
    matrix = matrix.reshape(features, 128)
    graph.add("Gemm", flat, graph.constant(matrix), graph.constant(np.zeros(features)), transB=1, name="fc1")
    return graph.save(path, ("data", ("batch" if scaled else 1, 3, 112, 112)), {"fc1": (1, features)})


def draw_face(person: int, side: int, noise: float = 6.0, seed: int = 0) -> Image.Image:
    """A red square; the green and blue of its 4x4 parts identify the person."""
    parts = np.random.default_rng(person).integers(0, 90, (4, 4, 2))
    pixels = np.zeros((4, 4, 3))
    pixels[..., 0], pixels[..., 1:] = 255, parts
    pixels = pixels.repeat(-(-side // 4), 0).repeat(-(-side // 4), 1)[:side, :side]
    pixels[..., 1:] += np.random.default_rng(seed).normal(0, noise, (side, side, 2))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_portrait(
    size: tuple[int, int], faces: list[tuple[int, int, tuple[int, int]]], seed: int = 0, contrast: float = 60
) -> Image.Image:
    """A grey, grained image with faces: (person, side, (left, top)); `contrast` is that of the grain."""
    grain = np.random.default_rng(seed).normal(128, contrast, (size[1] // 4 + 1, size[0] // 4 + 1, 1))
    pixels = grain.repeat(4, 0).repeat(4, 1)[: size[1], : size[0]].repeat(3, 2)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    for person, side, place in faces:
        image.paste(draw_face(person, side, seed=seed), place)
    return image
