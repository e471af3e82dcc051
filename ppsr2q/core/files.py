"""Files that survive crashes, and artifacts: named arrays with a kind, a version and a hash in one file."""
from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Union

import numpy as np
import safetensors.numpy

from ppsr2q.core.environment import library_versions
from ppsr2q.core.errors import UserError

PathLike = Union[str, "os.PathLike[str]"]

FORMAT_VERSION = 1
_METADATA_KEY = "ppsr2q"
# Shown when a file of this kind is missing or another kind was given in its place.
MADE_BY: Dict[str, str] = {
    "full-precision weights": "tools/pretrain.py, or ppsr2q.models.convert_torch from a .pth",
    "rectifiers": "tools/train.py",
    "searched bounds": "tools/train.py",
    "spr2q table": "tools/route_calib.py",
    "fused model": "tools/export.py",
    "packed model": "tools/export.py",
    "network for PyTorch": "tools/export.py --format torch",
    "resume": "a training tool, in <output_dir>/resume/",
}


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it when the block ends without an error.

    Missing folders are made. The temporary name keeps the suffix, because image writers choose the format
    by it. Content and directory entry are synced, so after a power cut the file is either old or new.

    Raises:
        UserError: the system refused to write (disk full, no permission); an earlier file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if not _concerns(error, temporary):
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); "
                        "an earlier file of that name is unchanged") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path: PathLike, text: str) -> None:
    """Write a UTF-8 file atomically; errors as :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_writable(folder: PathLike) -> Path:
    """Make a folder where there is none, and find out now, not after hours, whether files can be written to it.

    Raises:
        UserError: they cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: files cannot be written there ({error.strerror or error})") from error
    return folder


@contextlib.contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` that replaces it when the block ends without an error.

    Between the two renames there is neither; a mixture of old and new files there is never. Where the second one fails
    or is interrupted, the old folder comes back.

    Raises:
        UserError: the system refused to write.
    """
    path, token = Path(path), secrets.token_hex(4)
    temporary, old = (path.with_name(f".{path.name}.{token}.{kind}") for kind in ("new", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if not _concerns(error, temporary):
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _concerns(error: OSError, temporary: Path) -> bool:
    """Whether the system refused ``temporary``, what is in it or the folder it lies in, and not another file that the
    caller's block reads or writes. Errors of open files, such as a full disk, name none."""
    if error.filename is None:
        return True
    name = Path(os.fsdecode(error.filename))
    return temporary in (name, *name.parents) or name in temporary.parents


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders; NTFS journals the rename itself
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes, in the order of the sorted names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A loaded file; ``versions`` are those of the libraries that it was written with."""

    kind: str
    metadata: Dict[str, Any]
    tensors: Dict[str, np.ndarray]
    versions: Dict[str, str]

    def part(self, prefix: str) -> Dict[str, np.ndarray]:
        """The tensors whose names begin with ``prefix``, by the rest of the name."""
        return {name[len(prefix):]: value for name, value in self.tensors.items() if name.startswith(prefix)}


def _content_sha256(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    # The header is hashed too: a flipped bit in the recorded plan is as harmful as one in a weight.
    text = json.dumps({key: value for key, value in header.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256((text + tensors_sha256(tensors)).encode()).hexdigest()


def save_artifact(path: PathLike, tensors: Mapping[str, np.ndarray], kind: str,
                  metadata: Optional[Mapping[str, Any]] = None) -> None:
    """Write arrays and metadata as safetensors, atomically.

    Args:
        tensors: name -> array of any shape; dtypes as in safetensors (bool, integers, float16/32/64).
        kind: what the file is, e.g. ``"rectifiers"``; checked by :func:`load_artifact`.
        metadata: JSON-able facts (config, seed, hash of the weights it belongs to, ...).

    Raises:
        UserError: the file cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    header = {"format": FORMAT_VERSION, "kind": kind, "versions": library_versions(),
              "metadata": json.loads(json.dumps(metadata or {}))}
    header["sha256"] = _content_sha256(header, arrays)
    content = safetensors.numpy.save(arrays, {_METADATA_KEY: json.dumps(header)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_artifact(path: PathLike, kind: Optional[str] = None) -> Artifact:
    """Read a file written by :func:`save_artifact` and check that it is whole.

    Raises:
        UserError: missing, truncated, damaged or foreign file, another ``kind`` than the wanted one, or a
            format newer than this version of ppsr2q reads.
    """
    path = Path(path)
    content = _read(path, kind)
    header = _header(path, content)
    if header["format"] > FORMAT_VERSION:
        raise UserError(f"{path}: written by a newer ppsr2q (file format {header['format']}, this one reads "
                        f"up to {FORMAT_VERSION}); upgrade ppsr2q")
    if kind is not None and header["kind"] != kind:
        raise UserError(f"{path}: holds {header['kind']!r}, expected {kind!r}{_maker(kind)}")
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged safetensors file ({error})") from error
    if header["sha256"] != _content_sha256(header, tensors):
        raise UserError(f"{path}: damaged, its content does not match the SHA-256 recorded in it; "
                        "copy or make it again")
    return Artifact(header["kind"], header["metadata"], tensors, header["versions"])


def _maker(kind: Optional[str]) -> str:
    return f" (made by {MADE_BY[kind]})" if kind in MADE_BY else ""


def _read(path: Path, kind: Optional[str]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file{_maker(kind)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _header(path: Path, content: bytes) -> Dict[str, Any]:
    """Our own JSON header: safetensors' loader of bytes does not hand out metadata."""
    foreign = UserError(f"{path}: not a safetensors file")
    if len(content) < 8:
        raise UserError(f"{path}: truncated ({len(content)} bytes)") if not content else foreign
    length = int.from_bytes(content[:8], "little")
    if length > 100_000_000:  # the limit of the safetensors format
        raise foreign
    if len(content) < 8 + length:
        raise UserError(f"{path}: truncated, or not a safetensors file")
    try:
        entries = json.loads(content[8:8 + length])
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        end = 8 + length + max(ends, default=0)
        truncated = len(content) < end
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise foreign from error
    if truncated:
        raise UserError(f"{path}: truncated ({len(content)} of {end} bytes)")
    try:
        header = json.loads(entries["__metadata__"][_METADATA_KEY])
        kept = {key: header[key] for key in ("format", "kind", "versions", "metadata", "sha256")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: a safetensors file, but not one that ppsr2q wrote") from error
    if type(kept["format"]) is not int or not isinstance(kept["kind"], str) or not isinstance(kept["metadata"], dict):
        raise UserError(f"{path}: damaged, its format, kind and metadata are not recorded")
    return kept
