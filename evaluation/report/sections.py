"""The sections of a report: images, attributes, people."""

from html import escape
from pathlib import Path

from evaluation.report import charts
from evaluation.report.page import grid, image_tag, interval, section, tile, value_html
from utils.cli import counted

SHOWN_VALUES = 12  # of an attribute; the rest can be unfolded
SHOWN_FACES = 12  # images of a kind


def sample_section(entries: list[dict], folder: Path) -> str:
    tiles = [tile(one["file"], folder, one.get("text") or "") for one in entries]
    return section("sample", "A sample", grid(tiles) if tiles else "", intro="Drawn at random, not chosen.")


def prompts_section(metrics: dict, folder: Path) -> str:
    """The best and the worst by prompt, and the means of each attribute's values."""
    parts = []
    for key, title in (("best", "Closest to their prompt"), ("worst", "Furthest from their prompt")):
        entries = metrics.get("pictures", {}).get(key, [])
        tiles = [tile(one["file"], folder, one.get("text") or "", _score(one.get("score"))) for one in entries]
        parts += [f"<h3>{title}</h3>{grid(tiles)}"] if tiles else []
    parts += _splits(metrics, [key for key in metrics.get("splits", {}) if not key.startswith("identity_")])
    return section("prompts", "Best and worst by prompt", *parts, intro="By the CLIP score of image and prompt.")


def _splits(metrics: dict, keys: list[str]) -> list[str]:
    """The means of these figures by each value of an attribute."""
    known, parts = {}, []
    for one in metrics["figures"]:
        known[one["id"].partition("/")[0]] = known[one["id"].replace("/", "_")] = one
    for figure in keys:
        one = known.get(figure, {"name": figure.replace("_", " "), "unit": "%" if "accuracy" in figure else ""})
        for column, values in metrics.get("splits", {}).get(figure, {}).items():
            title = f"{one['name']} by {'prompt' if column == 'text' else column}"
            title = title[:1].upper() + title[1:]
            parts += [f"<h3>{escape(title)}</h3>{_split_rows(values, one.get('unit', ''))}"] if values else []
    return parts


def identity_section(metrics: dict, folder: Path) -> str:
    """The reference photos, the images that are least like them, and the means by prompt and attribute."""
    found = metrics.get("identity")
    if not found:
        return ""
    parts = []
    for key, title in (
        ("used", "Reference photos"),
        ("unlike_others", "Reference photos unlike the others"),
        ("several_faces", "Reference photos with several faces, the largest used"),
        ("without_face", "Reference photos without a face, not used"),
    ):
        tiles = [tile(file, folder, "", alt=title) for file in found["references"][key][:SHOWN_FACES]]
        parts += [f"<h3>{title}</h3>{grid(tiles, 'small')}"] if tiles else []
    rows = found["pictures"]
    faceless = [one for one in rows if not one["face"]]
    pairs = []
    for one in sorted((one for one in rows if one["face"]), key=lambda one: one["centroid"])[:SHOWN_FACES]:
        images = image_tag(one["file"], folder, "generated image")
        images += image_tag(one["nearest_reference"], folder, "nearest reference photo")
        sides = "<span class=sides><span>generated</span><span>nearest reference</span></span>"
        word, state = ("verified", "good") if one["verified"] else ("not verified", "bad")
        said = f"<span class='state {state}'>{word}</span> to the mean {one['centroid']:.3f}"
        pairs.append(f"<figure class=pair>{images}<figcaption>{sides}{said}</figcaption></figure>")
    parts += [f"<h3>Least like the person</h3><div class=pairs>{''.join(pairs)}</div>"] if pairs else []
    tiles = [tile(one["file"], folder, one.get("text") or "") for one in faceless[:SHOWN_FACES]]
    parts += [f"<h3>Without a face: {len(faceless)} of {len(rows)}</h3>{grid(tiles, 'small')}"] if tiles else []
    intro = "By the cosine of the largest face to the references; the lowest are shown."
    return section(
        "identity",
        "The same person?",
        *parts,
        *_splits(metrics, ["identity_verified", "identity_centroid"]),
        intro=intro,
    )


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _split_rows(values: list[dict], unit: str) -> str:
    marks = [{**one, "value": one["mean"], "kind": "generated"} for one in values]
    axis = charts.axis_of([mark[key] for mark in marks for key in ("value", "low", "high")], unit == "%")
    ends = _scaled(len(values))
    rows = [_row(one["value"], one.get("n"), [marks[i]], axis, unit, scale=i in ends) for i, one in enumerate(values)]
    return _folded(rows)


def _scaled(count: int) -> set[int]:
    """The rows that have numbers at their axis: the last that is shown, and the last that can be unfolded."""
    return {min(count, SHOWN_VALUES) - 1, count - 1}


def _row(name, n: int | None, marks: list[dict], axis: tuple, unit: str, figure: str = "", scale: bool = True) -> str:
    """One value's marks on an axis that its neighbours share."""
    figure = figure or value_html(marks[0], unit)
    label = f"{name}: " + ", ".join(" ".join((mark["kind"], *interval(mark, unit))) for mark in marks)
    below = f"<span>{counted(n, 'image')}</span>" if n is not None else ""
    plot = charts.strip(axis, marks, label, unit=unit, scale=scale)
    return (
        f"<div class=row><div class=name>{escape(str(name))}{below}</div>{plot}<div class=figure>{figure}</div></div>"
    )


def _folded(rows: list[str]) -> str:
    shown, rest = rows[:SHOWN_VALUES], rows[SHOWN_VALUES:]
    text = f"<div class=rows>{''.join(shown)}</div>"
    if rest:
        text += f"<details><summary>{len(rest)} more</summary><div class=rows>{''.join(rest)}</div></details>"
    return text


def copies_section(copies: list[dict], folder: Path) -> str:
    """Generated images beside the training images that are nearest to them."""
    pairs = []
    for one in sorted(copies, key=lambda one: not one.get("suspected")):
        suspected = one.get("suspected")
        far = f"distance {one['distance']:.3f}, limit {one['limit']:.3f}" if one.get("limit") is not None else ""
        said = f"<span class='state bad'>suspected copy</span> {far}" if suspected else far
        images = image_tag(one["file"], folder, "generated image") + image_tag(
            one["nearest"], folder, "nearest training image"
        )
        sides = "<span class=sides><span>generated</span><span>training</span></span>"
        kind = "pair suspected" if suspected else "pair"
        pairs.append(f'<figure class="{kind}">{images}<figcaption>{sides}{said}</figcaption></figure>')
    intro = "Each beside the training image nearest to it; suspected where real photos keep a greater distance."
    body = f"<div class=pairs>{''.join(pairs)}</div>" if pairs else ""
    return section("copies", "Nearest neighbours", body, intro=intro)


def failures_section(failures: list[dict], folder: Path) -> str:
    parts = []
    for one in failures:
        share = value_html({**one, "value": one["share"]}, "%")
        said = f"{one['count']:,} of {one['n']:,}. {escape(one.get('threshold', ''))}"
        line = f"<p>{share} &nbsp;<span class=soft>{said}</span></p>"
        tiles = [tile(file, folder, "", alt=f"example: {one['reason']}") for file in one.get("examples", [])]
        reason = one["reason"][:1].upper() + one["reason"][1:]
        parts.append(f"<h3>{escape(reason)}</h3>{line}{grid(tiles, 'small') if tiles else ''}")
    return section(
        "failures",
        "Failures",
        *parts,
        intro="What makes a product photo unusable, with the limit that each image was held to.",
    )


def shares_section(shares: dict) -> str:
    """What share of the images has each value of an attribute: real, generated, and as planned."""
    parts, kinds = [], [("generated", "generated"), ("real", "real")]
    for column, values in shares.items():
        rows, lines = [], []
        for one in values:
            marks = [
                {**one[kind], "value": one[kind]["share"], "kind": kind}
                for kind in ("generated", "real")
                if one.get(kind)
            ]
            marks += [{"value": one["plan"], "kind": "plan"}] if one.get("plan") is not None else []
            rows += [(one["value"], marks)] if marks else []
        ends = [mark.get(key) for _, marks in rows for mark in marks for key in ("value", "low", "high")]
        axis = charts.axis_of([0.0, *ends], True)
        for i, (name, marks) in enumerate(rows):
            texts = [f"<span>{mark['kind']} <b>{interval(mark, '%')[0]}</b></span>" for mark in marks]
            lines.append(_row(name, None, marks, axis, "%", "".join(texts), i in _scaled(len(rows))))
        parts += [f"<h3>{escape(column)}</h3>{_by(values)}{_folded(lines)}"] if lines else []
    if any(one.get("plan") is not None for values in shares.values() for one in values):
        kinds.append(("plan", "plan"))
    intro = "How often each value occurs, as a share of its set."
    return section("shares", "Attributes", charts.legend(kinds), *parts, intro=intro) if parts else ""


def _by(values: list[dict]) -> str:
    """Where the generated set's shares are from, if that is said."""
    said = {"clip": "as an encoder reads them off the images", "labels": "as they were asked for, not as they look"}
    word = said.get(values[0].get("by"))
    return f"<p class=note>Generated: {word}; real: by their labels.</p>" if word else ""


def people_section(human: dict | None) -> str:
    """What the raters of the human study said."""
    if not human:
        return ""
    groups = (("mean", "Mean rating, 1 to 5", (1, 5), ""), ("good", "Rated good (4 or 5)", (0, 1), "%"))
    parts = [charts.legend([("generated", "generated"), ("real", "real")]), "<div class=rows>"]
    for key, title, axis, unit in groups:
        marks = [{**human[key][kind], "kind": kind} for kind in ("generated", "real")]
        texts = [f"<span>{mark['kind']} {value_html(mark, unit)}</span>" for mark in marks]
        parts.append(_row(title, None, marks, axis, unit, "".join(texts)))
    told = human["told"]
    said = value_html(told, "%") + f"<span>{escape(told['verdict'])}</span>"
    parts.append(_row("Told real from generated", None, [{**told, "kind": "generated"}], (0, 1), "%", said))
    alpha = human["agreement"]
    text = escape(alpha["refused"]) if alpha.get("refused") else value_html(alpha)
    parts.append(f"</div><p class=note>Agreement of the raters (Krippendorff’s alpha, 1 is perfect): {text}</p>")
    parts += [f"<p class=note>{escape(note)}</p>" for note in human.get("notes", [])]
    raters, items = counted(len(human["raters"]), "rater"), counted(human["items"], "image")
    intro = f"{raters}, {items}, blind. Guessing would tell 50 %."
    return section("people", "What people say", *parts, intro=intro)
