"""The metadata of a generated image: its prompt and settings, as A1111 writes them, and that it is synthetic."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from families.names import FAMILIES
from families.sampler import ImageRequest, Sampling
from families.sampling import FLOW_SCHEDULER
from utils.cli import mask_text
from utils.images import SETTINGS_CHUNK, XMP_CHUNK

# The schedulers by their names in A1111
SAMPLERS = {
    "dpm++": "DPM++ 2M",
    "dpm++_karras": "DPM++ 2M Karras",
    "dpm++_sde": "DPM++ 2M SDE",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "pndm": "PLMS",
    "unipc": "UniPC",
    FLOW_SCHEDULER: "Euler",
}
# https://cv.iptc.org/newscodes/digitalsourcetype/ ; the second is of an image that began as another one
MADE, CHANGED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"


def describe_made(
    request: ImageRequest, sampling: Sampling, family: str, more: dict[str, Any] | None = None
) -> dict[str, str]:
    """The text chunks of the PNG; `more` is what else made it, by the names that A1111 has. Secrets are left out."""
    is_changed = request.init_image is not None
    settings = {
        "Steps": sampling.steps,
        "Sampler": SAMPLERS[sampling.scheduler],
        # That of a transformer is what its pipeline calls so, and is not always A1111's.
        "CFG scale" if FAMILIES[family].DENOISER == "unet" else "Guidance scale": f"{sampling.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{sampling.size}x{sampling.size}",
        **({"Denoising strength": f"{sampling.strength:g}"} if is_changed else {}),
        **(more or {}),
    }
    lines = [request.prompt]
    lines += [f"Negative prompt: {sampling.negative_prompt}"] if sampling.negative_prompt else []
    lines.append(", ".join(f"{name}: {_quote(str(value))}" for name, value in settings.items()))
    return {SETTINGS_CHUNK: mask_text("\n".join(lines)), XMP_CHUNK: source_xmp(CHANGED if is_changed else MADE)}


def describe_model(name: str, loras: Iterable[tuple[str, float]], clip_skip: int) -> dict[str, Any]:
    """What of a model, and of LoRAs with their weights, an image names; A1111 counts a clip skip from 1."""
    mixed = ", ".join(f"{one}:{weight:g}" for one, weight in loras)
    found = {"Model": short_name(name), "Lora": mixed, "Clip skip": clip_skip + 1 if clip_skip else None}
    return {name: value for name, value in found.items() if value}


def short_name(name: str) -> str:
    """A hub id as it is; of a folder or file its name alone, not where it lies."""
    return Path(name).name.removesuffix(".safetensors") if Path(name).exists() else name


def _quote(text: str) -> str:
    """As A1111 does, which reads settings from comma to comma."""
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ',:\n"') else text


def source_xmp(source: str) -> str:
    """The XMP packet that names IPTC's digital source type."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
        f'"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )
