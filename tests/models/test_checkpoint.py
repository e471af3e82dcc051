import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import save_artifact
from ppsr2q.models import MambaIRv2Light
from ppsr2q.models.checkpoint import KIND, load_state, load_weights, official_state, save_weights
from ppsr2q.models.convert_torch import main as convert
from ppsr2q.models.convert_torch import to_paddle_layout
from ppsr2q.models.initialization import official_initialization
from tests.shared import shared_path


@pytest.fixture(scope="module")
def model():
    model = MambaIRv2Light(2)
    official_initialization(model, 1)
    return model


def test_keys_and_shapes_are_the_official_ones(model):
    state = official_state(model)
    assert len(state) == 1018  # 1019 entries of the official file, less the position index buffer
    layer = "layers.3.residual_group.layers.4."
    assert state[layer + "wqkv.weight"].shape == (48, 144)
    assert state[layer + "assm.in_proj.0.weight"].shape == (48, 48, 1, 1)
    assert state["upsample.0.weight"].shape == (12, 48, 3, 3)
    assert not any(".q." in key or "points" in key for key in state)


def test_save_and_load_give_the_same_bits(model, tmp_path):
    save_weights(model, tmp_path / "w.safetensors", {"seed": 1})
    other = MambaIRv2Light(2)
    load_weights(other, tmp_path / "w.safetensors")
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters()):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)


def test_wqkv_is_split_by_thirds_of_its_outputs(model):
    state = official_state(model)
    key = "layers.0.residual_group.layers.0.wqkv.weight"
    state[key] = np.arange(48 * 144, dtype=np.float32).reshape(48, 144)
    other = MambaIRv2Light(2)
    load_state(other, state, "test")
    layer = other.layers[0].residual_group.layers[0]
    np.testing.assert_array_equal(layer.k.weight.numpy(), state[key][:, 48:96])


def test_square_linear_weights_are_transposed_from_torch():
    asymmetric = np.arange(48 * 48, dtype=np.float32).reshape(48, 48)
    converted = to_paddle_layout({"a.win_mhsa.proj.weight": asymmetric, "a.embeddingB.weight": asymmetric,
                                  "a.win_mhsa.relative_position_bias_table": asymmetric})
    np.testing.assert_array_equal(converted["a.win_mhsa.proj.weight"], asymmetric.T)
    np.testing.assert_array_equal(converted["a.embeddingB.weight"], asymmetric)
    np.testing.assert_array_equal(converted["a.win_mhsa.relative_position_bias_table"], asymmetric)


def test_torch_checkpoint_converts_to_the_paddle_one(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from ppsr2q.core.pdparams import read_pdparams
    state = read_pdparams(shared_path("weights/mambairv2_lightSR_x2.pdparams"))
    state.pop("relative_position_index_SA")
    back = to_paddle_layout(state)  # the transposition is its own inverse
    torch.save({"params": {key: torch.from_numpy(value) for key, value in back.items()}}, tmp_path / "x2.pth")
    assert convert([str(tmp_path / "x2.pth"), str(tmp_path / "x2.safetensors")]) == 0
    model = MambaIRv2Light(2)
    load_weights(model, tmp_path / "x2.safetensors")
    np.testing.assert_array_equal(official_state(model)["layers.0.residual_group.layers.0.convffn1.fc1.weight"],
                                  state["layers.0.residual_group.layers.0.convffn1.fc1.weight"])


def broken(model, **changes):
    state = official_state(model)
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


def test_the_converter_writes_safetensors_only(tmp_path, capsys):
    assert convert(["in.pth", str(tmp_path / "out.pdparams")]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_wrong_checkpoints_are_refused_by_name(model, tmp_path):
    before = official_state(model)
    with pytest.raises(UserError, match=r"FILE.*missing: norm\.bias"):
        load_state(model, broken(model, **{"norm.bias": None}), "FILE")
    with pytest.raises(UserError, match="FILE.*unknown: more"):
        load_state(model, broken(model, more=np.zeros(1)), "FILE")
    with pytest.raises(UserError, match=r"norm\.bias has shape \[3\], expected \[48\]"):
        load_state(model, broken(model, **{"norm.bias": np.zeros(3)}), "FILE")
    with pytest.raises(UserError, match=r"NaN or infinite values in norm\.bias"):
        load_state(model, broken(model, **{"norm.bias": np.full(48, np.nan)}), "FILE")
    for key, value in official_state(model).items():
        np.testing.assert_array_equal(value, before[key])


def test_weights_for_another_scale_say_so(model):
    x4 = MambaIRv2Light(4)
    with pytest.raises(UserError, match=r"network is x4, these are weights for x2 \(set model.scale\)"):
        load_state(x4, official_state(model), "FILE")
    state = official_state(model)
    state.update({key: np.zeros((27, *state[key].shape[1:]), np.float32) for key in ("upsample.0.weight", "upsample.0.bias")})
    with pytest.raises(UserError, match="weights for a scale other than x2 and x4"):
        load_state(x4, state, "FILE")


def test_what_is_no_torch_checkpoint_is_named(tmp_path, monkeypatch, capsys):
    content = {"params_ema": {}}  # averaged weights alone: read, but not those of this network
    torch = SimpleNamespace(load=lambda *_, **__: content, is_tensor=lambda value: False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert convert(["in.pth", str(tmp_path / "out.safetensors")]) == 2
    assert "in.pth: not a MambaIRv2-light checkpoint for x2 or x4" in capsys.readouterr().err
    for content in ([1, 2], {"epoch": 3}):
        assert convert(["in.pth", str(tmp_path / "out.safetensors")]) == 2
        assert "in.pth: not a checkpoint, expected tensors by name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    model = MambaIRv2Light(2)
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="convert_torch"):
        load_weights(model, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"\.safetensors or \.pdparams"):
        load_weights(model, tmp_path / "a.bin")
    save_artifact(tmp_path / "b.safetensors", {}, "rectifiers", {})
    with pytest.raises(UserError, match=KIND):
        load_weights(model, tmp_path / "b.safetensors")
