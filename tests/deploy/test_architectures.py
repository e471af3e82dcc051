import pytest

from ppsr2q.core.plan import CONV, LINEAR, POINT
from ppsr2q.deploy import architectures
from ppsr2q.models import ARCHITECTURES
from ppsr2q.quant import PLAN_ENTRIES, Plan
from ppsr2q.quant.plan import layer_kinds

CASES = [(name, scale) for name, (scales, _) in architectures.ARCHITECTURES.items() for scale in scales]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-x{case[1]}")
def pair(request):
    name, scale = request.param
    return ARCHITECTURES[name](scale), architectures.ARCHITECTURES[name][1](scale), name


def test_every_architecture_is_described():
    assert set(architectures.ARCHITECTURES) == set(ARCHITECTURES)


def test_parameters_equal_the_network(pair):
    network, description, _ = pair
    assert list(description.parameters.items()) == [(n, tuple(p.shape)) for n, p in network.named_parameters()]


def test_layers_equal_the_network(pair):
    network, description, _ = pair
    kinds = [(name, kind) for name, kind in layer_kinds(network).items() if kind in (LINEAR, CONV, POINT)]
    assert list(description.layers.items()) == kinds


def test_a_plan_resolves_alike(pair):
    network, description, name = pair
    plan = Plan(PLAN_ENTRIES[name], 4, {"**.points.map": 8, "layers.0.**.CPE.0.*": None})
    assert plan.resolve_kinds(description.layers, name) == plan.resolve(network)


def test_folds_name_points_and_parameters(pair):
    _, description, _ = pair
    for point, fold in description.folds.items():
        assert description.layers[point] == POINT
        assert set(fold.replaces) <= set(description.parameters)
