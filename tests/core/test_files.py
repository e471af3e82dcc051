"""Atomic writing, and refusal of every file that is not what it should be."""
from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ppsr2q.core import files
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import atomic_folder, atomic_path, load_artifact, save_artifact, tensors_sha256

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "codes": np.array([0, 255], np.uint8),
          "scalar": np.float32(3.0), "empty": np.zeros((0, 4), np.float16)}


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "a.safetensors"
    save_artifact(path, ARRAYS, "rectifiers", {"seed": 10, "plan": {"fc1": 4}})
    return path


def test_round_trip(path):
    artifact = load_artifact(path, "rectifiers")
    assert artifact.kind == "rectifiers" and artifact.metadata == {"seed": 10, "plan": {"fc1": 4}}
    assert artifact.versions["numpy"] == np.__version__
    assert artifact.tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert artifact.tensors[name].dtype == array.dtype and artifact.tensors[name].shape == array.shape
        np.testing.assert_array_equal(artifact.tensors[name], array)


def test_arrays_that_are_not_contiguous_keep_their_values(tmp_path):
    transposed = np.arange(6.0).reshape(2, 3).T
    save_artifact(tmp_path / "t", {"t": transposed}, "k")
    np.testing.assert_array_equal(load_artifact(tmp_path / "t").tensors["t"], transposed)


def test_any_safetensors_reader_reads_the_arrays(path):
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["w"], ARRAYS["w"])


def test_hash_is_sha256_of_names_dtypes_shapes_and_bytes():
    expected = hashlib.sha256(b'["a", "float32", [2]]' + np.array([1, 2], "<f4").tobytes()
                              + b'["b", "uint8", []]' + b"\x07").hexdigest()
    a, b = np.array([1, 2], np.float32), np.uint8(7)
    assert tensors_sha256({"b": b, "a": a}) == expected
    assert tensors_sha256({"b": b, "a": a.astype(">f4")}) == expected
    assert tensors_sha256({"b": b, "a": a.reshape(1, 2)}) != expected


def test_missing_file_names_the_tool_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"gone.*no such file.*tools/train\.py"):
        load_artifact(tmp_path / "gone", "rectifiers")
    with pytest.raises(UserError, match="cannot be read"):
        load_artifact(tmp_path)


def test_wrong_kind_is_named_with_the_tool_that_makes_the_right_one(path):
    with pytest.raises(UserError, match=r"holds 'rectifiers', expected 'fused model'.*tools/export\.py"):
        load_artifact(path, "fused model")


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.99])
def test_truncated(path, share):
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])
    with pytest.raises(UserError, match="a.safetensors: (truncated|not a safetensors)"):
        load_artifact(path)


@pytest.mark.parametrize("content", [b"hello, this is text and no model", b"\x80\x04]", os.urandom(4096),
                                     (2).to_bytes(8, "little") + b"[]"])
def test_foreign(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="x: .*not a safetensors file"):
        load_artifact(tmp_path / "x")


def test_safetensors_of_somebody_else(tmp_path):
    safetensors.numpy.save_file({"w": ARRAYS["w"]}, tmp_path / "x")
    with pytest.raises(UserError, match="not one that ppsr2q wrote"):
        load_artifact(tmp_path / "x")


def test_every_flipped_bit_is_noticed(path):
    content = path.read_bytes()
    for position in range(len(content) - 1, 0, -7):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a.safetensors"):
            load_artifact(path)


def test_newer_format(path, monkeypatch):
    monkeypatch.setattr(files, "FORMAT_VERSION", files.FORMAT_VERSION + 1)
    save_artifact(path, ARRAYS, "rectifiers")
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer ppsr2q"):
        load_artifact(path)


def test_full_disk_leaves_the_previous_file(path, monkeypatch):
    before = path.read_bytes()

    def write_half(self, content):
        with open(self, "wb") as file:
            file.write(content[:len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(UserError, match="a.safetensors: cannot be written .No space left"):
        save_artifact(path, {"w": np.zeros(1000)}, "rectifiers")
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_an_error_in_the_block_leaves_the_previous_file(path):
    before = path.read_bytes()
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_atomic_path_keeps_the_suffix_and_makes_folders(tmp_path):
    with atomic_path(tmp_path / "new" / "picture.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path / "new"
        temporary.write_bytes(b"x")
    assert os.listdir(tmp_path / "new") == ["picture.png"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "made" / "model"
    for name in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / name).write_text(name)
    assert [file.name for file in target.iterdir()] == ["new"]
    with pytest.raises(ValueError), atomic_folder(target) as folder:
        (folder / "half").write_text("")
        raise ValueError
    assert [file.name for file in target.iterdir()] == ["new"] and len(list(target.parent.iterdir())) == 1


@pytest.mark.parametrize("error", [OSError(errno.EXDEV, "refused"), KeyboardInterrupt()])
def test_a_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch, error):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    replace = os.replace

    def refuse_new(source, destination):
        if str(source).endswith(".new"):
            raise error
        replace(source, destination)
    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises((UserError, KeyboardInterrupt)), atomic_folder(target) as folder:
        (folder / "new").write_text("")
    assert [file.name for file in target.iterdir()] == ["old"] and os.listdir(tmp_path) == ["model"]


def test_what_the_block_cannot_read_is_not_blamed_on_the_file(path, tmp_path):
    for atomic in (atomic_path(path), atomic_folder(tmp_path / "folder")):
        with pytest.raises(FileNotFoundError, match="elsewhere"), atomic:
            open(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="folder: cannot be written"), atomic_folder(tmp_path / "folder") as folder:
        open(folder / "missing" / "file", "w")


def test_kill_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.safetensors"
    loop = ("import sys, numpy as np\nfrom ppsr2q.core.files import save_artifact\n"
            "for i in range(10**6):\n"
            "    save_artifact(sys.argv[1], {'w': np.full(10**6, i, np.float32)}, 'k', {'i': i})\n"
            "    print(i, flush=True)\n")
    for count in (1, 2, 3):
        with subprocess.Popen([sys.executable, "-c", loop, str(path)], stdout=subprocess.PIPE) as process:
            for _ in range(count):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        artifact = load_artifact(path)
        assert (artifact.tensors["w"] == artifact.metadata["i"]).all()


def test_metadata_survives_as_json(tmp_path):
    save_artifact(tmp_path / "x", {}, "k", {"betas": (0.9, 0.999), "rate": 0.1, "none": None})
    assert load_artifact(tmp_path / "x").metadata == {"betas": [0.9, 0.999], "rate": 0.1, "none": None}
