"""The rooms of the house import only what the plan of the house allows."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EVERYTHING = {"core", "ops", "models", "quant", "spr2q", "data", "evaluation", "workflow", "deploy", "baselines"}
ALLOWED = {
    "core": set(),
    "ops": {"core"},
    "models": {"ops", "core"},
    "quant": {"core", "ops"},
    "spr2q": {"core", "quant", "ops"},
    "baselines": {"core", "quant", "spr2q"},
    "data": {"core"},
    "evaluation": {"core", "data", "quant"},
    "deploy": {"core", "ops", "quant", "models"},
    "workflow": EVERYTHING,
}
PADDLE_FREE = ("data", "evaluation")
# what runs in an environment without Paddle, and what of ours it may import
PADDLE_FREE_MODULES = {
    "core/native_build.py": {"ppsr2q.core"},
    "core/plan.py": {"ppsr2q.core"},
    "deploy/__init__.py": {"ppsr2q.core", "ppsr2q.deploy"},
    "deploy/architectures.py": {"ppsr2q.core"},
    "deploy/packed.py": {"ppsr2q.core", "ppsr2q.deploy.architectures"},
    "deploy/threads.py": {"ppsr2q.core"},
    "deploy/openvino": {"ppsr2q.core", "ppsr2q.deploy"},
    "deploy/runtime": {"ppsr2q.core", "ppsr2q.deploy"},
    **{f"deploy/onnx_{part}.py": {"ppsr2q.core", "ppsr2q.deploy"}
       for part in ("export", "graph", "mambairv2", "operators")},
}


def room_files(room):
    folder = ROOT / "models" if room == "models" else ROOT / "ppsr2q" / room
    return sorted(folder.rglob("*.py"))


def imported(path):
    """Absolute names of all modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written absolutely"
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("room", [room for room in ALLOWED if room_files(room)])
def test_a_room_imports_only_its_neighbours(room):
    for path in room_files(room):
        rooms = {name.split(".")[1] for name in imported(path)
                 if name.startswith("ppsr2q.") and name.split(".")[1] in EVERYTHING}
        assert rooms <= ALLOWED[room] | {room}, f"{path.relative_to(ROOT)} reaches into {rooms - ALLOWED[room] - {room}}"


@pytest.mark.parametrize("room", PADDLE_FREE)
def test_rooms_without_networks_do_not_need_paddle(room):
    for path in room_files(room):
        assert not {name for name in imported(path) if name.split(".")[0] == "paddle"}, path


@pytest.mark.parametrize("name", PADDLE_FREE_MODULES)
def test_what_ships_does_not_need_paddle(name):
    allowed, path = PADDLE_FREE_MODULES[name], ROOT / "ppsr2q" / name
    for file in [path] if path.is_file() else path.rglob("*.py"):
        for module in imported(file):
            assert module.split(".")[0] != "paddle", file
            if module.startswith("ppsr2q."):
                assert any(f"{module}.".startswith(f"{room}.") for room in allowed), f"{file} imports {module}"


def test_every_folder_of_the_package_is_a_known_room():
    folders = {path.parent.name for path in (ROOT / "ppsr2q").glob("*/__init__.py")}
    assert folders <= set(ALLOWED)
