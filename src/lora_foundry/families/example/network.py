"""The network. A family whose network diffusers has needs no such file: `load.py` names the library's class there."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Attention of picture and words, and a feed-forward layer. The layers' names are what `names.py` selects by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(width, width)
        self.to_v, self.to_out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        tokens = tokens + self.to_out(functional.scaled_dot_product_attention(query, key, value))
        fed: Tensor = self.down(functional.gelu(self.up(tokens)))
        return tokens + fed


# The three exceptions for the type checker are the library's: its base classes contradict each other in `config_name`, and
# its decorator and constructor have no annotations.
class ExampleTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """Answers with the direction from picture to noise (n, c, h, w) in noised latents of that shape; `levels` (n,) in 0..1
    are their shares of noise, `text` (n, length, text_width) the prompt."""

    _supports_gradient_checkpointing = True
    # Nearly all of the network: what is quantised, and streamed to small cards.
    _repeated_blocks = ["Block"]  # noqa: RUF012 - as the library declares it

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, in_channels: int = 4, width: int = 16, text_width: int = 160, num_layers: int = 2
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gradient_checkpointing = False
        self.pixels, self.words = nn.Linear(in_channels + 1, width), nn.Linear(text_width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(num_layers))
        self.out = nn.Linear(width, in_channels)

    def forward(self, latents: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        level = levels.to(latents).view(-1, 1, 1, 1).expand_as(latents[:, :1])
        places = torch.cat([latents, level], dim=1).flatten(2).transpose(1, 2)  # one token a latent
        tokens = torch.cat([self.pixels(places), self.words(text)], dim=1)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        answer: Tensor = self.out(tokens[:, : places.shape[1]]).transpose(1, 2).reshape(latents.shape)
        return answer
