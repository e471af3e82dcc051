"""Reading and writing image files without losing what they hold, and without accepting damaged ones.

Pillow decodes, because it refuses truncated files where OpenCV returns the half it could read; OpenCV decodes
and encodes 16-bit files, which Pillow reduces to 8 bits.
"""
from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

import cv2
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike, atomic_path

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
EXTENSIONS = tuple(_FORMATS)
_WEBP_SIDE = 16383  # pixels, of the format
_ROWS = 256  # converted at a time: in float64 a picture takes eight times its bytes
_SAVE_OPTIONS = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"}}
_GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I")
_TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error)  # what Pillow raises
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB: some editors write large profiles as text
_BITS_PER_SAMPLE = 258  # TIFF 6.0 tag


@dataclass
class Picture:
    """An image and what its file said about it.

    Attributes:
        rgb: float32 (H, W, 3) in [0, 1]; a grey image has three equal channels.
        alpha: float32 (H, W) in [0, 1], or None when the file has no transparency.
        gray: the file is single-channel (and is written as such).
        depth: bits per sample of the file, 8 or 16.
        profile: the ICC colour profile that says what RGB means, or None; only files of 8 bits keep it.
    """

    rgb: np.ndarray
    alpha: Optional[np.ndarray] = None
    gray: bool = False
    depth: int = 8
    profile: Optional[bytes] = None


def list_images(folder: PathLike) -> List[Path]:
    """The image files directly in ``folder`` (by extension, hidden ones left out), sorted by name.

    Raises:
        UserError: ``folder`` is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of images, it does not exist or is no folder")
    return sorted(path for path in folder.iterdir() if is_image_name(path) and path.is_file())


def is_image_name(path: Path) -> bool:
    """Whether the name says PNG, JPEG, WebP, BMP or TIFF and is not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def read_picture(path: PathLike) -> Picture:
    """Read a PNG, JPEG, WebP, BMP or TIFF file, the first image of those that hold several.

    Palettes are resolved; the EXIF orientation of 8-bit files is applied.

    Raises:
        UserError: naming the file, when it is missing, empty, truncated, no image, or of 32-bit samples.
    """
    samples, gray, profile = _decode(Path(path))
    depth = 16 if samples.dtype == np.uint16 else 8
    values = samples.astype(np.float32) / np.float32(2**depth - 1)
    alpha = np.ascontiguousarray(values[..., 3]) if values.shape[2] == 4 else None
    return Picture(np.ascontiguousarray(values[..., :3]), alpha, gray, depth, profile)


def read_rgb8(path: PathLike) -> np.ndarray:
    """Read an image file as uint8 (H, W, 3) RGB: grey repeated, 16 bits rounded to 8, transparency dropped.

    Raises:
        UserError: as :func:`read_picture`.
    """
    samples, _, _ = _decode(Path(path))
    if samples.dtype == np.uint16:
        samples = ((samples.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.ascontiguousarray(samples[..., :3])


def image_size(path: PathLike) -> Tuple[int, int]:
    """(height, width) as the file's header states them, without decoding the pixels.

    Raises:
        UserError: the file is missing, empty or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "damaged, no image or too large"
        raise UserError(f"{path}: cannot read this image file: {reason}") from error


def write_rgb8(path: PathLike, image: np.ndarray) -> None:
    """Write a uint8 (H, W, 3) RGB image; see :func:`write_picture`."""
    write_picture(path, Picture(image.astype(np.float32) / np.float32(255.0)))


def require_room(path: PathLike, height: int, width: int) -> None:
    """Find out before a picture is computed whether the format that ``path`` names holds so many pixels.

    Raises:
        UserError: it does not (WebP: 16,383 a side).
    """
    if Path(path).suffix.lower() == ".webp" and max(height, width) > _WEBP_SIDE:
        raise UserError(f"{path}: {width} x {height} pixels are too many for WebP (at most {_WEBP_SIDE} a side); convert "
                        "the input to PNG")


def write_picture(path: PathLike, picture: Picture) -> None:
    """Write ``picture`` in the format that the extension of ``path`` names, whole or not at all.

    Values are clipped to [0, 1] and rounded. Grey is written single-channel except to WebP, which has no
    grey; 16 bits are kept by PNG and TIFF and become 8 in the other formats. WebP is written lossless, JPEG
    at quality 95.

    Raises:
        UserError: unknown extension, a picture with alpha for JPEG or BMP, which cannot hold it, or one that is too
            large for the format (WebP: 16,383 pixels a side).
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: cannot write this kind of image; use one of {', '.join(EXTENSIONS)}")
    if picture.alpha is not None and kind in ("JPEG", "BMP"):
        raise UserError(f"{path}: {kind} cannot hold the picture's transparency; use .png, .webp or .tif")
    deep = picture.depth == 16 and kind in ("PNG", "TIFF")
    channels = [picture.rgb[..., :1] if picture.gray else picture.rgb]
    if picture.alpha is not None:
        channels.append(picture.alpha[..., None])
    top, dtype = (65535, np.uint16) if deep else (255, np.uint8)
    samples = np.empty((*picture.rgb.shape[:2], sum(channel.shape[2] for channel in channels)), dtype)
    for start in range(0, len(samples), _ROWS):
        rows = slice(start, start + _ROWS)
        # float64, because float32 cannot round every 16-bit value.
        values = np.concatenate([channel[rows] for channel in channels], axis=2, dtype=np.float64)
        samples[rows] = np.rint(np.clip(values, 0.0, 1.0) * top)
    try:
        encoded = _encode_deep(samples, kind) if deep else _encode(samples, kind, picture.profile)
    except (ValueError, OSError, cv2.error) as error:
        raise UserError(f"{path}: {samples.shape[1]} x {samples.shape[0]} pixels cannot be written as {kind}: {error}"
                        ) from error
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(encoded)


def _decode(path: Path) -> Tuple[np.ndarray, bool, Optional[bytes]]:
    """uint8 or uint16 samples (H, W, 3 RGB or 4 RGBA), whether the file is single-channel, and its colour profile."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this image file: {error.strerror or error}") from error
    if not data:
        raise UserError(f"{path}: the file is empty, expected an image")
    try:
        with Image.open(io.BytesIO(data)) as image:
            deep = _bits(image, data) == 16
            if not deep and image.mode in ("I", "F"):
                raise UserError(f"{path}: expected 8 or 16-bit integer samples, found kind {image.mode!r}")
            image.load()
            gray = image.mode in _GREY_MODES
            if deep:
                return _decode_deep(path, data), gray, None
            # a profile of another kind of colour (CMYK, Lab) says nothing of the RGB that Pillow converts it to
            profile = image.info.get("icc_profile") if image.mode in (*_GREY_MODES, "RGB", "RGBA", "P", "PA") else None
            return _samples8(image), gray, profile
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image, or damaged; expected PNG, JPEG, WebP, BMP or TIFF") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large to be decoded safely: {error}") from error
    except _DAMAGED as error:
        raise UserError(f"{path}: damaged or truncated image: {error}") from error


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per sample as the file states it, because Pillow's mode hides that of 16-bit colour."""
    if image.format == "PNG":
        return data[24]  # IHDR: signature 8, length 4, "IHDR" 4, width 4, height 4
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    return 8


def _samples8(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    transparent = image.mode in _TRANSPARENT_MODES or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if transparent else "RGB"))


def _decode_deep(path: Path, data: bytes) -> np.ndarray:
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise UserError(f"{path}: damaged 16-bit image, or a kind that cannot be decoded")
    if samples.ndim == 2:
        return cv2.cvtColor(samples, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(samples, cv2.COLOR_BGRA2RGBA if samples.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _encode(samples: np.ndarray, kind: str, profile: Optional[bytes]) -> bytes:
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    if kind == "WEBP":
        image = image.convert("RGBA" if samples.shape[2] in (2, 4) else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=profile, **_SAVE_OPTIONS.get(kind, {}))
    return buffer.getvalue()


def _encode_deep(samples: np.ndarray, kind: str) -> bytes:
    if samples.shape[2] == 2:  # OpenCV has no grey with alpha: written as colour with three equal channels
        samples = samples[..., [0, 0, 0, 1]]
    if samples.shape[2] > 1:
        samples = cv2.cvtColor(samples, cv2.COLOR_RGBA2BGRA if samples.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".png" if kind == "PNG" else ".tif", samples)
    if not done:
        raise ValueError(f"OpenCV could not encode {samples.dtype} {samples.shape} as {kind}")
    return encoded.tobytes()
