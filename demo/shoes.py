"""Side views of shoes, drawn as a catalogue photographs them: six kinds, twelve colours, any size."""

import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

COLOURS = {
    "Black": (34, 34, 38),
    "White": (236, 236, 233),
    "Grey": (138, 141, 146),
    "Brown": (112, 66, 36),
    "Red": (204, 30, 40),
    "Orange": (242, 124, 28),
    "Yellow": (246, 208, 44),
    "Green": (34, 140, 72),
    "Blue": (42, 108, 222),
    "Navy Blue": (28, 40, 98),
    "Purple": (124, 62, 170),
    "Pink": (242, 132, 174),
}
HELD_BACK = "Casual Shoes"  # never seen by the demo pipeline, for a LoRA to learn
KNOWN_KINDS = ("Sneakers", "Boots", "Sandals", "Heels", "Loafers")
Colour = tuple[int, ...]
Point = tuple[float, float]
WHITE, RUBBER, LEATHER, GUM, BRASS = (250, 250, 249), (42, 42, 46), (92, 60, 40), (196, 146, 92), (204, 172, 92)


@dataclass
class Canvas:
    """A supersampled image and the shoe's frame on it: x from heel (0) to toe (1), y upwards in shoe lengths."""

    image: Image.Image
    left: float
    ground: float
    length: float
    rise: float  # >1 stretches the shoe upwards
    draw: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, points: list[Point]) -> list[Point]:
        return [(self.left + x * self.length, self.ground - y * self.length * self.rise) for x, y in points]

    def fill(self, outline: list[Point], colour: Colour, depth: float = 0.35, rim: float = 0.0045) -> None:
        """Fill a shape, rounded by light from above (`depth`) and edged with a darker line (`rim`, in shoe lengths)."""
        points = self.pixels(outline)
        xs, ys = zip(*points)
        x0, y0, x1, y1 = math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)) + 1, math.ceil(max(ys)) + 1
        local = [(x - x0, y - y0) for x, y in points]
        mask = Image.new("L", (x1 - x0, y1 - y0))
        ImageDraw.Draw(mask).polygon(local, fill=255)
        if depth:
            # The blurred shape, moved up: dark where its lower edge is near, bright below its upper edge.
            lift = 0.022 * self.length
            light = Image.new("L", mask.size)
            ImageDraw.Draw(light).polygon([(x - lift * 0.5, y - lift) for x, y in local], fill=255)
            light = light.filter(ImageFilter.BoxBlur(0.03 * self.length)).filter(
                ImageFilter.BoxBlur(0.018 * self.length)
            )
            paint = ImageOps.colorize(light, tone(colour, -depth), tone(colour, depth * 0.22), mid=colour, midpoint=200)
        else:
            paint = Image.new("RGB", mask.size, colour)
        self.image.paste(paint, (x0, y0), mask)
        if rim:
            self.line([*outline, outline[0]], tone(colour, -0.45), rim)

    def line(self, points: list[Point], colour: Colour, width: float) -> None:
        pixels = max(1, round(width * self.length))
        self.draw.line(self.pixels(points), fill=colour, width=pixels, joint="curve")

    def stitches(self, points: list[Point], colour: Colour, width: float = 0.004, dash: float = 0.012) -> None:
        """A dashed line of even stitches along a curve."""
        curve = np.asarray(points, dtype=float)
        along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
        for start in np.arange(0, along[-1] - dash, dash * 1.8):
            at = [start, start + dash]
            self.line(list(zip(np.interp(at, along, curve[:, 0]), np.interp(at, along, curve[:, 1]))), colour, width)

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        ((px, py),) = self.pixels([(x, y)])
        r = radius * self.length
        self.draw.ellipse([px - r, py - r, px + r, py + r], fill=colour)


def tone(colour: Colour, amount: float) -> Colour:
    """The colour mixed with white (amount > 0) or with a near-black of its own hue (amount < 0)."""
    end = 255 if amount > 0 else 6
    return tuple(round(c + (end - c) * abs(amount)) for c in colour)


def smooth(points: list[Point], closed: bool = False, steps: int = 10) -> list[Point]:
    """A Catmull-Rom curve through the points; a point given twice makes a corner."""
    p = np.asarray(points, dtype=float)
    ends = (p[-1:], p[:2]) if closed else (p[:1], p[-1:])
    p = np.concatenate([ends[0], p, ends[1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:]):
        if (b == c).all():
            continue
        pieces.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    curve = np.concatenate(pieces if closed else [*pieces, p[-2:-1]])
    return [tuple(xy) for xy in curve.tolist()]


def between(a: Point, b: Point, t: float) -> Point:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t)


# fmt: off
# Outlines stay as lists of points: one point a line would hide the shape.

def lace_up(
    canvas: Canvas, rng: random.Random, top: Point, bottom: Point, colour: Colour, count: int, reach: float = 0.075
) -> None:
    """Lace bars across the instep between two points, each with an eyelet at its end."""
    for i in range(count):
        x, y = between(top, bottom, (i + 0.5) / count)
        canvas.line([(x + 0.012, y + 0.012), (x - reach * 0.35, y - reach)], tone(colour, -0.35), 0.021)
        canvas.line([(x + 0.012, y + 0.012), (x - reach * 0.35, y - reach)], colour, 0.014)
        canvas.dot(x - reach * 0.37, y - reach * 1.05, 0.009, tone(colour, -0.6))
    if rng.random() < 0.5:  # a bow
        x, y = between(top, bottom, 0.08)
        canvas.line(smooth([(x, y), (x + 0.05, y + 0.055), (x + 0.07, y + 0.02), (x, y)]), colour, 0.012)


def contrast(colour: Colour) -> Colour:
    """White laces on dark shoes, dark ones on light shoes."""
    return WHITE if sum(colour) < 560 else (58, 58, 64)


def low_upper(collar: float, toe: float) -> list[Point]:
    """The outline of a low shoe's upper: heel, ankle opening, instep, toe."""
    return smooth(
        [(0.03, 0.08), (0.03, 0.08), (0.005, 0.2), (0.02, collar), (0.055, collar + 0.012), (0.14, collar - 0.055)]
        + [(0.25, collar - 0.05), (0.33, collar + 0.035), (0.37, collar + 0.03), (0.5, collar - 0.075)]
        + [(0.66, 0.215 + toe), (0.82, 0.175 + toe), (0.93, 0.145 + toe / 2), (0.985, 0.085), (0.985, 0.085)],
        closed=True,
    )


def opening(collar: float) -> list[Point]:
    """The lining in the ankle opening of a low shoe."""
    return smooth(
        [(0.03, collar - 0.01), (0.1, collar + 0.025), (0.22, collar + 0.02), (0.34, collar + 0.045)]
        + [(0.31, collar - 0.06), (0.15, collar - 0.09)],
        closed=True,
    )


def sneakers(canvas: Canvas, rng: random.Random, colour: Colour) -> None:
    collar, toe = 0.35 + rng.uniform(-0.02, 0.03), rng.uniform(-0.01, 0.025)
    sole = rng.choice([WHITE, WHITE, WHITE, RUBBER, GUM])
    accent = rng.choice([WHITE, tone(colour, 0.55), tone(colour, -0.55), contrast(colour)])
    canvas.fill(opening(collar), tone(colour, -0.55), depth=0)
    canvas.fill(low_upper(collar, toe), colour)
    canvas.fill(smooth([(0.03, 0.09), (0.015, 0.2), (0.1, 0.235), (0.2, 0.18), (0.22, 0.09)], closed=True), tone(colour, -0.16), 0.2)
    cap = smooth([(0.82, 0.09), (0.79, 0.185 + toe * 0.9), (0.9, 0.155 + toe * 0.6), (0.975, 0.09)], closed=True)
    canvas.fill(cap, tone(colour, rng.choice([-0.2, 0.12])), 0.25)
    style = rng.randrange(4)
    if style == 0:
        for i in range(3):
            x = 0.36 + 0.065 * i
            canvas.fill([(x, 0.095), (x + 0.036, 0.095), (x + 0.096, 0.255 - 0.02 * i), (x + 0.06, 0.262 - 0.02 * i)], accent, 0, 0.002)
    elif style == 1:
        wave = [(0.24, 0.2), (0.33, 0.13), (0.47, 0.13), (0.7, 0.225), (0.7, 0.225), (0.47, 0.165), (0.34, 0.17)]
        canvas.fill(smooth(wave, closed=True), accent, 0, 0.002)
    elif style == 2:
        panel = smooth([(0.3, 0.095), (0.36, 0.24), (0.5, 0.245), (0.66, 0.17), (0.7, 0.095)], closed=True)
        canvas.fill(panel, tone(colour, 0.22), 0.2)
        canvas.stitches(panel, tone(colour, -0.4))
    else:
        canvas.stitches(smooth([(0.22, 0.1), (0.3, 0.22), (0.44, 0.24), (0.62, 0.16), (0.7, 0.1)]), tone(colour, 0.45))
    lace_up(canvas, rng, (0.39, collar + 0.015), (0.66, 0.225 + toe), contrast(colour), rng.choice([4, 5]))
    bottom = [(0.0, 0.105), (0.0, 0.105), (-0.005, 0.03), (0.03, 0.0), (0.45, 0.0), (0.86, 0.004), (0.99, 0.05)]
    top = [(1.005, 0.1), (1.005, 0.1), (0.8, 0.095), (0.5, 0.085), (0.25, 0.095)]
    canvas.fill(smooth(bottom + top, closed=True), sole, 0.22)
    canvas.line(smooth([(0.0, 0.035), (0.45, 0.03), (0.86, 0.035), (0.98, 0.065)]), tone(sole, -0.3), 0.007)


def boots(canvas: Canvas, rng: random.Random, colour: Colour) -> None:
    high, front = 0.66 + rng.uniform(-0.05, 0.09), rng.uniform(-0.02, 0.03)
    sole = rng.choice([RUBBER, RUBBER, LEATHER, GUM])
    shaft = 0.37 + front
    mouth = smooth([(0.03, high), (0.12, high + 0.02), (0.27, high + 0.02), (shaft, high), (0.2, high - 0.03)], closed=True)
    outline = [(0.03, 0.08), (0.03, 0.08), (0.02, 0.25), (0.04, 0.45), (0.025, high), (0.025, high), (0.2, high - 0.018)]
    outline += [(shaft, high), (shaft, high), (0.385 + front, 0.5), (0.43 + front, 0.37), (0.58, 0.285), (0.78, 0.245)]
    outline += [(0.94, 0.195), (0.985, 0.08), (0.985, 0.08)]
    canvas.fill(mouth, tone(colour, -0.5), depth=0)
    canvas.fill(smooth(outline, closed=True), colour)
    style = rng.randrange(3)
    if style == 0:  # laced, with a tongue line
        canvas.stitches(smooth([(shaft - 0.1, high - 0.03), (0.3 + front, 0.5), (0.35 + front, 0.36), (0.5, 0.25)]), tone(colour, 0.4))
        for i in range(6):
            x, y = between((shaft - 0.005, high - 0.05), (0.46 + front, 0.36), i / 5)
            canvas.line([(x, y), (x - 0.075, y - 0.025)], contrast(colour), 0.015)
            canvas.dot(x - 0.078, y - 0.026, 0.009, BRASS)
    elif style == 1:  # Chelsea: an elastic panel and a pull tab
        panel = smooth([(0.13, high - 0.06), (0.27, high - 0.06), (0.25, 0.36), (0.2, 0.3), (0.15, 0.36)], closed=True)
        canvas.fill(panel, tone(colour, -0.45), 0.1)
        for i in range(1, 6):
            canvas.line([(0.13 + 0.023 * i, high - 0.07), (0.155 + 0.014 * i, 0.36)], tone(colour, -0.6), 0.003)
        canvas.fill([(0.03, high + 0.045), (0.065, high + 0.045), (0.065, high - 0.06), (0.03, high - 0.06)], tone(colour, -0.3), 0)
    else:  # zip, cuff
        canvas.line([(0.2, high - 0.02), (0.21, 0.12)], tone(colour, -0.5), 0.022)
        canvas.line([(0.2, high - 0.02), (0.21, 0.12)], BRASS, 0.007)
        cuff = [(0.02, high + 0.012), (shaft + 0.012, high + 0.012), (shaft + 0.012, high - 0.09), (0.025, high - 0.09)]
        canvas.fill(cuff, tone(colour, 0.25), 0.2)
    canvas.fill(smooth([(0.03, 0.09), (0.02, 0.22), (0.12, 0.25), (0.23, 0.2), (0.25, 0.09)], closed=True), tone(colour, -0.14), 0.2)
    canvas.stitches(smooth([(0.74, 0.1), (0.7, 0.18), (0.74, 0.25)]), tone(colour, 0.4))
    tread = [(0.0, 0.1), (0.0, 0.1), (-0.005, 0.0), (-0.005, 0.0), (0.27, 0.0), (0.27, 0.0), (0.31, 0.035), (0.42, 0.035)]
    tread += [(0.48, 0.0), (0.48, 0.0), (0.9, 0.0), (1.0, 0.05), (1.005, 0.1), (1.005, 0.1), (0.5, 0.085)]
    canvas.fill(smooth(tread, closed=True), sole, 0.25)


def strap(canvas: Canvas, base: Point, top: Point, width: float, colour: Colour) -> None:
    """A band over the foot: the far side in shade, the near side lit and stitched."""
    (x0, y0), (x1, y1) = base, top
    far = smooth([(x0 + width * 0.5, y0), (x1 + width * 0.9, y1 - 0.01), (x1 + width * 1.9, y0)], steps=8)
    canvas.line(far, tone(colour, -0.5), width * 0.55)
    near = [(x0, y0), (x0, y0), (x1 - width * 0.35, y1 - 0.05), (x1, y1), (x1 + width * 0.9, y1 - 0.005)]
    near += [(x1 + width * 0.8, y1 - 0.06), (x0 + width * 1.25, y0), (x0 + width * 1.25, y0)]
    canvas.fill(smooth(near, closed=True), colour, 0.3)
    canvas.stitches(smooth([(x0 + width * 0.25, y0 + 0.01), (x1, y1 - 0.05), (x1 + width * 0.3, y1 - 0.014)]), tone(colour, 0.5), 0.003)


def sandals(canvas: Canvas, rng: random.Random, colour: Colour) -> None:
    bed = rng.choice([GUM, (222, 196, 160), LEATHER, RUBBER])
    wedge, style = rng.uniform(0.0, 0.05), rng.randrange(3)
    height = 0.3 + rng.uniform(-0.02, 0.04)
    back = 0.075 + wedge
    loop = smooth([(0.08, back), (0.06, back + 0.12), (0.1, height), (0.24, height + 0.03), (0.36, height - 0.03), (0.37, back + 0.06), (0.34, back)])
    canvas.line(loop, tone(colour, -0.4), 0.068)
    canvas.line(loop, colour, 0.058)
    canvas.stitches(loop, tone(colour, 0.5), 0.003)
    canvas.fill([(0.23, height + 0.055), (0.285, height + 0.05), (0.28, height - 0.01), (0.225, height)], BRASS, 0)
    if style == 0:  # a T-bar from ankle to toe
        bar = smooth([(0.36, height - 0.03), (0.48, 0.2), (0.62, 0.185)])
        canvas.line(bar, tone(colour, -0.35), 0.05)
        canvas.line(bar, colour, 0.042)
        strap(canvas, (0.58, 0.06), (0.65, 0.215), 0.13, colour)
    elif style == 1:  # two broad bands
        strap(canvas, (0.47, 0.06), (0.53, 0.235), 0.105, colour)
        strap(canvas, (0.67, 0.06), (0.72, 0.185), 0.105, colour)
    else:  # one wide band
        strap(canvas, (0.5, 0.06), (0.59, 0.235), 0.2, colour)
    top = [(1.0, 0.07), (1.0, 0.07), (0.85, 0.055), (0.6, 0.055), (0.35, 0.065 + wedge * 0.8), (0.0, back + 0.01), (0.0, back + 0.01)]
    bottom = [(0.0, 0.01), (0.03, 0.0), (0.4, 0.0), (0.8, 0.0), (0.97, 0.02)]
    canvas.fill(smooth(top + bottom, closed=True), bed, 0.25)
    canvas.line(smooth([(0.0, 0.024), (0.4, 0.02), (0.8, 0.02), (0.985, 0.04)]), tone(bed, -0.45), 0.014)


def heels(canvas: Canvas, rng: random.Random, colour: Colour) -> None:
    lift = 0.3 + rng.uniform(-0.05, 0.06)
    sole, style = rng.choice([RUBBER, tone(colour, -0.45), (178, 28, 36), GUM]), rng.randrange(3)
    thick = rng.uniform(0.03, 0.09)
    stem = [(0.045, lift + 0.03), (0.045, lift + 0.03), (0.055, lift * 0.5), (0.085 - thick / 3, 0.0), (0.085 - thick / 3, 0.0)]
    stem += [(0.085 + thick / 2, 0.0), (0.085 + thick / 2, 0.0), (0.13 + thick * 0.3, lift * 0.5), (0.215, lift * 0.86), (0.215, lift * 0.86)]
    canvas.fill(smooth(stem, closed=True), tone(colour, -0.12), 0.25)
    canvas.fill(smooth([(0.03, lift + 0.2), (0.2, lift + 0.08), (0.42, 0.2), (0.56, 0.17), (0.5, 0.1), (0.2, lift)], closed=True), tone(colour, -0.55), 0)
    shell = [(0.03, lift), (0.03, lift), (0.005, lift + 0.12), (0.025, lift + 0.225), (0.05, lift + 0.22), (0.12, lift + 0.12)]
    shell += [(0.27, lift * 0.62 + 0.115), (0.42, lift * 0.25 + 0.115), (0.54, 0.125), (0.63, 0.16), (0.72, 0.165), (0.85, 0.12)]
    shell += [(1.0, 0.03), (1.0, 0.03), (0.92, 0.014), (0.62, 0.012), (0.45, 0.05), (0.25, lift * 0.72)]
    canvas.fill(smooth(shell, closed=True), colour)
    canvas.line(smooth([(0.05, lift), (0.25, lift * 0.72), (0.45, 0.05), (0.62, 0.008), (0.92, 0.008), (0.99, 0.02)]), sole, 0.016)
    if style == 0:  # ankle strap
        band = smooth([(0.035, lift + 0.17), (0.06, lift + 0.3), (0.2, lift + 0.31), (0.27, lift + 0.2), (0.22, lift + 0.07)])
        canvas.line(band, tone(colour, -0.35), 0.036)
        canvas.line(band, colour, 0.028)
        canvas.dot(0.2, lift + 0.305, 0.017, BRASS)
    elif style == 1:  # bow
        for side in (-1, 1):
            canvas.fill(smooth([(0.66, 0.165), (0.66 + 0.075 * side, 0.225), (0.66 + 0.085 * side, 0.135)], closed=True), tone(colour, -0.25), 0.2)
        canvas.dot(0.66, 0.17, 0.02, tone(colour, -0.5))
    canvas.stitches(smooth([(0.07, lift + 0.185), (0.27, lift * 0.62 + 0.095), (0.42, lift * 0.25 + 0.095), (0.54, 0.105), (0.63, 0.138)]), tone(colour, 0.4), 0.003)


def loafers(canvas: Canvas, rng: random.Random, colour: Colour) -> None:
    collar, toe, style = 0.265 + rng.uniform(-0.015, 0.02), rng.uniform(-0.015, 0.015), rng.randrange(3)
    sole = rng.choice([LEATHER, RUBBER, GUM])
    canvas.fill(smooth([(0.03, collar), (0.12, collar + 0.005), (0.3, 0.235), (0.45, 0.285), (0.3, 0.19), (0.12, 0.2)], closed=True), tone(colour, -0.55), 0)
    upper = [(0.03, 0.06), (0.03, 0.06), (0.005, 0.16), (0.025, collar), (0.05, collar), (0.16, 0.205), (0.32, 0.2), (0.43, 0.285)]
    upper += [(0.5, 0.292), (0.62, 0.235 + toe), (0.8, 0.19 + toe), (0.93, 0.15 + toe), (0.99, 0.06), (0.99, 0.06)]
    canvas.fill(smooth(upper, closed=True), colour)
    apron = smooth([(0.52, 0.245), (0.62, 0.18 + toe), (0.78, 0.145 + toe), (0.9, 0.15 + toe)])
    canvas.line(apron, tone(colour, -0.5), 0.009)
    canvas.stitches([(x, y + 0.014) for x, y in apron], tone(colour, 0.4), 0.003)
    saddle = smooth([(0.36, 0.07), (0.37, 0.2), (0.45, 0.288), (0.52, 0.282), (0.54, 0.2), (0.55, 0.07)], closed=True)
    canvas.fill(saddle, tone(colour, -0.22), 0.2)
    if style == 0:  # penny slot
        canvas.line([(0.435, 0.215), (0.505, 0.205)], tone(colour, -0.65), 0.022)
    elif style == 1:  # metal bit
        canvas.line([(0.4, 0.225), (0.54, 0.205)], tone(BRASS, -0.4), 0.034)
        canvas.line([(0.4, 0.228), (0.54, 0.208)], BRASS, 0.022)
    else:  # tassels
        for dx in (0.0, 0.04):
            canvas.line([(0.48, 0.28), (0.54 + dx, 0.2 - dx / 2)], tone(colour, -0.5), 0.018)
            canvas.dot(0.545 + dx, 0.19 - dx / 2, 0.02, tone(colour, -0.4))
    canvas.stitches(smooth([(0.07, collar - 0.02), (0.16, 0.185), (0.32, 0.18), (0.36, 0.2)]), tone(colour, 0.4), 0.003)
    heel = [(0.0, 0.075), (0.0, 0.075), (0.005, 0.0), (0.005, 0.0), (0.26, 0.0), (0.26, 0.0), (0.28, 0.032), (0.45, 0.03)]
    heel += [(0.55, 0.004), (0.88, 0.004), (0.99, 0.04), (1.0, 0.075), (1.0, 0.075), (0.5, 0.065)]
    canvas.fill(smooth(heel, closed=True), sole, 0.25)


def casual_shoes(canvas: Canvas, rng: random.Random, colour: Colour) -> None:
    """A two-tone canvas low-top: tinted quarter, white rubber toe cap, white sole with a stripe."""
    collar, toe = 0.365 + rng.uniform(-0.02, 0.03), rng.uniform(-0.005, 0.02)
    canvas.fill(opening(collar), tone(colour, -0.5), depth=0)
    canvas.fill(low_upper(collar, toe), colour)
    light = sum(colour) > 640
    quarter = tone(colour, -0.28 if light else 0.52)
    edge = [(0.21, 0.08), (0.235, 0.19), (0.19, collar - 0.055)]
    back = [(0.14, collar - 0.055), (0.055, collar + 0.012), (0.02, collar), (0.005, 0.2), (0.03, 0.08), (0.03, 0.08)]
    canvas.fill(smooth([edge[0], *edge, *back], closed=True), quarter, 0.25)
    canvas.stitches(smooth([(x - 0.018, y) for x, y in edge]), tone(colour, -0.35))
    if rng.random() < 0.5:  # ankle patch
        canvas.dot(0.315, 0.205, 0.048, tone(colour, -0.3))
        canvas.dot(0.315, 0.205, 0.04, WHITE)
        canvas.dot(0.315, 0.205, 0.018, colour)
    else:
        canvas.fill([(0.005, 0.1), (0.05, 0.1), (0.058, collar + 0.005), (0.018, collar)], colour, 0.15)
    cap = smooth([(0.79, 0.08), (0.755, 0.14), (0.77, 0.195 + toe), (0.88, 0.165 + toe * 0.7), (0.985, 0.085), (0.985, 0.085)], closed=True)
    canvas.fill(cap, WHITE, 0.22)
    canvas.stitches(smooth([(0.385, 0.1), (0.41, 0.22), (0.5, 0.22), (0.68, 0.15), (0.735, 0.1)]), tone(colour, 0.5))
    lace_up(canvas, rng, (0.39, collar + 0.015), (0.66, 0.225 + toe), WHITE if not light else (96, 96, 102), 5, reach=0.085)
    bottom = [(-0.005, 0.105), (-0.005, 0.105), (-0.005, 0.0), (-0.005, 0.0), (0.5, 0.0), (0.9, 0.0), (1.0, 0.035)]
    top = [(1.01, 0.1), (1.01, 0.1), (0.8, 0.1), (0.5, 0.095), (0.25, 0.1)]
    canvas.fill(smooth(bottom + top, closed=True), WHITE, 0.16)
    stripe = smooth([(-0.003, 0.068), (0.4, 0.062), (0.8, 0.066), (1.003, 0.07)])
    canvas.line(stripe, tone(colour, -0.3) if light else colour, 0.016)
    canvas.line(smooth([(-0.003, 0.012), (0.5, 0.01), (0.9, 0.012), (0.99, 0.03)]), GUM, 0.018)


KINDS = {
    "Sneakers": sneakers,
    "Boots": boots,
    "Sandals": sandals,
    "Heels": heels,
    "Loafers": loafers,
    HELD_BACK: casual_shoes,
}
# fmt: on


def draw_shoe(kind: str, colour: str, seed: str, size: tuple[int, int] = (512, 512)) -> Image.Image:
    """One product photo, on white, the toe to the right. The seed fixes shape and details; the size changes neither."""
    rng = random.Random(f"shoe/{seed}")
    width, height = size
    over = 4 if width <= 160 else 3 if width <= 640 else 2 if width <= 1280 else 1.5
    w, h = round(width * over), round(height * over)
    length = w * rng.uniform(0.74, 0.88)
    left = (w - length) / 2 + w * rng.uniform(-0.025, 0.025)
    tall = {"Boots": 0.2, "Heels": 0.11}.get(kind, 0.02)
    ground = h / 2 + w * (0.155 + tall + rng.uniform(-0.025, 0.025))
    canvas = Canvas(Image.new("RGB", (w, h), "white"), left, ground, length, rng.uniform(0.93, 1.1))

    # A soft contact shadow, blurred small and enlarged: the blur is the slowest step and has no detail to lose.
    shade = Image.new("L", (64, 64 * h // w), 0)
    x0, x1, y = left / w * 64, (left + length) / w * 64, ground / w * 64
    ImageDraw.Draw(shade).ellipse([x0 - 0.5, y - 1.4, x1 + 0.5, y + 2.2], fill=96)
    shade = shade.filter(ImageFilter.GaussianBlur(1.1)).resize((w, h), Image.Resampling.BICUBIC)
    canvas.image.paste((96, 98, 108), (0, 0), shade)

    jitter = rng.uniform(-0.1, 0.1)
    base = tuple(min(255, max(0, c + rng.randint(-6, 6))) for c in tone(COLOURS[colour], jitter))
    KINDS[kind](canvas, rng, base)
    return canvas.image.resize(size, Image.Resampling.BOX if over in (2, 3, 4) else Image.Resampling.LANCZOS)
