"""The AMD switch, the message about a missing Paddle, and imports that must not need it."""
from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from ppsr2q.core import environment
from ppsr2q.core.environment import (default_threads, library_versions, prepare_environment, require_paddle,
                                     usable_processors)
from ppsr2q.core.errors import UserError

AMD = "vendor_id\t: AuthenticAMD\nflags\t: fpu sse2 avx avx2 fma\n"


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    def prepare(cpuinfo, **environ):
        monkeypatch.delitem(sys.modules, "paddle", raising=False)
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        done = prepare_environment(environ, tmp_path / "cpuinfo")
        return done, environ
    return prepare


def test_switch_is_set_on_amd(prepare):
    assert prepare(AMD) == ({"MKL_DEBUG_CPU_TYPE": "5"},) * 2


@pytest.mark.parametrize("cpuinfo", [AMD.replace("AuthenticAMD", "GenuineIntel"), AMD.replace("avx2", ""),
                                     ""])
def test_other_processors_are_left_alone(prepare, cpuinfo):
    assert prepare(cpuinfo) == ({}, {})


@pytest.mark.parametrize("environ", [{"MKL_DEBUG_CPU_TYPE": "4"}, {"PPSR2Q_NO_MKL_HINT": "1"}])
def test_the_user_decides(prepare, environ):
    assert prepare(AMD, **environ) == ({}, environ)


def test_too_late_after_the_import_and_without_cpuinfo(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "paddle", raising=False)
    assert prepare_environment({}, tmp_path / "none") == {}
    monkeypatch.setitem(sys.modules, "paddle", object())
    (tmp_path / "cpuinfo").write_text(AMD)
    assert prepare_environment({}, tmp_path / "cpuinfo") == {}


def test_memory_is_what_system_and_containers_leave(tmp_path):
    names = {"meminfo": "MemTotal: 99 kB\nMemAvailable: 50 kB\n", "cgroup": "4:memory:/old\n0::/outer/inner\n"}
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    for folder, limit, taken in (("outer", "45000", "40000"), ("outer/inner", "max", "7000")):
        (tmp_path / folder).mkdir()
        for key, text in (("max", limit), ("current", taken), ("stat", "anon 1\ninactive_file 3000\nfile 9\n")):
            (tmp_path / folder / f"memory.{key}").write_text(text + "\n")
    files = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path
    assert environment.available_memory(*files) == 45000 - 40000 + 3000
    (tmp_path / "outer" / "memory.max").write_text("max\n")
    assert environment.available_memory(*files) == 50 * 1024
    (tmp_path / "cgroup").unlink()
    assert environment.available_memory(*files) == 50 * 1024
    assert environment.available_memory(tmp_path / "none") is None


def test_what_a_process_keeps_is_given_back_before_memory_is_said_to_lack(monkeypatch):
    free = iter([10, 30, 10, 20])
    monkeypatch.setattr(environment, "available_memory", lambda: next(free))
    monkeypatch.setattr(environment.platform, "libc_ver", lambda: ("glibc", "2.31"))
    environment.require_memory(30, "this")
    with pytest.raises(UserError, match="that needs about 0.0 GiB, 0.0 are free: use tiles"):
        environment.require_memory(30, "that")


@pytest.mark.parametrize("left_open, environ, expected", [
    (True, {}, usable_processors()), (True, {"PADDLE_TRAINERS_NUM": "1"}, usable_processors()),
    (False, {}, None), (True, {"PADDLE_TRAINERS_NUM": "2"}, None)])
def test_all_processors_where_nobody_decided(left_open, environ, expected):
    assert default_threads(left_open, environ) == expected


@pytest.mark.parametrize("variables, before, expected", [
    ({}, "", usable_processors()), ({"OMP_NUM_THREADS": "1"}, "", 1), ({}, "import paddle; ", 1)])
def test_kernels_follow(variables, before, expected):
    from ppsr2q.ops import native
    if native.why_unavailable():
        pytest.skip(f"no kernels here: {native.why_unavailable()}")
    environ = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    script = before + "from ppsr2q.ops import native; print(native.get_threads())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True,
                          env={**environ, **variables})
    assert done.stdout.split()[-1] == str(expected)


def test_the_first_import_of_paddle_does_not_ask_for_ccache():
    done = subprocess.run([sys.executable, "-c", "import ppsr2q.quant"], capture_output=True, text=True, check=True)
    assert "ccache" not in done.stderr


def test_missing_paddle_is_explained(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"(?s)ppsr2q\[cpu\].*ppsr2q\[gpu\].*paddlepaddle-gpu -i"):
        require_paddle()


def test_two_paddles_are_warned_about(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(environment, "package_version", lambda name: "3.0")
    with pytest.warns(UserWarning, match="both paddlepaddle and paddlepaddle-gpu"):
        require_paddle()


def test_library_versions():
    versions = library_versions()
    assert versions["numpy"] == np.__version__ and versions["python"] == sys.version.split()[0]


def test_files_and_configs_do_not_import_paddle():
    code = ("import sys, ppsr2q, ppsr2q.core.config, ppsr2q.core.files, ppsr2q.core.pdparams, "
            "ppsr2q.core.environment; sys.exit('paddle' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
