"""All that learns in one piece of memory, and its gradients in another. An optimizer step over hundreds of small tensors
takes a host longer than a GPU computes for it; over one it is one call, as are the gradients' norm and their return to
zero, and a place for a gradient that stays is what a product can be added to directly (`training.fused`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_ALIGNED = 64  # numbers: each tensor begins where wide loads may begin


def lay_out(tensors: Sequence[nn.Parameter]) -> nn.Parameter:
    """Moves fp32 `tensors` of one device into one buffer (n,) and returns it, with its gradient, zeros (n,), set. The
    tensors and their gradients are views of the two from then on; a gradient is forgotten by zeroing, never by None."""
    places = [0]
    for tensor in tensors:
        places.append(places[-1] + -(-tensor.numel() // _ALIGNED) * _ALIGNED)
    buffer = nn.Parameter(torch.zeros(places[-1], dtype=torch.float32, device=tensors[0].device))
    gradient = torch.zeros_like(buffer.data)
    buffer.grad = gradient
    for place, tensor in zip(places, tensors, strict=False):
        part = slice(place, place + tensor.numel())
        buffer.data[part] = tensor.detach().flatten()
        tensor.data = buffer.data[part].view(tensor.shape)
        tensor.grad = gradient[part].view(tensor.shape)
    return buffer
