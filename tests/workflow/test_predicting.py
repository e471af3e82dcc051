import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import ppsr2q.deploy
from ppsr2q.core.config import Config, load_config
from ppsr2q.core.errors import UserError
from ppsr2q.workflow.evaluating import load_upscaler
from ppsr2q.workflow.predicting import predict

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


def test_a_damaged_video_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match="film.mp4.*cannot be decoded"):
        predict(doubled, 2, tmp_path / "film.mp4", tmp_path / "out", 0, 0)
    assert not list((tmp_path / "out").iterdir())


def test_the_runtime_gets_file_and_threads(monkeypatch):
    class Runtime:
        scale, upscale = 2, staticmethod(doubled)
    calls = []
    monkeypatch.setattr(ppsr2q.deploy, "load", lambda *a, **k: calls.append((a, k)) or Runtime(), raising=False)
    assert load_upscaler(Config(), None, "m", None, "onnxruntime", 3) == (doubled, 2)
    assert load_upscaler(Config(), None, "m", None, "onnxruntime") == (doubled, 2)
    assert calls == [(("m",), {"threads": 3}), (("m",), {})]


def test_the_runtime_only_does_what_it_can():
    with pytest.raises(UserError, match="argmax only"):
        load_upscaler(load_config(None, ["model.routing=gumbel"]), None, "m", None, "onnxruntime")
    with pytest.raises(UserError, match="--format packed"):
        load_upscaler(Config(), "configs/x.yml", None, None, "onnxruntime")


@pytest.mark.parametrize("name, arguments", [
    ("predict", ["photos", "enlarged"]), ("evaluate", ["-o", "data.root=data", "--sets", "Embedded"]),
])
def test_the_tools_need_no_paddle_with_the_runtime(tmp_path, name, arguments):
    """Paddle is blocked and the runtime replaced by a doubling of pixels; the tool itself runs as it is."""
    from ppsr2q.data.embedded import write_embedded
    write_embedded(tmp_path / "data")
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.zeros((5, 7, 3), np.uint8))
    program = f"""
import runpy, sys
sys.modules["paddle"] = None
import ppsr2q.deploy
class Runtime:
    scale = 2
    def upscale(self, image):
        return image.repeat(2, 0).repeat(2, 1)
ppsr2q.deploy.load = lambda path, threads: Runtime()
sys.argv = ["{name}", "--engine", "onnxruntime", "--threads", "1", "--model", "m"] + {arguments!r}
runpy.run_path({str(ROOT / 'tools' / (name + '.py'))!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "predict":
        assert cv2.imread(str(tmp_path / "enlarged" / "a.png")).shape == (10, 14, 3)
    else:
        assert "Embedded" in done.stdout
