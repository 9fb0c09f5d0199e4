"""A small evaluation with drawn shoes: every kind of entry that metrics.json may hold."""

import json
from pathlib import Path

from demo.shoes import draw_shoe

KINDS = ("Sandals", "Heels", "Boots", "Loafers", "Sneakers", "Casual Shoes")
COLOURS = ("Black", "Red", "Blue", "White", "Brown", "Green")


def draw_set(folder: Path, count: int, name: str, size: int = 96) -> list[dict]:
    """A generation folder: images/, metadata.jsonl; its records with `file` as a whole path."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        kind, colour = KINDS[i % 6], COLOURS[(i + i // 6) % 6]
        draw_shoe(kind, colour, f"{name}{i}", (size, size)).save(folder / f"images/{i:06d}.png")
        text = f"a product photo of {colour.lower()} {kind.lower()}, side view, on a white background"
        lines.append({"file_name": f"images/{i:06d}.png", "text": text, "seed": i})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [{"file": str(folder / line["file_name"]), **line} for line in lines]


def figure(key: str, group: str, name: str, value: float, half: float, **more) -> dict:
    low, high = value - half, value + half
    how = f"{name} of the generated set against the real one, explained in one sentence."
    base = {
        "id": key,
        "group": group,
        "name": name,
        "encoder": None,
        "value": value,
        "low": low,
        "high": high,
        "n": 600,
    }
    return {**base, "better": "lower", "unit": "", "floor": None, "at_floor_n": None, "how": how, **more}


def floor(value: float, half: float) -> dict:
    return {"value": value, "low": value - half, "high": value + half}


def figures(shift: float = 0.0) -> list[dict]:
    clip = {"encoder": "clip"}
    rest = {**clip, "better": "near floor"}
    up = {**clip, "better": "higher"}
    share = {"unit": "%"}
    return [
        figure(
            "frechet/clip",
            "quality",
            "Fréchet distance",
            48.3 + shift,
            3.1,
            floor=floor(15.1, 1.4),
            at_floor_n=53.1,
            **clip,
        ),
        figure("kid/clip", "quality", "KID", 0.0012, 0.0019, floor=floor(0.0, 0.0021), **clip),
        figure("cmmd/clip", "quality", "CMMD", 0.412, 0.06, floor=floor(0.11, 0.03), at_floor_n=0.43, **clip),
        figure("precision/clip", "quality", "Precision", 0.78, 0.03, floor=floor(0.84, 0.03), at_floor_n=0.77, **up),
        figure("coverage/clip", "quality", "Coverage", 0.93, 0.02, floor=floor(0.95, 0.03), at_floor_n=0.94, **up),
        figure("frechet/inception", "quality", "Fréchet distance", 0, 0, encoder="inception")
        | {"value": None, "refused": "60 real images; below 100 this figure says nothing"},
        figure("clip_score/clip", "adherence", "CLIP score", 0.264, 0.0021, floor=floor(0.271, 0.003), **up),
        figure(
            "colour_accuracy", "adherence", "Colour is the colour asked for", 0.913, 0.022, better="higher", **share
        ),
        figure("vendi/clip", "diversity", "Vendi score", 18.4, 0.8, floor=floor(21.2, 1.1), at_floor_n=17.1, **rest),
        figure("near_duplicates", "diversity", "Near-duplicates in the set", 0.008, 0.006, **share),
        figure(
            "authpct/clip",
            "novelty",
            "AuthPct",
            0.821,
            0.031,
            floor=floor(0.8, 0.04),
            better="near floor",
            **share,
            **clip,
        ),
        figure("invalid", "failures", "Invalid images", 0.012, 0.008, **share),
    ]


def share(value: float, half: float) -> dict:
    return {"share": value, "low": max(0.0, value - half), "high": value + half, "n": 600}


def results() -> dict:
    """What train_classifier.py writes."""
    rows = [("synthetic", 0, None, 0.702), ("real", 0.1, 0, 0.552), ("real + 1x synthetic", 0.1, 1, 0.731)]
    rows += [("real", 1, 0, 0.861), ("real + 1x synthetic", 1, 1, 0.874), ("real + 2x synthetic", 1, 2, 0.879)]
    arms = []
    for name, real, ratio, value in rows:
        arm = {"name": name, "real_share": real, "synthetic": None if name == "real" else "synthetic"}
        arm |= {"synthetic_ratio": ratio, "n_real": round(2000 * real), "seeds": [0, 1, 2, 3, 4]}
        arm |= {"n_synthetic": 2000 if ratio is None else round(2000 * real * ratio)}
        for metric, drop in (("accuracy", 0), ("macro_f1", 0.03)):
            arm[f"{metric}_interval"] = [value - drop, value - drop - 0.018, value - drop + 0.018]
        arms.append(arm)
    keys = ("second", "real_share", "difference", "low", "high", "p", "p_holm", "verdict")
    pairs = [
        ("real + 1x synthetic", 0.1, 0.179, 0.14, 0.22, 0.0001, 0.0003, "better"),
        ("real + 1x synthetic", 1, 0.013, -0.004, 0.03, 0.11, 0.22, "no difference shown"),
        ("synthetic", 1, -0.159, -0.19, -0.13, 0.0001, 0.0003, "worse"),
    ]
    metrics = ("accuracy", "macro_f1")
    comparisons = [{"first": "real", "metric": metric, **dict(zip(keys, pair))} for metric in metrics for pair in pairs]
    whole = {"version": 1, "target": "baseColour", "model": "cnn", "n_test": 569, "arms": arms}
    verdict = ["with 10% of the real images: better with real + 1x synthetic (accuracy +0.2, +0.1 to +0.3)"]
    verdict += ["with 100% of the real images: no difference shown"]
    left_out = ["left out with 100% of the real images: real + 4x synthetic: it wants 8,000 images, there are 4,000"]
    return {**whole, "left_out": left_out, "comparisons": comparisons, "verdict": verdict}


def human() -> dict:
    """What human_study.merge_ratings gives."""

    def near(value, half):
        return {"value": value, "low": value - half, "high": value + half, "n": 40}

    return {
        "study": "0123456789ab",
        "items": 80,
        "raters": ["Anna", "Ben", "Chris"],
        "mean": {"real": near(3.9, 0.3), "generated": near(3.4, 0.35), "difference": near(-0.5, 0.3)},
        "good": {"real": near(0.71, 0.1), "generated": near(0.55, 0.12)},
        "agreement": near(0.48, 0.09),
        "told": {**near(0.61, 0.07), "verdict": "people can tell"},
        "notes": ["Chris left out 2 of 80 images."],
    }


def write_evaluation(folder: Path, count: int = 24, shift: float = 0.0, name: str = "a") -> Path:
    """<folder>/evaluation/metrics.json of a generated set in <folder>/set, with everything in it."""
    made, train = draw_set(folder / "set", count, name), draw_set(folder / "train", 6, "train")
    files = [{"file": one["file"], "text": one["text"]} for one in made]
    scored = [{**one, "score": 0.31 - 0.002 * i} for i, one in enumerate(files)]
    copies = [
        {"file": one["file"], "nearest": near["file"], "distance": 0.04 + 0.07 * i, "limit": 0.081, "suspected": i == 0}
        for i, (one, near) in enumerate(zip(files[:4], train))
    ]
    threshold = "The border’s deviation is above 12 levels of 255; of 500 real photos, checked one by one, 3 are."
    failures = [
        {
            "reason": reason,
            "count": count,
            "n": 600,
            **share(count / 600, 0.012),
            "threshold": threshold,
            "examples": [one["file"] for one in files[:count]],
        }
        for reason, count in (("background not clean", 6), ("object cut off", 3), ("object too small", 0))
    ]
    shares = [(0.34, 0.29), (0.11, 0.14), (0.13, 0.12), (0.18, 0.2), (0.15, 0.16), (0.09, 0.09)]
    counted = [
        {"value": colour, "real": share(a, 0.03), "generated": share(b, 0.035), "plan": round(b, 1) or None}
        for colour, (a, b) in zip(COLOURS, shares)
    ]
    splits = [
        {"value": one, "mean": 0.26 + 0.004 * i, "low": 0.255 + 0.004 * i, "high": 0.265 + 0.004 * i, "n": 100}
        for i, one in enumerate(COLOURS)
    ]
    found = figures(shift)
    met = {
        "frechet": ("frechet/clip", "<50", None),
        "coverage": ("coverage/clip", ">0.9", True),
        "invalid": ("invalid", "<0.01", False),
    }
    by_id = {one["id"]: one for one in found}
    targets = [
        {
            "target": name,
            "asked": asked,
            "figure": key,
            "met": state,
            **{end: by_id[key][end] for end in ("value", "low", "high")},
        }
        for name, (key, asked, state) in met.items()
    ]
    metrics = {
        "version": 1,
        "made": {
            "command": "python evaluate.py --real data/shoes/test --train data/shoes/train --generated set",
            "commit": "0123456",
            "date": "2026-11-21T04:00:00",
            "seconds": 27.4,
            "hardware": "2 CPU cores",
            "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
        },
        "sets": {
            "real": {"path": "data/shoes/test", "n": 569},
            "train": {"path": "data/shoes/train", "n": 2845},
            "generated": {"path": str(folder / "set"), "n": 600, "unreadable": 2},
        },
        "figures": found,
        "targets": targets,
        "splits": {"clip_score": {"baseColour": splits}},
        "shares": {"baseColour": counted},
        "pictures": {
            "sample": files[:18],
            "real": [{"file": one["file"], "text": one["text"]} for one in train],
            "best": scored[:6],
            "worst": scored[-6:],
            "copies": copies,
            "failures": failures,
        },
        "human": human(),
        "utility": "../utility/results.json",
    }
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "utility").mkdir(exist_ok=True)
    (folder / "utility/results.json").write_text(json.dumps(results()))
    (folder / "evaluation/metrics.json").write_text(json.dumps(metrics))
    return folder / "evaluation"
