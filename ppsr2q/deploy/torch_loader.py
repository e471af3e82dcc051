"""Runs a network that ``tools/export.py --format torch`` wrote in the official PyTorch MambaIRv2-light.

    from basicsr.archs.mambairv2light_arch import MambaIRv2Light   # github.com/csguoh/MambaIR
    model = load_quantized(MambaIRv2Light(upscale=4, ...), "out/torch.safetensors")

This file needs torch and safetensors, nothing of ppsr2q: copy it wherever it is wanted. The scan is a plain loop over
the tokens because the official CUDA kernel hides the states, which are quantized: for looking into a network on any
device, not for speed.
"""
import json

import torch
from safetensors import safe_open


def load_quantized(model, path):
    """Load the weights into the official network, in place, and let it quantize its activations as the file says.

    Args:
        model: ``MambaIRv2Light`` built for the scale of the file.

    Returns:
        ``model`` in eval mode; routing is noise-free and its sort stable, so that outputs are reproducible.
    """
    with safe_open(path, "pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
        quantizers = json.loads(file.metadata()["ppsr2q"])["metadata"]["quantizers"]

    def quantizer(name):
        return _quantizer(**quantizers[name]) if name in quantizers else lambda x: x

    modules = dict(model.named_modules())
    for name in quantizers:
        layer, _, role = name.rpartition(".")
        if role == "input" and layer in modules:
            modules[layer].register_forward_pre_hook(lambda _, x, quantize=quantizer(name): quantize(x[0]))
    for name, module in modules.items():
        if hasattr(module, "wqkv"):
            module.wqkv.forward = _joint_projection(module.wqkv, [quantizer(f"{name}.{part}.input") for part in "qkv"])
        if hasattr(module, "relative_position_bias_table"):
            _quantize_attention(module, *(quantizer(f"{name}.points.{point}") for point in ("q", "k", "v", "map")))
        if hasattr(module, "selectiveScan"):
            module.forward = _state_space(module, lambda point, name=name: quantizer(f"{name}.{point}"))
    return model.eval()


def _quantizer(bits, lower, upper):
    step = ((torch.tensor(upper) - torch.tensor(lower)) / (2**bits - 1)).item()
    return lambda x: torch.round((x.clamp(lower, upper) - lower) / step) * step + lower


def _joint_projection(linear, quantizers):
    def forward(x):
        parts = zip(quantizers, linear.weight.chunk(3), linear.bias.chunk(3))
        return torch.cat([torch.nn.functional.linear(quantize(x), *part) for quantize, *part in parts], -1)
    return forward


def _quantize_attention(attention, q, k, v, attention_map):
    scale, attention.scale = attention.scale, 1.0  # q is quantized after it was scaled

    def quantize_inputs(_, arguments):
        parts = arguments[0].chunk(3, -1)
        return (torch.cat([q(parts[0] * scale), k(parts[1]), v(parts[2])], -1), *arguments[1:])

    attention.register_forward_pre_hook(quantize_inputs)
    attention.softmax.register_forward_hook(lambda _, inputs, output: attention_map(output))


def _state_space(module, quantizer):
    scan, norm_and_project = module.selectiveScan, lambda y: module.out_proj(module.out_norm(y))
    names = ("u", "dt", "B", "C", "delta", "A", "dt_bias", "states")
    of_u, of_dt, of_b, of_c, of_delta, of_a, of_bias, of_states = (quantizer(f"selectiveScan.points.{n}") for n in names)
    of_table = quantizer("points.prompt_table")

    def forward(x, size, token):
        index = module.route(x).argmax(-1)
        order = index.argsort(stable=True)[..., None].expand_as(x)
        prompt = of_table(module.embeddingB.weight @ token.weight)[index]  # stays in raster order
        image = module.in_proj(x.transpose(1, 2).unflatten(2, size))
        u = (image * torch.sigmoid(module.CPE(image))).flatten(2).transpose(1, 2)
        u = of_u(u.gather(1, order))
        dt, b, c = (u @ scan.x_proj_weight[0].T).split([scan.dt_rank, scan.d_state, scan.d_state], -1)
        b, c = of_b(b), of_c(c + prompt)
        delta = of_delta(of_dt(dt) @ scan.dt_projs_weight[0].T)
        delta = torch.nn.functional.softplus(delta + of_bias(scan.dt_projs_bias[0]))
        decay = torch.exp(delta[..., None] * of_a(-torch.exp(scan.A_logs)))
        added, states = (delta * u)[..., None] * b[:, :, None], []
        for i in range(x.shape[1]):
            states.append(decay[:, i] * states[-1] + added[:, i] if states else added[:, i])
        y = (of_states(torch.stack(states, 1)) @ c[..., None])[..., 0] + scan.Ds * u
        return torch.zeros_like(x).scatter(1, order, norm_and_project(y))

    return forward
