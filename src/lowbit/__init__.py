"""Ultra-low-bit quantization-aware training of Transformers with knowledge distillation."""

__version__ = "0.1.0"
