"""Identity by faces and fidelity by features: figures with intervals, against cases whose answer is known."""

import json

import numpy as np
import pytest

from evaluation import fidelity, identity
from evaluation.intervals import jackknife, wilson
from tests.toy_faces import draw_portrait, write_detector, write_embedder
from utils.cli import UserError
from utils.faces import load_faces


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    """Models, four photos of person 1, and images of two prompts: 3 + 3 right, 1 wrong, 1 without a face."""
    root = tmp_path_factory.mktemp("identity")
    models = load_faces(str(write_detector(root / "yunet.onnx")), str(write_embedder(root / "sface.onnx")))
    references = []
    for i in range(4):
        references.append(root / f"reference{i}.png")
        draw_portrait((300, 300), [(1, 90 + 10 * i, (40 + 20 * i, 80))], seed=i).save(references[-1])
    images = []
    for i, who in enumerate((1, 1, 1, 2, 1, 1, 1, None)):
        path = root / f"{i}.png"
        draw_portrait((256, 256), [(who, 100, (60, 50 + 5 * i))] if who else [], seed=20 + i).save(path)
        images.append({"path": path, "text": "at home" if i < 4 else "on a beach"})
    return models, references, images


@pytest.fixture(scope="module")
def compared(person):
    models, references, images = person
    return identity.compare_identity(references, images, models)


def test_each_image_says_whether_it_shows_the_person(person, compared):
    rows = compared.rows
    assert [row["verified"] for row in rows] == [True, True, True, False, True, True, True, False]
    assert [row["face"] for row in rows] == [True] * 7 + [False] and rows[7]["centroid"] is None
    assert all(row["nearest"] > 0.9 for row in rows if row["verified"]) and rows[3]["nearest"] < 0.363
    assert rows[0]["nearest_reference"] in person[1]


def test_figures_keep_to_the_contract_of_metrics_json(compared):
    figures = {one.id: one.as_json() for one in compared.figures}
    assert list(figures) == [f"identity/{name}" for name in ("face_found", "centroid", "nearest", "verified")]
    for one in figures.values():
        assert one["group"] == "identity" and one["encoder"] == "sface" and one["better"] == "higher"
        assert one["low"] <= one["value"] <= one["high"] and one["how"]
    face, verified = figures["identity/face_found"], figures["identity/verified"]
    assert (face["value"], face["low"], face["high"]) == wilson(7, 8) and face["floor"] is None
    assert (verified["value"], verified["low"], verified["high"]) == wilson(6, 8)
    assert figures["identity/centroid"]["n"] == 7 and figures["identity/centroid"]["floor"]["value"] > 0.9
    assert verified["floor"]["value"] == 1
    json.dumps([*figures.values(), compared.splits])


def test_prompts_have_figures_of_their_own(compared):
    verified = {one["value"]: one for one in compared.splits["identity_verified"]["text"]}
    assert {one: (part["mean"], part["n"]) for one, part in verified.items()} == {
        "at home": (0.75, 4),
        "on a beach": (0.75, 4),
    }
    cosines = {one["value"]: one for one in compared.splits["identity_centroid"]["text"]}
    assert cosines["on a beach"]["mean"] > 0.9 > cosines["at home"]["mean"] and cosines["on a beach"]["n"] == 3


def test_verification_does_not_grow_easier_with_more_references():
    rng = np.random.default_rng(0)
    others = rng.standard_normal((200, 16))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    references = rng.standard_normal((60, 16))
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    few, many = (identity.is_verified(others, references[:n], 0.363).mean() for n in (3, 60))
    nearest = [((others @ references[:n].T).max(1) >= 0.363).mean() for n in (3, 60)]
    assert nearest[1] > nearest[0] + 0.3 and many <= few < 0.1


def test_images_without_any_face_have_no_cosine_and_no_error(person):
    models, references, images = person
    figures = {one.id: one.as_json() for one in identity.compare_identity(references, images[7:], models).figures}
    assert "refused" in figures["identity/centroid"] and figures["identity/centroid"]["value"] is None
    assert figures["identity/face_found"]["value"] == figures["identity/verified"]["value"] == 0


def test_references_without_a_face_are_named_or_refused(person, caplog):
    models, references, images = person
    found = identity.compare_identity([*references, images[7]["path"]], images[:1], models).references
    assert found.without_face == [images[7]["path"]] and "7.png" in caplog.text
    with pytest.raises(UserError, match="--identity_reference: no face is found in 1 photo"):
        identity.compare_identity([images[7]["path"]], images, models)


def test_references_of_several_people_are_named(person, tmp_path, caplog):
    models, references, _ = person
    others = [tmp_path / f"other{i}.png" for i in range(2)]
    for i, path in enumerate(others):
        draw_portrait((300, 300), [(2, 100, (60 + 20 * i, 80))], seed=40 + i).save(path)
    found = identity.embed_references([*references, others[0]], models)
    assert found.unlike_others == others[:1]
    assert "--identity_reference: unlike most of the others (cosine below 0.363): other0.png; give" in caplog.text
    found = identity.embed_references([*references[:2], *others], models)
    assert found.unlike_others == [*references[:2], *others]  # it is not known who is meant
    caplog.clear()
    assert not identity.embed_references(references, models).unlike_others
    assert not caplog.text


def test_a_reference_with_several_faces_and_one_reference_alone_are_warned_of(person, tmp_path, caplog):
    models, references, images = person
    faces = [(1, 150, (40, 60)), (2, 100, (460, 340))]
    draw_portrait((640, 500), faces).save(tmp_path / "both.png")
    draw_portrait((640, 500), [faces[0], (2, 60, (460, 340))]).save(tmp_path / "behind.png")
    photos = [*references, tmp_path / "both.png", tmp_path / "behind.png"]
    found = identity.embed_references(photos, models)
    assert found.several_faces == [tmp_path / "both.png"] and "several faces of similar size" in caplog.text
    figures = [one.as_json() for one in identity.compare_identity(references[:1], images, models).figures]
    assert "--identity_reference: with one photo there is no floor" in caplog.text
    assert figures[3]["floor"] is None and "no floor: needs a second photo" in figures[3]["how"]


def test_an_image_that_cannot_be_read_shows_nobody(person, tmp_path):
    models, references, images = person
    (tmp_path / "torn.png").write_bytes(b"no image")
    torn = {"path": tmp_path / "torn.png", "text": "at home"}
    found = identity.compare_identity(references, [*images, torn], models)
    figures = {one.id: one.as_json() for one in found.figures}
    assert figures["identity/verified"]["value"] == 6 / 9 and figures["identity/face_found"]["value"] == 7 / 9
    assert figures["identity/centroid"]["n"] == 7


def directions(n: int, spread: float, seed: int, size: int = 24) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.eye(size)[0] + spread * rng.standard_normal((n, size)) / np.sqrt(size)


def test_similarity_to_the_subject_has_the_photos_own_as_its_floor():
    instance = directions(8, 0.5, 0)
    same, far = (
        fidelity.subject_similarity(instance, directions(60, *drawn), "clip").as_json() for drawn in ((0.5, 1), (3, 2))
    )
    assert same["id"] == "fidelity/subject/clip" and same["name"] == "CLIP-I" and (same["n"], same["n_real"]) == (60, 8)
    assert same["low"] < same["floor"]["high"] and same["floor"]["low"] < same["high"] and far["high"] < same["low"]
    expected = 1 / (1 + 0.25)  # of two directions that share a part of 1 and have 0.25 of their own
    assert same["value"] == pytest.approx(expected, abs=0.05)


def test_prompts_are_compared_row_by_row():
    texts = directions(20, 2, 0)
    right = fidelity.prompt_similarity(texts * 3, texts).measured
    wrong = fidelity.prompt_similarity(texts[::-1], texts).measured
    assert right.value == pytest.approx(1) and wrong.high < 0.9
    with pytest.raises(UserError, match="one for one"):
        fidelity.prompt_similarity(texts[:5], texts)


def test_divergence_parts_a_kept_class_from_one_that_became_the_subject():
    before, subject = directions(40, 3, 0), np.roll(directions(6, 0.3, 1), 5, axis=1)
    same = {one.id.split("/")[1]: one.measured for one in fidelity.prior_divergence(before, before, "clip", subject)}
    lost = np.roll(directions(40, 0.3, 2), 5, axis=1)
    gone = {one.id.split("/")[1]: one.measured for one in fidelity.prior_divergence(before, lost, "clip", subject)}
    assert set(same) == {"prior_distance", "prior_variety", "prior_leak"}
    assert all(one.value == pytest.approx(0, abs=1e-12) for one in same.values())
    assert all(gone[key].low > 0.2 for key in gone), gone


def test_the_jackknife_holds_the_truth_about_19_times_in_20():
    truth, held = fidelity.mean_similarity(_unit(directions(20000, 1, 99))), 0
    for seed in range(200):
        _, low, high = jackknife([_unit(directions(20, 1, seed))], fidelity.mean_similarity)
        held += low <= truth <= high
    assert 0.9 <= held / 200 <= 0.99


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)
