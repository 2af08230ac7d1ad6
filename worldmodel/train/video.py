"""Pictures of a run: animations, open-loop predictions beside the truth, learning curves. Pillow alone draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from worldmodel.errors import UserError, unknown
from worldmodel.storage import replacing

Point = tuple[float, float, float, float]
"""(frames, mean, low, high) of one evaluation."""

_OBSERVED = (60, 190, 75)
_IMAGINED = (225, 50, 50)
_TRUTH = (70, 70, 78)
_BORDER = 2
_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75))


def save_animation(path: Path, frames: Any, fps: float) -> Path:
    """Write an animation in the format of the suffix; a reader never sees half a file.

    Args:
        path: ``.png`` (APNG: lossless, shown by browsers and GitHub), ``.gif``, or ``.mp4`` (needs PyAV).
        frames: (T, h, w, 3) or (T, h, w, 1) uint8.
        fps: frames per second, in (0, 100].

    Raises:
        UserError: another suffix, or PyAV is missing.
        ValueError: frames of another shape or type.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    writers: dict[str, Callable[[IO[bytes], np.ndarray, float], None]] = {
        ".png": _write_apng, ".gif": _write_gif, ".mp4": _write_mp4,
    }  # fmt: skip
    if path.suffix not in writers:
        raise UserError(unknown("animation suffix", path.suffix, writers))
    images = _frames(frames)
    if not 0 < fps <= 100:
        raise ValueError(f"fps must be in (0, 100], got {fps}")
    with replacing(path) as file:
        writers[path.suffix](file, images, fps)
    return path


def write_png(path: Path, image: Any) -> Path:
    """Write one picture, (h, w, 3) or (h, w, 1) uint8; errors as in :func:`save_animation`."""
    picture = _frames(_numpy(image)[None])[0]
    with replacing(Path(path)) as file:
        Image.fromarray(picture).save(file, format="PNG")
    return Path(path)


def open_loop_grid(truth: Any, model: Any, context: int, *, scale: int = 1) -> np.ndarray:
    """Lay sequences side by side, three rows each: what happened, what the model says, how far it is off.

    The frame round model and error is green while the model is shown the truth (``t < context``), then red: from there
    on it imagines. Errors are absolute, their largest channel, from black over red and yellow to white at half
    the range.

    Args:
        truth: (B, T, h, w, C) uint8, or float in [0, 1].
        model: (B, T, h, w, C) float in [0, 1], or uint8. Channels that are a stack of frames show the newest.
        context: steps the model was shown.
        scale: every pixel becomes a square of this many.

    Returns:
        (T, H, W, 3) uint8, H = 3 (h * scale + 4) and W = B (w * scale + 4).

    Raises:
        ValueError: shapes that differ or are not (B, T, h, w, C).
    """
    real, dream = unit_rgb(truth), unit_rgb(model)
    if real.ndim != 5 or real.shape != dream.shape:
        raise ValueError(f"truth and model must both be (B, T, h, w, C), got {real.shape} and {dream.shape}")
    error = _heat(2.0 * np.abs(real - dream).max(-1))
    edge = np.where(np.arange(real.shape[1])[:, None] < context, _OBSERVED, _IMAGINED).astype(np.uint8)
    neutral = np.broadcast_to(np.array(_TRUTH, np.uint8), edge.shape)
    rows = [(to_bytes(real), neutral), (to_bytes(dream), edge), (to_bytes(error), edge)]
    # each (T, h', w' * B, 3)
    return np.concatenate([_strip(images, colour, scale) for images, colour in rows], axis=1)


def learning_curve_png(
    path: Path,
    scores: Sequence[Point] | Mapping[str, Sequence[Point]],
    title: str,
    *,
    x_label: str = "frames",
    y_label: str = "return",
    size: tuple[int, int] = (800, 480),
) -> Path:
    """Draw a learning curve with its band.

    Args:
        path: a ``.png``.
        scores: evaluations (frames, mean, low, high) in order, or several such curves by name. Points that are not
            finite are left out.
        title: above the curve.
        size: of the picture, in pixels.

    Raises:
        StorageError: the file cannot be written.
    """
    curves = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    curves = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in curves.items()}
    chart = _Chart(curves, size)
    chart.axes(title, x_label, y_label)
    chart.draw_curves()
    chart.legend()
    picture = chart.picture.resize(size, Image.Resampling.LANCZOS)
    with replacing(Path(path)) as file:
        picture.save(file, format="PNG", optimize=True)
    return Path(path)


# Arrays


def _numpy(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        # numpy has no bfloat16
        return (x.float() if x.is_floating_point() else x).numpy()
    return np.asarray(x)


def _frames(frames: Any) -> np.ndarray:
    images = _numpy(frames)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8 or not images.size:
        raise ValueError(f"frames must be (T, h, w, 3) uint8 with T > 0, got {images.shape} {images.dtype}")
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:-1], 3)))


def unit_rgb(x: Any) -> np.ndarray:
    """To float32 in [0, 1] with three channels."""
    array = _numpy(x)
    unit = array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.astype(np.float32)
    unit = np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    # A stack of colour frames shows its newest, a stack of gray ones too.
    newest = unit[..., -3:] if unit.shape[-1] % 3 == 0 else unit[..., -1:]
    return np.broadcast_to(newest, (*newest.shape[:-1], 3))


def to_bytes(unit: np.ndarray) -> np.ndarray:
    return (unit * 255 + 0.5).astype(np.uint8)


def _heat(value: np.ndarray) -> np.ndarray:
    """[0, 1] to black, red, yellow, white."""
    return np.stack([3 * value, 3 * value - 1, 3 * value - 2], axis=-1).clip(0, 1)


def _strip(images: np.ndarray, colour: np.ndarray, scale: int) -> np.ndarray:
    """(B, T, h, w, 3) to (T, h', B * w', 3), each image in a frame of the colour of its time, (T, 3)."""
    big = images.repeat(scale, axis=2).repeat(scale, axis=3)
    batch, time, height, width, _ = big.shape
    framed = np.empty((batch, time, height + 2 * _BORDER, width + 2 * _BORDER, 3), np.uint8)
    framed[:] = colour[None, :, None, None]
    framed[:, :, _BORDER:-_BORDER, _BORDER:-_BORDER] = big
    # (B, T, h', w', 3) -> (T, h', B, w', 3) -> (T, h', B * w', 3)
    return framed.transpose(1, 2, 0, 3, 4).reshape(time, framed.shape[2], -1, 3)


# Files


def _write_apng(file: IO[bytes], images: np.ndarray, fps: float) -> None:
    first, *rest = [Image.fromarray(image) for image in images]
    first.save(file, format="PNG", save_all=True, append_images=rest, duration=1000 / fps, loop=0)


def _write_gif(file: IO[bytes], images: np.ndarray, fps: float) -> None:
    # GIF counts in hundredths of a second and viewers slow down what claims to be faster than 50 per second.
    first, *rest = [Image.fromarray(image) for image in images]
    duration = max(20, 10 * round(100 / fps))
    first.save(file, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)


def _write_mp4(file: IO[bytes], images: np.ndarray, fps: float) -> None:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("mp4 needs PyAV; pip install 'worldmodel[video]', or give a .png or .gif path") from error
    from fractions import Fraction

    # H.264 in yuv420p halves the colour resolution, so both sides must be even.
    even = np.pad(images, ((0, 0), (0, images.shape[1] % 2), (0, images.shape[2] % 2), (0, 0)), mode="edge")
    with av.open(file, mode="w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        stream.options = {"crf": "18"}
        for image in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


# Charts


class _Chart:
    """Axes and curves, drawn at twice the size and shrunk, which smooths them."""

    def __init__(self, curves: dict[str, list[Point]], size: tuple[int, int]) -> None:
        self.curves = curves
        self.zoom = 2
        self.width, self.height = size[0] * self.zoom, size[1] * self.zoom
        self.picture = Image.new("RGB", (self.width, self.height), "white")
        self.pen = ImageDraw.Draw(self.picture, "RGBA")
        points = [p for curve in curves.values() for p in curve]
        low, high = min((p[2] for p in points), default=0.0), max((p[3] for p in points), default=1.0)
        self.x_ticks = nice_ticks(0.0, max((p[0] for p in points), default=1.0), 8)
        self.y_ticks = nice_ticks(low, high, 8)
        self.left, self.right = 78 * self.zoom, self.width - 24 * self.zoom
        self.top, self.bottom = 44 * self.zoom, self.height - 56 * self.zoom

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Data to pixels."""
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def write(self, x: float, y: float, text: str, points: int, anchor: str, colour: str = "#333333") -> None:
        font = ImageFont.load_default(points * self.zoom)
        self.pen.text((x, y), text, fill=colour, font=font, anchor=anchor)

    def axes(self, title: str, x_label: str, y_label: str) -> None:
        z = self.zoom
        for tick in self.y_ticks:
            _, y = self.at(0, tick)
            self.pen.line([(self.left, y), (self.right, y)], fill="#e4e4e4", width=z)
            self.write(self.left - 8 * z, y, format_tick(tick, self.y_ticks), 12, "rm")
        for tick in self.x_ticks:
            x, _ = self.at(tick, self.y_ticks[0])
            self.pen.line([(x, self.bottom), (x, self.bottom + 5 * z)], fill="#333333", width=z)
            self.write(x, self.bottom + 9 * z, format_tick(tick, self.x_ticks), 12, "ma")
        corner = (self.left, self.bottom)
        self.pen.line([(self.left, self.top), corner, (self.right, self.bottom)], fill="#333333", width=z)
        self.write((self.left + self.right) / 2, 14 * z, title, 15, "ma", "#111111")
        self.write((self.left + self.right) / 2, self.height - 10 * z, x_label, 13, "md")
        self._write_upwards(y_label)

    def _write_upwards(self, text: str) -> None:
        font = ImageFont.load_default(13 * self.zoom)
        left, top, right, bottom = font.getbbox(text)
        label = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
        ImageDraw.Draw(label).text((2 - left, 2 - top), text, fill=255, font=font)
        label = label.rotate(90, expand=True)
        place = (8 * self.zoom, int((self.top + self.bottom - label.height) / 2))
        self.picture.paste((0x33, 0x33, 0x33), place, label)

    def draw_curves(self) -> None:
        for (_, points), colour in zip(self.curves.items(), self._colours()):
            band = [self.at(x, low) for x, _, low, _ in points] + [self.at(x, high) for x, _, _, high in points[::-1]]
            if len(points) > 1:
                self.pen.polygon(band, fill=(*colour, 50))
                line = [self.at(x, mean) for x, mean, _, _ in points]
                self.pen.line(line, fill=colour, width=2 * self.zoom, joint="curve")
            if len(points) <= 40:
                for left, top in (self.at(x, mean) for x, mean, _, _ in points):
                    r = 3 * self.zoom
                    self.pen.ellipse((left - r, top - r, left + r, top + r), fill=colour)
        if not any(self.curves.values()):
            self.write((self.left + self.right) / 2, (self.top + self.bottom) / 2, "no scores yet", 14, "mm")

    def legend(self) -> None:
        z = self.zoom
        named = [(name, colour) for name, colour in zip(self.curves, self._colours()) if name]
        for row, (name, colour) in enumerate(named):
            y = self.top + (10 + 18 * row) * z
            self.pen.line([(self.left + 12 * z, y), (self.left + 34 * z, y)], fill=colour, width=3 * z)
            self.write(self.left + 42 * z, y, name, 12, "lm")

    def _colours(self) -> list[tuple[int, int, int]]:
        return [_COLOURS[i % len(_COLOURS)] for i in range(len(self.curves))]


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most about ``most`` round numbers, 1, 2 or 5 times a power of ten apart, that enclose [low, high].

    >>> nice_ticks(3.0, 947.0, 6)
    [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
    """
    # Beyond this the labels of neighbours would be the same text.
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def format_tick(value: float, ticks: Sequence[float]) -> str:
    """A tick's label: 1.5M, 200k, 0.05, with as many decimals as tell neighbours apart."""
    largest = max(abs(tick) for tick in ticks)
    unit, suffix = next(((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e4, "k")) if largest >= u), (1.0, ""))
    unit = 1e3 if suffix == "k" else unit
    step = abs(ticks[1] - ticks[0]) / unit
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value / unit:.{decimals}f}"
    return "0" if not float(text) else text + suffix
