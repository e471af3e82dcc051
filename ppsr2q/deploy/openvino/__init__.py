"""Packed models in OpenVINO: its intermediate representation (IR), and OpenVINO as an engine that needs no Paddle."""
from ppsr2q.deploy.openvino.export import OpenvinoUpscaler, load_upscaler, to_openvino, write_openvino

__all__ = ["OpenvinoUpscaler", "load_upscaler", "to_openvino", "write_openvino"]
