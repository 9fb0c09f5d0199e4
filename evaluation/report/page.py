"""Self-contained HTML pages: templates filled with escaped text, numbers as people read them, images inside."""

import base64
import io
import math
import re
from html import escape
from pathlib import Path

from PIL import Image

from utils.images import BadImage, read_image

TEMPLATES = Path(__file__).parent / "pages"


def fill(name: str, **values: str) -> str:
    """A template with HTML put in its {{places}}; in one pass, so that what is put in is not looked through again."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], text)


def make_page(title: str, body: str) -> str:
    """A whole page in the style of the report; `body` is HTML."""
    return fill("page.html", title=escape(title), style=fill("page.css"), body=body)


def data_uri(image: Image.Image, kind: str = "WEBP", quality: int = 82) -> str:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_tag(file: str | Path, folder: Path, alt: str, side: int = 224) -> str:
    """An image file (a relative one begins at `folder`) as an <img>; where there is none, a box that says so."""
    try:
        image, _ = read_image(folder / file, longest=side)
    except (BadImage, ValueError) as error:  # ValueError: a name with a NUL in it
        # The detail may quote what the file begins with, and the name may be of any file.
        reason = error.reason if isinstance(error, BadImage) else "no file name"
        return f'<span class="missing">{escape(Path(file).name)}<br>{escape(reason)}</span>'
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    width, height = image.size
    return f'<img src="{data_uri(image)}" alt="{escape(alt)}" width="{width}" height="{height}">'


def tile(file: str | Path, folder: Path, text: str, below: str = "", alt: str = "") -> str:
    """An image with its text (escaped) and a line of HTML beneath."""
    caption = f"<span class=prompt>{escape(text)}</span>" if text else ""
    caption += f"<span class=below>{below}</span>" if below else ""
    under = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{image_tag(file, folder, alt or text or 'image')}{under}</figure>"


def grid(tiles: list[str], kind: str = "") -> str:
    return f'<div class="tiles {kind}">{"".join(tiles)}</div>'


def decimals(low: float, high: float) -> int:
    """How many decimals an interval bears: two digits of its half width."""
    half = abs(high - low) / 2
    return min(5, max(0, 1 - math.floor(math.log10(half)))) if half > 0 and math.isfinite(half) else 3


def number(value: float, places: int, unit: str = "") -> str:
    """A figure as text; a share (unit %) is stored as 0 … 1."""
    if unit == "%":
        return f"{value * 100:,.{max(0, min(places - 2, 1))}f} %".replace("-", "−")
    shown = f"{value:,.{places}f}".replace("-", "−")
    return f"{shown} {unit}" if unit else shown


def interval(one: dict, unit: str = "") -> tuple[str, str]:
    """(value, its interval) as text, with no more digits than the interval bears."""
    if one.get("low") is None or one.get("high") is None:
        return number(one["value"], 3, unit), ""
    places = decimals(one["low"], one["high"])
    ends = [number(one[end], places, unit).removesuffix(" %") for end in ("low", "high")]
    return number(one["value"], places, unit), f"{ends[0]} to {ends[1]}"


def value_html(one: dict, unit: str = "") -> str:
    value, around = interval(one, unit)
    return f"<b>{escape(value)}</b>" + (f" <small>{escape(around)}</small>" if around else "")


def section(name: str, title: str, *parts: str, intro: str = "") -> str:
    """A part of a page under its heading; nothing where it has no content. `intro` is text."""
    body = "".join(parts)
    intro = f"<p class=intro>{escape(intro)}</p>" if intro else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{intro}{body}</section>' if body else ""


def contents(sections: list[str]) -> str:
    """Links to the sections of a page."""
    found = re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', "".join(sections))
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in found)
    return f"<nav aria-label=Contents>{links}</nav>"
