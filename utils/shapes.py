"""The shapes of pictures of one area: squares, and buckets of other proportions."""

import math
from collections.abc import Iterable


def bucket_shapes(resolution: int, step: int) -> list[tuple[int, int]]:
    """Shapes of about resolution² pixels, sides multiples of `step`, from 1:2 to 2:1 and the square."""
    shapes = {(resolution, resolution)}
    for side in range(step * math.ceil(resolution / math.sqrt(2) / step), resolution, step):
        other = int(resolution * resolution / side) // step * step
        shapes |= {(side, other), (other, side)}
    return sorted(shapes)


def nearest_shape(size: tuple[int, int], shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The shape whose proportions are nearest to the picture's."""
    aspect = math.log(size[0] / size[1])
    return min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - aspect), shape))
