"""ppsr2q installs as a package whose ``models`` lie elsewhere, and imports without Paddle."""
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments, cwd, **environment):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, text=True, capture_output=True,
                          env={**os.environ, **environment})


def test_imports_from_another_folder(tmp_path):
    done = python("-c", "import ppsr2q.models, ppsr2q; print(ppsr2q.models.ARCHITECTURES)", cwd=tmp_path)
    assert "MambaIRv2Light" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = python("-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_a_wheel_holds_models_kernels_and_the_embedded_weights(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"ppsr2q/models/mambairv2.py", "ppsr2q/ops/csrc/ppsr2q_ops.cpp", "ppsr2q/workflow/cli.py",
            "ppsr2q/deploy/runtime/csrc/ppsr2q_runtime.cpp", "ppsr2q/deploy/runtime/csrc/layer.h",
            "ppsr2q/deploy/openvino/selective_scan.cpp",
            "ppsr2q/models/weights/mambairv2_light_x2_embedded.safetensors"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "models/", "tools"))]


def test_the_wheel_imports_where_it_is_unpacked(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = python("-c", "import ppsr2q.models as m; print(m.__file__)", cwd="/", PYTHONPATH=str(tmp_path))
    assert str(tmp_path) in done.stdout, done.stderr


def test_without_paddle_the_first_need_of_it_says_how_to_get_it(tmp_path):
    code = ("import sys; sys.modules['paddle'] = None\n"
            "import importlib.util; real = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *a: None if name == 'paddle' else real(name, *a)\n"
            "import ppsr2q; from ppsr2q.core.errors import UserError\n"
            "try:\n    import ppsr2q.models\nexcept UserError as error:\n    print(error)")
    done = python("-c", code, cwd=tmp_path)
    assert "ppsr2q[cpu]" in done.stdout and "ppsr2q[gpu]" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def environment(tmp_path):
    """Runs tools/environment.sh with an interpreter that makes environments and installs nothing."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\ncase "$1 $2" in "-m venv") mkdir -p "$3/bin"; : > "$3/bin/activate";; esac\n')
    stub.chmod(0o755)
    (tmp_path / "setup.py").write_text("1")

    def run(check=True):
        return subprocess.run(["bash", "-c", f"set -e; source {ROOT / 'tools' / 'environment.sh'}"], cwd=tmp_path, text=True,
                              capture_output=True, check=check,
                              env={**os.environ, "PYTHON": str(stub), "PPSR2Q_VENV": "venv",
                                   "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"})
    return run


def test_an_environment_is_made_once_and_again_when_the_setup_changes(environment, tmp_path):
    environment()
    (tmp_path / "venv" / "mine").touch()
    environment()
    assert (tmp_path / "venv" / "mine").exists()
    (tmp_path / "setup.py").write_text("2")
    environment()
    assert not (tmp_path / "venv" / "mine").exists() and (tmp_path / "venv" / "bin" / "activate").exists()


def test_an_environment_of_the_users_is_left_alone(environment, tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    done = environment(check=False)
    assert done.returncode == 2 and "venv was not made by this script: set PPSR2Q_VENV" in done.stderr
    assert not list((tmp_path / "venv" / "bin").iterdir())
