import numpy as np
import paddle
import pytest

from ppsr2q import ops
from ppsr2q.models import MambaIRv2Light
from ppsr2q.models.checkpoint import load_weights, official_name
from ppsr2q.models.initialization import bilinear_start, official_initialization
from ppsr2q.models.parts import pad_symmetric
from tests.shared import shared_path


def initialized(scale=2, seed=0):
    model = MambaIRv2Light(scale)
    official_initialization(model, seed)
    model.eval()
    return model


@pytest.mark.parametrize("scale, parameters", [(2, 774_092), (4, 789_680)])
def test_parameter_counts_are_the_published_ones(scale, parameters):
    assert sum(p.size for p in MambaIRv2Light(scale).parameters()) == parameters


def test_one_attentive_layer_has_33172_parameters():
    name, layer = MambaIRv2Light(2).blocks()[0]
    assert sum(p.size for p in layer.parameters()) == 33_172


def test_macs_are_those_of_fvcore():
    macs = sum(operation.macs for operation in MambaIRv2Light(4).operations(180, 320))
    assert round(macs / 1e9, 2) == 75.64


def official(scale):
    model = MambaIRv2Light(scale)
    load_weights(model, shared_path(f"weights/mambairv2_lightSR_x{scale}.pdparams"))
    model.eval()
    return model


@pytest.mark.parametrize("scale", [2, 4])
def test_outputs_equal_the_original_network(scale):
    reference = np.load(shared_path(f"reference/mambairv2_light_x{scale}.npz"))
    model = official(scale)
    with paddle.no_grad():
        y, features = model(paddle.to_tensor(reference["x"]), return_features=True)
    np.testing.assert_allclose(y.numpy(), reference["y"], atol=1e-5)
    named = {f"out:{name}": feature.numpy() for (name, _), feature in zip(model.blocks(), features)}
    layers = [key for key in reference.files if key.startswith("out:")]
    assert len(layers) == (5 if scale == 2 else 0)  # the x4 file holds the output alone
    for key in layers:
        np.testing.assert_allclose(named[key], reference[key], atol=1e-4 * np.abs(reference[key]).max())


def test_all_gradients_equal_the_original_network():
    reference = np.load(shared_path("reference/mambairv2_light_x2.npz"))
    model = official(2)
    (model(paddle.to_tensor(reference["x"])) * paddle.to_tensor(reference["g"])).sum().backward()
    grads = {}
    for name, parameter in model.named_parameters():
        key, grad = official_name(name), parameter.grad.numpy()
        grads[key] = np.concatenate([grads[key], grad], axis=-1) if key in grads else grad
    assert {f"grad:{key}" for key in grads} == {key for key in reference.files if key.startswith("grad:")}
    for key, grad in grads.items():
        expected = reference[f"grad:{key}"]
        linear = key.endswith(".weight") and expected.ndim == 2 and "embedding" not in key
        expected = expected.T if linear else expected
        assert np.abs(grad - expected).max() <= 1e-3 * np.abs(expected).max(), key


@pytest.mark.parametrize("height, width", [(1, 1), (20, 7), (16, 33)])
def test_any_input_size_equals_the_same_image_padded_by_hand(height, width):
    model = initialized()
    image = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)
    padded = image
    for axis in (2, 3):
        while padded.shape[axis] % 16:
            need = -(-image.shape[axis] // 16) * 16
            mirrored = np.concatenate([padded, np.flip(padded, axis)], axis)
            padded = np.take(mirrored, np.arange(min(need, mirrored.shape[axis])), axis)
    with paddle.no_grad():
        y, expected = model(paddle.to_tensor(image)), model(paddle.to_tensor(padded))
    assert y.shape == [1, 3, 2 * height, 2 * width]
    np.testing.assert_allclose(y.numpy(), expected.numpy()[:, :, :2 * height, :2 * width], atol=1e-6)


def test_padding_repeats_the_edge():
    x = paddle.arange(3, dtype="float32").reshape([1, 1, 3, 1]).expand([1, 1, 3, 4])
    assert pad_symmetric(x, 4)[0, 0, :, 0].tolist() == [0, 1, 2, 2]


def test_prompt_is_added_in_raster_order():
    """The official network's quirk: C of scan position l gets the prompt of pixel l, although u is sorted."""
    model = initialized(seed=3)
    assm = model.layers[0].residual_group.layers[0].assm
    rng = np.random.default_rng(0)
    for parameter in (assm.embeddingB.weight, assm.route[2].weight):
        parameter.set_value(rng.normal(size=parameter.shape).astype(np.float32))
    seen = {}
    assm.selectiveScan.register_forward_pre_hook(lambda layer, inputs: seen.update(u=inputs[0], prompt=inputs[1]))
    x = paddle.to_tensor(rng.normal(size=(1, 256, 48)).astype(np.float32))
    embedding = paddle.to_tensor(rng.normal(size=(32, 8)).astype(np.float32))
    norm = paddle.nn.LayerNorm(48)
    with paddle.no_grad():
        assm(x, norm, (16, 16), embedding, None)
        logits = assm.route(norm(x))
        classes = logits.argmax(-1)[0].numpy()
        table = assm.embeddingB.weight.numpy() @ embedding.numpy()
        u = ops.positional_gate(assm.in_proj[0](norm(x).reshape([1, 16, 16, 48]).transpose([0, 3, 1, 2]))
                                .flatten(2).transpose([0, 2, 1]), assm.CPE[0], (16, 16))
    assert len(set(classes)) > 4
    np.testing.assert_allclose(seen["prompt"].numpy()[0], table[classes], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["u"].numpy()[0], u.numpy()[0][np.argsort(classes, kind="stable")], atol=1e-4)


def test_gumbel_routing_is_a_function_of_its_seed():
    model = initialized()
    model.routing = "gumbel"
    x = paddle.to_tensor(np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32))
    with paddle.no_grad():
        first, again = model(x).numpy(), model(x).numpy()
        model.routing_seed = 1
        other = model(x).numpy()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_recomputation_changes_no_gradient():
    model = initialized()
    x = paddle.to_tensor(np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32))
    grads = []
    for recompute in (False, True):
        model.recompute = recompute
        model.clear_gradients()
        model(x).square().mean().backward()
        grads.append({name: p.grad.numpy() for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        np.testing.assert_allclose(grads[1][name], grad, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("scale", [2, 4])
def test_bilinear_start_upsamples_bilinearly(scale):
    model = initialized(scale, seed=10)
    bilinear_start(model)
    ramp = np.linspace(0.2, 0.8, 32, dtype=np.float32)
    flat = np.full((32, 32), 0.5, np.float32)
    image = paddle.to_tensor(np.stack([flat * 2 * ramp, flat * 2 * ramp[:, None], flat])[None])
    positions = ramp[0] + (np.arange(32 * scale) - (scale - 1) / 2) * (ramp[1] - ramp[0]) / scale
    inner = slice(scale, -scale)

    def errors():
        with paddle.no_grad():
            y = model(image).numpy()[0]
        y = y[:, inner, inner]  # the convolution pads with zeros
        return [np.abs(y[0] - positions[inner]), np.abs(y[1] - positions[inner, None]),
                np.abs(y[2] - 0.5)]

    assert max(error.mean() for error in errors()) < 0.1  # what the other branches still add
    weight = model.upsample[0].weight.numpy().copy()
    for color in range(3):
        weight[:color * scale**2, color] = 0
        weight[(color + 1) * scale**2:, color] = 0
    weight[:, 3:] = 0
    model.upsample[0].weight.set_value(weight)
    model.conv_after_body.weight.set_value(np.zeros_like(model.conv_after_body.weight.numpy()))
    assert max(error.max() for error in errors()) < 1e-5  # and what is left without them


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="scale 2 or 4"):
        MambaIRv2Light(3)
