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
