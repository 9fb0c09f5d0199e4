"""HTML pages that need nothing but themselves, from templates/, with the images inside."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.report.formatting import format_difference, format_interval, read_estimate
from utils.images import BadImage, read_image
from utils.wording import PAGES, data_address, make_environment

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 224  # pixels of an image on a page


@dataclass(frozen=True)
class EmbeddedImage:
    """The address of an image that is inside the page, or why it can't be shown."""

    name: str
    problem: str = ""
    uri: str = ""
    width: int = 0
    height: int = 0


def render_page(template: str, **values: Any) -> str:
    environment = make_environment(TEMPLATES, PAGES)
    environment.filters |= {"estimate": read_estimate}
    environment.globals |= {"interval": format_interval, "difference": format_difference, "embed_image": embed_image}
    return environment.get_template(template).render(contents=[], **values)


def embed_image(path: Path) -> EmbeddedImage:
    try:
        image, _ = read_image(path, longest=SIDE)
    except BadImage as error:  # its detail is left out: it may quote the first bytes of any file
        return EmbeddedImage(path.name, problem=error.reason)
    except ValueError:  # a name with a NUL in it
        return EmbeddedImage(path.name, problem="not a file name")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return EmbeddedImage(path.name, "", encode_image(image), *image.size)


def encode_image(image: Image.Image, kind: str = "WEBP", quality: int = 82) -> str:
    """The image as the address of an <img>."""
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return data_address(file.getvalue(), f"image/{kind.lower()}")
