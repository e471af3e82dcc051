"""Using a network on a picture, a folder or a video: ``tools/predict.py``. Knows no framework."""
from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Dict, Iterator, List

import cv2
import numpy as np

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import atomic_path, make_writable
from ppsr2q.data.image_io import EXTENSIONS, Picture, list_images, read_picture, require_room, write_picture
from ppsr2q.evaluation.metrics import require_finite, to_uint8
from ppsr2q.evaluation.tiling import Upscaler, check_tiling, run_tiled
from ppsr2q.workflow.progress import Progress

VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")


def _tiled(upscale: Upscaler, scale: int, tile: int, overlap: int) -> Upscaler:
    return partial(run_tiled, upscale, tile=tile, overlap=overlap, scale=scale) if tile else upscale


def _checked(upscale: Upscaler, file: Path) -> Upscaler:
    return lambda image: require_finite(upscale(image), str(file))


def predict_picture(upscale: Upscaler, scale: int, picture: Picture, tile: int, overlap: int) -> Picture:
    """Super-resolve a picture; grey stays grey, alpha is enlarged by plain bicubic (a mask is no photograph)."""
    rgb = _tiled(upscale, scale, tile, overlap)(picture.rgb)
    rgb = np.clip(rgb, 0, 1, out=rgb)
    if picture.gray:
        rgb = np.repeat(rgb.mean(axis=2, keepdims=True), 3, axis=2)
    alpha = picture.alpha
    if alpha is not None:
        alpha = np.clip(cv2.resize(alpha, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), 0, 1)
    return dataclasses.replace(picture, rgb=rgb, alpha=alpha)


def _output_name(file: Path) -> str:
    # JPEG and BMP hold no alpha, and re-encoding with losses would blur what was gained
    return file.name if file.suffix.lower() in (".png", ".tif", ".tiff", ".webp") else f"{file.stem}.png"


def predict(upscale: Upscaler, scale: int, source: Path, target: Path, tile: int, overlap: int) -> List[Path]:
    """Super-resolve a file, a video or all images of a folder into a folder, one picture in memory at a time.

    Raises:
        UserError: nothing to read, or unreadable files; the readable images of a folder are done first. Before
            anything is computed: tiles that do not overlap properly, a folder that cannot be written to, or two
            images that would be written to one file.
    """
    if tile:
        check_tiling(tile, overlap)
    files = list_images(source) if source.is_dir() else [source]  # of a folder, its images
    if not files:
        raise UserError(f"{source}: no images in this folder")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if not target.is_dir() and (target.exists() or target.suffix.lower() in (*EXTENSIONS, *VIDEOS)):
        raise UserError(f"{target}: expected a folder to write to, this is the name of a file")
    if target.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise UserError(f"{target}: is where the input lies; its images would be overwritten")
    names: Dict[str, Path] = {}
    for file in files:
        other = names.setdefault(_output_name(file), file)
        if other is not file:
            raise UserError(f"{other} and {file} would both be written to {target / _output_name(file)}; rename one")
    make_writable(target)
    if source.suffix.lower() in VIDEOS and not source.is_dir():
        predict_video(_tiled(_checked(upscale, source), scale, tile, overlap), scale, source, target / f"{source.stem}.mp4")
        return [target / f"{source.stem}.mp4"]
    progress, written, failed = Progress("super-resolving", len(files)), [], []
    for name, file in names.items():
        try:
            picture = read_picture(file)
            require_room(target / name, *(scale * side for side in picture.rgb.shape[:2]))
            write_picture(target / name, predict_picture(_checked(upscale, file), scale, picture, tile, overlap))
            written.append(target / name)
        except MemoryError as error:
            failed.append(f"{file}: not enough memory ({error}): use tiles, or smaller ones (--tile)")
        except UserError as error:
            failed.append(str(error) if str(file) in str(error) else f"{file}: {error}")
        progress.advance()
    progress.close()
    if failed:
        raise UserError("\n".join(failed) + (f"\n({len(written)} other images were written)" if written else ""))
    return written


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


def _frames_in(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()


def predict_video(upscale: Upscaler, scale: int, source: Path, target: Path) -> int:
    """Super-resolve a video frame by frame into an MPEG-4 file at the same rate; sound is not copied.

    Returns:
        The number of frames.

    Raises:
        UserError: the video cannot be decoded, or this OpenCV cannot encode the enlarged one, or not all of it.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such video file")
    capture = cv2.VideoCapture(str(source))
    try:
        width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if not capture.isOpened() or not width or not height:
            raise UserError(f"{source}: this video cannot be decoded")
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        announced, done = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        progress = Progress(f"super-resolving {source.name}", max(announced, 1))
        with atomic_path(target) as temporary:
            size = (width * scale, height * scale)
            writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
            try:
                if not writer.isOpened():
                    raise UserError(f"{target}: OpenCV cannot encode MPEG-4 of {size[0]} x {size[1]} pixels")
                for frame in _frames(capture):
                    image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.float32) / np.float32(255)
                    writer.write(cv2.cvtColor(to_uint8(upscale(image)), cv2.COLOR_RGB2BGR))
                    done += 1
                    progress.advance()
            finally:
                writer.release()
            if not done:
                raise UserError(f"{source}: no frame of this video can be decoded")
            kept = _frames_in(temporary)
            if kept != done:  # OpenCV's writer tells of no error
                raise UserError(f"{target}: only {kept} of {done} frames could be written (disk full?)")
        progress.close()
        if done < announced:
            print(f"{source}: only {done} of the {announced} frames that it announces could be decoded",
                  file=sys.stderr)
    finally:
        capture.release()
    return done
