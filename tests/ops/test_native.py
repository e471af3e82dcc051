"""Building, caching and loading the kernels: damaged caches, two processes, no compiler."""
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ppsr2q.core import native_build
from ppsr2q.core.errors import UserError
from ppsr2q.ops import native
from tests.ops import comparison

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
#define API extern "C" __attribute__((visibility("default")))
API int ppsr2q_answer() { return 42; }
"""


@pytest.fixture
def small_sources(tmp_path, monkeypatch):
    """A library of one function in place of csrc/, so that a build takes no time."""
    comparison.require_kernels()
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / native.UNIT).write_text(SOURCE)
    monkeypatch.setattr(native, "SOURCES", tmp_path / "csrc")
    return tmp_path / "csrc"


def load_or_build(folder):
    return native_build.load_or_build(native.kernels(native.native_target()), folder)


def builds(capsys):
    return capsys.readouterr().err.count("compiling CPU kernels")


def test_second_load_comes_from_the_cache_and_changed_sources_are_rebuilt(small_sources, tmp_path, capsys):
    assert load_or_build(tmp_path / "cache").ppsr2q_answer() == 42
    assert builds(capsys) == 1
    load_or_build(tmp_path / "cache")
    assert builds(capsys) == 0
    (small_sources / native.UNIT).write_text(SOURCE.replace("42", "43"))
    assert load_or_build(tmp_path / "cache").ppsr2q_answer() == 43
    assert builds(capsys) == 1


def test_what_is_built_needs_no_compiler_any_more(small_sources, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    load_or_build(tmp_path / "cache")
    monkeypatch.setenv("PATH", "")
    assert load_or_build(tmp_path / "cache").ppsr2q_answer() == 42


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "text"])
def test_damaged_cache_is_rebuilt(small_sources, tmp_path, capsys, damage):
    library = native.kernels(native.native_target())
    path = tmp_path / f"kernels-{native_build.build_key(library)}.so"
    native_build.build_into_cache(library, path, native_build.build_key(library))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"truncated": content[:len(content) // 2], "empty": b"", "changed": content, "text": b"text"}
    path.write_bytes(damaged[damage])
    assert load_or_build(tmp_path).ppsr2q_answer() == 42
    assert builds(capsys) == 2


def test_processes_that_build_at_the_same_time_do_not_disturb_each_other(small_sources, tmp_path):
    code = ("import sys; from pathlib import Path; from ppsr2q.core import native_build; "
            "from ppsr2q.ops import native; native.SOURCES = Path(sys.argv[1]); "
            "library = native.kernels(native.native_target()); "
            "print(native_build.load_or_build(library, Path(sys.argv[2])).ppsr2q_answer())")
    command = [sys.executable, "-c", code, str(small_sources), str(tmp_path / "cache")]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=environment) for _ in range(2)]
    results = [process.communicate() for process in running]
    assert [out.strip() for out, _ in results] == ["42", "42"]
    assert sum(err.count("compiling CPU kernels") for _, err in results) == 1
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix not in (".so", ".lock")]


def attempt(monkeypatch):
    native._attempt.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return native._attempt(), [str(w.message) for w in caught]
    finally:
        native._attempt.cache_clear()


def test_no_compiler_is_one_warning_that_says_what_helps(monkeypatch, tmp_path):
    monkeypatch.delenv("PPSR2Q_KERNELS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PPSR2Q_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    (library, reason), messages = attempt(monkeypatch)
    assert library is None and "no C++ compiler was found" in reason
    assert len(messages) == 1 and "install g++" in messages[0] and "times slower" in messages[0]


def test_a_compiler_without_openmp_builds_for_one_thread(small_sources, tmp_path, monkeypatch):
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-fopenmp*) echo unknown option; exit 1;; esac\n'
                        f'exec {native_build.find_compiler()} "$@"\n')
    compiler.chmod(0o755)
    for name, value in (("CXX", compiler), ("PPSR2Q_CACHE", tmp_path / "cache")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("PPSR2Q_KERNELS", raising=False)
    (library, reason), messages = attempt(monkeypatch)
    assert reason is None and library.ppsr2q_answer() == 42
    assert len(messages) == 1 and "on one thread" in messages[0] and "unknown option" in messages[0]


def test_the_kernels_themselves_need_no_openmp():
    done = subprocess.run([native_build.find_compiler(), "-std=c++17", "-fsyntax-only", str(native.SOURCES / native.UNIT)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_failed_build_and_unwritable_cache_are_reported(small_sources, tmp_path, monkeypatch):
    (small_sources / native.UNIT).write_text("this is not C++")
    with pytest.raises(native.KernelsUnavailable, match="failed with code 1"):
        load_or_build(tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(native.KernelsUnavailable, match="set PPSR2Q_CACHE"):
        load_or_build(tmp_path / "file" / "cache")


def test_the_user_can_switch_kernels_off(monkeypatch):
    monkeypatch.setenv("PPSR2Q_KERNELS", "off")
    assert attempt(monkeypatch) == ((None, "PPSR2Q_KERNELS=off"), [])
    monkeypatch.setenv("PPSR2Q_KERNELS", "of")
    with pytest.raises(UserError, match="PPSR2Q_KERNELS must be auto or off, got 'of'"):
        attempt(monkeypatch)


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("PPSR2Q_CACHE", raising=False)
    assert native.cache_folder() == Path("/xdg/ppsr2q")
    monkeypatch.setenv("PPSR2Q_CACHE", "/mine")
    assert native.cache_folder() == Path("/mine")


def test_kernels_use_the_openmp_runtime_of_paddle():
    comparison.require_kernels()
    if native.paddle_openmp() is None:
        pytest.skip("this Paddle ships no OpenMP runtime")
    library = Path(native.library()._name).read_bytes()
    assert b"libiomp5.so" in library and b"libgomp" not in library
