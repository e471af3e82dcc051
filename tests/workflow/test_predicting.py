import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppsr2q import deploy
from ppsr2q.core.config import Config, load_config
from ppsr2q.core.errors import UserError
from ppsr2q.deploy.packed import write_packed
from ppsr2q.workflow import predicting
from ppsr2q.workflow.evaluating import load_upscaler
from ppsr2q.workflow.predicting import predict
from tests.deploy.models import random_model

ROOT = Path(__file__).resolve().parents[2]


def doubled(image):
    return image.repeat(2, 0).repeat(2, 1)


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    assert writer.isOpened()
    for i in range(5):
        writer.write(np.full((24, 32, 3), (40 * i, 100, 200 - 30 * i), np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("tile", [0, 16])
def test_a_video_keeps_frames_rate_and_colours(video, tmp_path, tile):
    written = predict(doubled, 2, video, tmp_path / "out", tile, 4)
    assert written == [tmp_path / "out" / "film.mp4"]
    film = cv2.VideoCapture(str(written[0]))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    frames = []
    while True:
        there, frame = film.read()
        if not there:
            break
        frames.append(frame)
    assert len(frames) == 5 and frames[0].shape == (48, 64, 3)
    for i, frame in enumerate(frames):
        assert np.abs(frame.reshape(-1, 3).mean(axis=0) - (40 * i, 100, 200 - 30 * i)).max() < 8  # a lossy codec


def test_a_video_that_ends_early_says_so(video, tmp_path, capsys, monkeypatch):
    frames = predicting._frames
    monkeypatch.setattr(predicting, "_frames", lambda capture: itertools.islice(frames(capture), 3))
    predict(doubled, 2, video, tmp_path / "out", 0, 4)
    assert f"{video}: only 3 of the 5 frames that it announces could be decoded" in capsys.readouterr().err


def test_a_video_that_cannot_be_written_whole_is_no_result(video, tmp_path, monkeypatch):
    class Forgetful(cv2.VideoWriter):
        frames = 0

        def write(self, frame):
            self.frames += 1
            if self.frames != 2:
                super().write(frame)
    monkeypatch.setattr(cv2, "VideoWriter", Forgetful)
    with pytest.raises(UserError, match=r"film.mp4: only 4 of 5 frames could be written \(disk full\?\)"):
        predict(doubled, 2, video, tmp_path / "out", 0, 4)
    assert not list((tmp_path / "out").iterdir())


def test_one_image_without_memory_does_not_keep_the_others_from_being_enlarged(tmp_path):
    for name, side in (("a.png", 9), ("b.png", 4)):
        cv2.imwrite(str(tmp_path / name), np.zeros((side, side, 3), np.uint8))

    def upscale(image):
        if len(image) > 4:
            raise MemoryError("the scan")
        return doubled(image)
    with pytest.raises(UserError, match=r"a.png: not enough memory \(the scan\): use tiles.*\n\(1 other"):
        predict(upscale, 2, tmp_path, tmp_path / "out", 0, 4)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]


def test_an_image_too_large_for_its_format_is_named_before_it_is_computed(tmp_path):
    cv2.imwrite(str(tmp_path / "wide.webp"), np.zeros((2, 9000, 3), np.uint8))
    with pytest.raises(UserError, match="wide.webp: 18000 x 4 pixels are too many for WebP"):
        predict(lambda image: pytest.fail("computed"), 2, tmp_path / "wide.webp", tmp_path / "out", 0, 4)


def test_overlap_without_tiles_is_refused():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "predict.py"), "--model", "m", "--overlap", "8", "a", "b"],
                          text=True, capture_output=True)
    assert done.returncode == 2 and "--overlap 8 is of --tile N" in done.stderr


def test_wrong_names_leave_nothing_behind(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="b.png: expected a folder to write to, this is the name of a file"):
        predict(doubled, 2, tmp_path / "a.png", tmp_path / "b.png", 0, 4)
    with pytest.raises(UserError, match="c.png: no such file or folder"):
        predict(doubled, 2, tmp_path / "c.png", tmp_path / "out", 0, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_outputs_that_are_no_numbers_are_not_written(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="a.png: the output holds NaN or infinite values"):
        predict(lambda image: doubled(image) * np.float32(np.nan), 2, tmp_path / "a.png", tmp_path / "out", 0, 4)
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_video_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match="film.mp4.*cannot be decoded"):
        predict(doubled, 2, tmp_path / "film.mp4", tmp_path / "out", 0, 0)
    assert not list((tmp_path / "out").iterdir())


def test_engines_get_file_and_threads(monkeypatch):
    class Engine:
        scale, upscale = 2, staticmethod(doubled)
    calls = []
    monkeypatch.setattr(deploy, "load", lambda *arguments: calls.append(arguments) or Engine())
    assert load_upscaler(Config(), None, "m", None, "onnxruntime", 3) == (doubled, 2)
    assert load_upscaler(Config(), None, "m", None, "runtime") == (doubled, 2)
    assert calls == [("m", 3, "onnxruntime"), ("m", None, "runtime")]


@pytest.mark.parametrize("engine", deploy.ENGINES)
def test_engines_without_paddle_only_do_what_they_can(engine):
    with pytest.raises(UserError, match="argmax only"):
        load_upscaler(load_config(None, ["model.routing=gumbel"]), None, "m", None, engine)
    with pytest.raises(UserError, match="needs --model FILE, a packed model"):
        load_upscaler(Config(), "configs/x.yml", None, None, engine)
    with pytest.raises(UserError, match="m: no such file"):
        load_upscaler(Config(), None, "m", None, engine)


def test_an_unknown_engine_is_named(tmp_path):
    with pytest.raises(UserError, match="engine 'abacus': expected one of runtime, onnxruntime"):
        deploy.load(tmp_path / "m", engine="abacus")


@pytest.fixture(scope="module")
def packed_model(tmp_path_factory):
    """A file whose network holds no quantizers and numbers near 0: its outputs are finite."""
    model = random_model(overrides={"**": None})
    floats = {name: value * np.float32(0.02) for name, value in model.floats.items()}
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    write_packed(path, dataclasses.replace(model, floats=floats))
    return path


@pytest.mark.parametrize("engine", deploy.ENGINES)
@pytest.mark.parametrize("name, arguments", [
    ("predict", ["photos", "enlarged"]), ("predict", ["photos", "enlarged", "--tile", "24", "--overlap", "8"]),
    ("evaluate", ["-o", "data.root=data", "--sets", "Small"]),
])
def test_the_tools_need_no_paddle_with_these_engines(packed_model, tmp_path, engine, name, arguments):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="needs the extra deploy")
    for folder in ("data/Small/HR", "photos"):
        (tmp_path / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "data" / "Small" / "HR" / "c.png"), np.full((36, 40, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.zeros((5, 7, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "photos" / "b.png"), np.zeros((40, 33), np.uint8))
    program = f"""
import runpy, sys
sys.modules["paddle"] = None
sys.argv = ["{name}", "--engine", "{engine}", "--threads", "2", "--model", {str(packed_model)!r}] + {arguments!r}
runpy.run_path({str(ROOT / 'tools' / (name + '.py'))!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "predict":
        assert cv2.imread(str(tmp_path / "enlarged" / "a.png")).shape == (10, 14, 3)
        assert cv2.imread(str(tmp_path / "enlarged" / "b.png")).shape == (80, 66, 3)
        assert "super-resolving" in done.stderr + done.stdout
    else:
        assert "Small" in done.stdout
