"""Faces by OpenCV's own detector and recogniser, on small ONNX models of the published ones' form."""

import cv2
import numpy as np
import pytest
from PIL import Image

from preparation import portraits
from tests.toy_faces import draw_portrait, write_detector, write_embedder
from utils import faces
from utils.cli import UserError
from utils.faces import Face, align_face, crop_head, crop_to_head, face_embedding, find_faces, load_faces


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    return {
        "fixed": str(write_detector(folder / "yunet.onnx")),
        "open": str(write_detector(folder / "yunet_open.onnx", fixed=False)),
        "sface": str(write_embedder(folder / "sface.onnx", 128)),
        "pack": str(write_embedder(folder / "w600k_toy.onnx", 512)),
        "folder": folder,
    }


@pytest.mark.parametrize("kind", ["fixed", "open"])
@pytest.mark.parametrize("size", [(640, 640), (1000, 700), (300, 420)])
def test_faces_are_found_where_they_are_at_any_size_of_image(files, kind, size):
    large, small = size[1] // 4, size[1] // 6
    drawn = [(1, large, (20, 40)), (2, small, (size[0] - small - 30, size[1] - small - 60))]
    found = find_faces(load_faces(files[kind]), draw_portrait(size, drawn))
    assert len(found) == 2
    for face, (_, side, (left, top)) in zip(found, drawn):
        np.testing.assert_allclose(face.box, (left, top, left + side, top + side), atol=max(4, side * 0.06))
        assert face.landmarks[0][0] < face.landmarks[1][0] and 0.9 <= face.score <= 1


def test_a_face_too_large_for_the_first_look_is_found_by_the_second(files):
    models, image = load_faces(files["fixed"]), draw_portrait((640, 640), [(1, 300, (202, 202))])
    canvas = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
    assert models.detector.detect(canvas)[1] is None
    (face,) = find_faces(models, image)
    np.testing.assert_allclose(face.box, (202, 202, 502, 502), atol=10)
    assert find_faces(models, draw_portrait((640, 640), [])) == []


def test_alignment_is_that_of_opencv(files):
    rng, turn = np.random.default_rng(0), np.exp(0.4j) * 1.7
    image = Image.fromarray(cv2.GaussianBlur(rng.integers(0, 255, (300, 300, 3), np.uint8), (0, 0), 2))
    points = turn * faces.ALIGNED + (90 + 20j) + rng.normal(0, 2, 5)
    face = Face((60, 60, 240, 240), tuple((z.real, z.imag) for z in points), 1.0)
    row = np.array([60, 60, 180, 180, *np.ravel(face.landmarks), 1.0], np.float32)
    by_opencv = cv2.FaceRecognizerSF.create(files["sface"], "").alignCrop(np.asarray(image), row)
    apart = np.abs(align_face(image, face).astype(int) - by_opencv)
    assert apart.max() <= 2 and np.ptp(by_opencv) > 30


@pytest.mark.parametrize("kind", ["sface", "pack"])
def test_one_person_is_verified_and_another_is_not(files, kind):
    models = load_faces(files["fixed"], files[kind])

    def embed(person, side, place, seed):
        image = draw_portrait((500, 400), [(person, side, place)], seed)
        return face_embedding(models, image, find_faces(models, image)[0])

    first = embed(1, 160, (40, 60), 0)
    assert first @ first == pytest.approx(1)
    assert first @ embed(1, 100, (300, 150), 1) > 0.9 > models.threshold
    others = [first @ embed(person, 120, (100, 100), 2) for person in (2, 3, 4)]
    assert max(others) < models.threshold, others


def test_the_two_kinds_of_embedder_differ_in_what_they_are_given(files, caplog):
    sface, pack = (load_faces(None, files[kind]) for kind in ("sface", "pack"))
    assert (sface.embedder, sface.threshold) == ("sface", 0.363) and sface.detector is None
    assert (pack.embedder, pack.threshold) == ("insightface", 0.28)
    assert "non-commercial" in caplog.text and caplog.text.count("WARNING") == 1
    assert load_faces(None, str(files["folder"])).embedder == "insightface"  # of several files, w600k_toy.onnx


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "missing.onnx",
            ["no such file", "face_detection_yunet_2023mar.onnx", "leave out --face_detector and --face_crop"],
        ),
        ("yunet", ["hub", "huggingface.co/opencv/face_detection_yunet"]),
        ("pointer", ["Git LFS"]),
        ("text", ["text: is not a YuNet model that OpenCV can use; get face_detection_yunet_2023mar.onnx"]),
        ("sface", ["is not a YuNet model that OpenCV can use"]),
        ("", ["is a folder; give the .onnx file itself"]),
    ],
)
def test_what_is_no_detector_is_reported_with_what_to_do(files, tmp_path, monkeypatch, name, words):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "text").write_text("no model")
    given = {"sface": files["sface"]}.get(name, name if name in ("yunet", "missing.onnx") else str(tmp_path / name))
    with pytest.raises(UserError, match="--face_detector") as error:
        load_faces(given)
    assert all(word in str(error.value) for word in words), error.value


def test_an_embedder_of_other_features_is_refused(files, tmp_path):
    path = write_embedder(tmp_path / "odd.onnx", 96)
    with pytest.raises(UserError, match=r"96 features; expected 128 \(sface\) or 512"):
        load_faces(None, str(path))


@pytest.mark.parametrize("place", [(200, 150), (0, 0), (420, 330)])
def test_head_and_shoulders_hold_the_whole_face_and_lie_in_the_image(place):
    face = Face((*place, place[0] + 80, place[1] + 100), ((0.0, 0.0),) * 5, 1.0)
    left, top, right, bottom = crop_head((500, 430), face)
    assert right - left == bottom - top == 250
    assert 0 <= left <= face.box[0] and 0 <= top <= face.box[1] and face.box[2] <= right <= 500
    assert face.box[3] <= bottom <= 430
    if place == (200, 150):  # hair above, and more below than above
        assert 40 <= place[1] - top <= 70 and bottom - face.box[3] > place[1] - top


def test_a_face_that_fills_the_image_is_not_cut():
    face = Face((40.0, 30.0, 280.0, 290.0), ((0.0, 0.0),) * 5, 1.0)
    left, top, right, bottom = crop_head((320, 300), face)
    assert (bottom - top, right - left) == (300, 300) and left <= 40 and right >= 280


def test_head_crops_are_made_once_and_a_photo_without_a_face_stays_whole(files, tmp_path, caplog):
    models, photos = load_faces(files["fixed"]), []
    for name, drawn in (("a", [(1, 100, (50, 80))]), ("b", [])):
        draw_portrait((400, 500), drawn).save(tmp_path / f"{name}.png")
        photos.append((name, tmp_path / f"{name}.png"))
    photos.append(("c", (tmp_path / "a.png").read_bytes))  # as of a hub dataset
    crops = portraits.head_crops(photos, models, tmp_path / "heads")
    assert crops[1] is None and "no face is found in b" in caplog.text and crops[2] == crops[0]
    image = Image.open(crops[0])
    expected = crop_to_head(Image.open(tmp_path / "a.png"), models)
    assert image.size == (250, 250) and np.array_equal(np.asarray(image), np.asarray(expected))
    before = crops[0].stat().st_mtime_ns
    assert portraits.head_crops(photos, models, tmp_path / "heads")[0].stat().st_mtime_ns == before
    with pytest.raises(UserError, match="no face is found in any of 1 photo"):
        portraits.head_crops(photos[1:2], models, tmp_path / "heads")
