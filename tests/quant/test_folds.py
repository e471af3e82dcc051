"""Folds leave the network unchanged, kind by kind, and refuse what does not belong to it."""
import numpy as np
import paddle
import pytest

from ppsr2q.models import MambaIRv2Light
from ppsr2q.models.checkpoint import load_weights
from ppsr2q.quant import PLAN_ENTRIES, Plan, quantize
from ppsr2q.quant.folds import EDGES, QueryKeyEdge, StateEdge, ValueEdge, apply_folds, blocks_of
from ppsr2q.workflow.networks import embedded_weights

NAME = "mambairv2_light"
RNG = np.random.default_rng(3)


def network():
    model = MambaIRv2Light(2)
    load_weights(model, embedded_weights(NAME, 2))
    model.eval()
    return model


def random_folds(model, kinds):
    """Scales around 1, shifts around 0, well-conditioned matrices."""
    folds = {}
    for name, block in blocks_of(model, NAME):
        for edge_name in kinds:
            for key, value in EDGES[NAME][1][edge_name].identity(block).items():
                noise = RNG.normal(size=value.shape)
                new = noise if key == "shift" else value + 0.2 * noise if key == "matrices" else np.exp(0.7 * noise)
                folds[f"{name}.{edge_name}.{key}"] = new.astype(np.float32)
    return folds


@pytest.fixture(scope="module")
def expected():
    x = paddle.to_tensor(np.random.default_rng(0).random((1, 3, 20, 36), dtype=np.float32))
    with paddle.no_grad():
        return x, network()(x).numpy()


@pytest.mark.parametrize("kinds", [*([kind] for kind in EDGES[NAME][1]), list(EDGES[NAME][1])],
                         ids=lambda kinds: kinds[0] if len(kinds) == 1 else "all")
def test_the_full_precision_network_is_unchanged(kinds, expected):
    x, y = expected
    model = network()
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    apply_folds(model, NAME, random_folds(model, kinds))
    changed = [name for name, p in model.named_parameters() if (p.numpy() != before[name]).any()]
    assert len(changed) >= 2 * 20  # both sides of an edge in every block
    with paddle.no_grad():
        np.testing.assert_allclose(model(x).numpy(), y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def test_a_quantized_network_is_folded_alike():
    model = network()
    folds = random_folds(model, list(EDGES[NAME][1]))
    student = quantize(model, Plan(PLAN_ENTRIES[NAME], 4))
    apply_folds(model, NAME, folds)
    apply_folds(student, NAME, folds)
    folded = dict(student.named_parameters())
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(folded[name].numpy(), parameter.numpy(), name)


class Pair(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.first, self.second = paddle.nn.Linear(1, 4), paddle.nn.Linear(1, 4)
        self.proj = paddle.nn.Linear(4, 1)


def test_head_matrices_by_hand():
    """Two heads of size 2; the first head's matrix is a shear [[1, 2], [0, 1]] with inverse [[1, -2], [0, 1]]."""
    block, matrices = Pair(), np.stack([[[1, 2], [0, 1]], np.diag([4, 0.5])]).astype(np.float32)
    for layer in (block.first, block.second):
        layer.weight.set_value(np.array([[1, 3, 5, 7]], np.float32))
        layer.bias.set_value(np.array([2, 4, 6, 8], np.float32))
    QueryKeyEdge("first", "second", "", 2).fold(block, {"matrices": matrices})
    np.testing.assert_allclose(block.first.weight.numpy(), [[1, 2 + 3, 20, 3.5]])  # row vector times matrix
    np.testing.assert_allclose(block.first.bias.numpy(), [2, 4 + 4, 24, 4])
    np.testing.assert_allclose(block.second.weight.numpy(), [[1 - 2 * 3, 3, 1.25, 14]])  # inverse transposed
    np.testing.assert_allclose(block.second.bias.numpy(), [2 - 2 * 4, 4, 1.5, 16])

    block.first.weight.set_value(np.array([[1, 3, 5, 7]], np.float32))
    block.proj.weight.set_value(np.array([[1], [3], [8], [5]], np.float32))
    ValueEdge("first", "proj", "", 2).fold(block, {"matrices": matrices})
    np.testing.assert_allclose(block.proj.weight.numpy(), [[1 - 2 * 3], [3], [2], [10]])  # inverse times rows


def test_states_by_hand():
    block = next(layer for _, layer in blocks_of(network(), NAME))
    scan, edge = block.assm.selectiveScan, StateEdge("assm.selectiveScan", "embeddingA")
    rows, embedding = scan.x_proj_weight.numpy().copy(), block.embeddingA.weight.numpy().copy()
    scale = np.array([2, 1, 1, 1, 1, 1, 1, 4], np.float32)
    edge.fold(block, {"scale": scale})
    new = scan.x_proj_weight.numpy()
    np.testing.assert_array_equal(new[0, :3], rows[0, :3])  # the low-rank step
    np.testing.assert_array_equal(new[0, 3], 2 * rows[0, 3])  # B
    np.testing.assert_array_equal(new[0, 18], rows[0, 18] / 4)  # C
    np.testing.assert_array_equal(block.embeddingA.weight.numpy(), embedding / scale)


@pytest.mark.parametrize("folds, message", [
    ({"layers.0.residual_group.layers.0.states.scale": np.ones(7, np.float32)}, r"states.scale: expected.*\[8\]"),
    ({"layers.0.residual_group.layers.0.ffn1_gate.before": np.ones(24, np.float32)}, "ffn1_gate.after: expected"),
    ({"layers.9.residual_group.layers.0.states.scale": np.ones(8, np.float32)}, "layers.9.*no such fold"),
])
def test_folds_of_another_network_are_refused(folds, message):
    with pytest.raises(ValueError, match=message):
        apply_folds(network(), NAME, folds)
