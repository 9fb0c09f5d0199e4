"""Pictures from a pipeline, one seed each, decoded outside it since the VAE may need another precision."""

import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image


def build_pipeline(family: str, unet, vae, scheduler: SchedulerMixin, empty_is_zero: bool = False) -> DiffusionPipeline:
    """A pipeline around parts in hand, for prompts that are already encoded; DPM-Solver++ on their noise schedule."""
    solver = DPMSolverMultistepScheduler.from_config(scheduler.config)
    parts = {"unet": unet, "vae": vae, "scheduler": solver, "text_encoder": None, "tokenizer": None}
    parts |= {"feature_extractor": None}
    if family == "sdxl":
        parts |= {"text_encoder_2": None, "tokenizer_2": None, "force_zeros_for_empty_prompt": empty_is_zero}
        pipeline = StableDiffusionXLPipeline(**parts)
    else:
        pipeline = StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def generate(
    pipeline: DiffusionPipeline, seeds: list[int], steps=20, guidance=3.0, batch=8, size: int | None = None, **prompts
) -> list[Image.Image]:
    """One picture a seed. `prompts` are the pipeline's arguments that hold one item a picture: texts, or embeddings."""
    pictures = []
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        # Drawn on the CPU: the same noise on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        latents = pipeline(
            **{name: values[part] for name, values in prompts.items()},
            generator=generators,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            output_type="latent",
        ).images
        pictures += decode_latents(pipeline, latents)
    return pictures


def decode_latents(pipeline: DiffusionPipeline, latents: torch.Tensor) -> list[Image.Image]:
    """Decoded in the VAE's own dtype; latents that are not finite come out black, as a pipeline would draw them."""
    latents = latents.to(pipeline.vae.dtype) / pipeline.vae.config.scaling_factor
    with torch.autocast(latents.device.type, enabled=False):  # else the VAE would run in float16 here, and give NaN
        pixels = pipeline.vae.decode(latents).sample
    return pipeline.image_processor.postprocess(pixels.nan_to_num(-1, 1, -1), "pil")
