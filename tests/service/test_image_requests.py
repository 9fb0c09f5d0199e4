"""What a request for images may ask of a model, by what its family can do."""

import asyncio

import pytest

from families.sampler import Sampling
from service.errors import ApiError
from service.image_api import ImageBody, ImageLimits, ImageService, make_job


def service_of(family: str, has_guidance: bool, guidance: float) -> ImageService:
    """A server of such a model, which is not loaded."""
    defaults, limits = Sampling(4, guidance, 64), ImageLimits(64, 50, 4, 60)
    return ImageService(None, None, None, "base", family, has_guidance, {}, defaults, 8, limits)


def sampling_of(service: ImageService, **fields: object) -> Sampling:
    """How the images of a request are sampled."""

    async def ask() -> Sampling:
        return make_job(service, ImageBody(prompt="boots", **fields), 0).settings.sampling

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "family, has_guidance, own, asked, refused",
    [
        ("sd1", True, 7.5, {"guidance_scale": 1}, "at a guidance scale of 1; give a higher one"),
        ("flux1", True, 3.5, {"guidance_scale": 5}, "not supported here for FLUX.1; leave it out"),
        ("flux1", False, 0.0, {}, "not supported here for FLUX.1; leave it out"),
        ("flux2_klein", False, 1.0, {}, "does nothing for a FLUX.2 Klein without guidance; leave it out"),
    ],
)
def test_a_negative_prompt_that_does_nothing_is_refused(family, has_guidance, own, asked, refused):
    service = service_of(family, has_guidance, own)
    assert sampling_of(service, **asked).guidance_scale == asked.get("guidance_scale", own)
    with pytest.raises(ApiError, match=f"`negative_prompt`: .*{refused}"):
        sampling_of(service, negative_prompt="grey", **asked)


def test_a_guidance_scale_that_does_nothing_is_refused():
    service = service_of("flux2_klein", False, 1.0)
    with pytest.raises(ApiError, match="`guidance_scale` 4: does nothing for a FLUX.2 Klein without guidance"):
        sampling_of(service, guidance_scale=4)
    assert sampling_of(service, guidance_scale=1).guidance_scale == 1


def test_the_highest_seeds_can_be_asked_for_and_what_asks_for_nothing_may_be_said():
    service = service_of("sd1", True, 7.5)

    async def ask() -> list[int]:
        body = ImageBody(prompt="boots", n=3, partial_images=0)
        return [one.seed for one in make_job(service, body, 999_999_997).requests]

    assert asyncio.run(ask()) == [999_999_997, 999_999_998, 999_999_999]
