"""Official weights are read, and nothing in a file is executed."""
from __future__ import annotations

import collections
import os
import pickle

import numpy as np
import paddle
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.core.pdparams import read_pdparams
from tests.shared import shared_path


@pytest.mark.parametrize("name", ["mambairv2_lightSR_x2", "mambairv2_lightSR_x4", "own_x2_start"])
def test_shared_weights_equal_paddles_own_reading(name):
    path = shared_path(f"weights/{name}.pdparams")
    state, expected = read_pdparams(path), paddle.load(str(path), return_numpy=True)
    assert len(state) == 1019 and state.keys() == expected.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_state_dict_of_a_layer(tmp_path, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm2D(2))
    paddle.save(layer.state_dict(), str(tmp_path / "w.pdparams"), protocol=protocol)
    state = read_pdparams(tmp_path / "w.pdparams")
    assert list(state) == list(layer.state_dict())
    np.testing.assert_array_equal(state["0.weight"], layer[0].weight.numpy())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_pickle_protocol(tmp_path, protocol):
    arrays = collections.OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array(2, np.int64))
    arrays["StructuredToParameterName@@"] = {"a": "linear_0.w_0"}
    (tmp_path / "w").write_bytes(pickle.dumps(arrays, protocol))
    state = read_pdparams(tmp_path / "w")
    assert list(state) == ["a", "b"]
    np.testing.assert_array_equal(state["a"], arrays["a"])


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_pickles_of_numpy_1_and_2(tmp_path, module):
    content = pickle.dumps({"a": np.ones(2)}, 2)
    own = np.empty(1).__reduce__()[0].__module__
    (tmp_path / "w").write_bytes(content.replace(own.encode(), module.encode()))
    np.testing.assert_array_equal(read_pdparams(tmp_path / "w")["a"], [1, 1])


class _Evil:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("call, name", [
    ((os.system, "touch {}"), "system"), ((eval, "open({!r}, 'w')"), "eval"),
    ((getattr, "", "join"), "getattr")])
def test_code_is_refused_and_not_run(tmp_path, call, name):
    mark = tmp_path / "mark"
    arguments = [argument.format(str(mark)) for argument in call[1:]]
    (tmp_path / "w").write_bytes(pickle.dumps({"a": _Evil(call[0], *arguments)}))
    with pytest.raises(UserError, match=rf"w: refused.*\.{name}"):
        read_pdparams(tmp_path / "w")
    assert not mark.exists()


def test_objects_are_refused(tmp_path):
    for bad, message in (({"a": np.array([object])}, "refused|numeric"), ({"a": np.array(["x"])}, "numeric"),
                         ({"a": 1.5}, "float, expected"), ({1: np.ones(1)}, "names"), ([1], "holds a list")):
        (tmp_path / "w").write_bytes(pickle.dumps(bad))
        with pytest.raises(UserError, match=message):
            read_pdparams(tmp_path / "w")


def test_broken_files(tmp_path):
    whole = pickle.dumps({"a": np.ones(100)})
    for content, message in ((b"", "empty file"), (whole[:-1], "truncated"), (whole[:200], "truncated"),
                             (b"\x89PNG\r\n", "not a .pdparams"),
                             (b"PK\x03\x04" + bytes(100), "not a .pdparams")):
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(UserError, match=f"w: .*{message}"):
            read_pdparams(tmp_path / "w")
    with pytest.raises(UserError, match="no such file"):
        read_pdparams(tmp_path / "gone")
