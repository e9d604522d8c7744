"""Random weights in the shape of a real base model, as one .safetensors file: speed and memory do not ask what a
weight is, and no benchmark should need a download. The layout is the one of Stable Diffusion 1.x checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTHS, CONTEXT, EMBEDDING = (320, 640, 1280, 1280), 768, 1280


class Maker:
    """Collects the tensors of one checkpoint, fp16."""

    def __init__(self, seed: int = 0) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def random(self, name: str, *shape: int) -> None:
        scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 1.0
        self.tensors[name] = (torch.randn(*shape, generator=self._generator) * scale).half()

    def layer(self, name: str, out: int, into: int, kernel: int = 0, bias: bool = True) -> None:
        self.random(f"{name}.weight", out, into, *([kernel] * 2 if kernel else []))
        if bias:
            self.tensors[f"{name}.bias"] = torch.zeros(out, dtype=torch.float16)

    def norm(self, name: str, width: int) -> None:
        self.tensors[f"{name}.weight"] = torch.ones(width, dtype=torch.float16)
        self.tensors[f"{name}.bias"] = torch.zeros(width, dtype=torch.float16)

    def resnet(self, name: str, into: int, out: int) -> None:
        self.norm(f"{name}.in_layers.0", into)
        self.layer(f"{name}.in_layers.2", out, into, 3)
        self.layer(f"{name}.emb_layers.1", out, EMBEDDING)
        self.norm(f"{name}.out_layers.0", out)
        self.layer(f"{name}.out_layers.3", out, out, 3)
        if into != out:
            self.layer(f"{name}.skip_connection", out, into, 1)

    def transformer(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        self.layer(f"{name}.proj_in", width, width, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, source in (("attn1", width), ("attn2", CONTEXT)):
            for part, into in (("to_q", width), ("to_k", source), ("to_v", source)):
                self.layer(f"{block}.{attention}.{part}", width, into, bias=False)
            self.layer(f"{block}.{attention}.to_out.0", width, width)
        self.layer(f"{block}.ff.net.0.proj", width * 8, width)
        self.layer(f"{block}.ff.net.2", width, width * 4)
        for number in (1, 2, 3):
            self.norm(f"{block}.norm{number}", width)
        self.layer(f"{name}.proj_out", width, width, 1)

    def unet(self) -> None:
        root = "model.diffusion_model."
        self.layer(f"{root}time_embed.0", EMBEDDING, WIDTHS[0])
        self.layer(f"{root}time_embed.2", EMBEDDING, EMBEDDING)
        self.layer(f"{root}input_blocks.0.0", WIDTHS[0], 4, 3)
        skips, now, number = [WIDTHS[0]], WIDTHS[0], 1
        for level, width in enumerate(WIDTHS):
            for _ in range(2):
                self.resnet(f"{root}input_blocks.{number}.0", now, width)
                if level < 3:
                    self.transformer(f"{root}input_blocks.{number}.1", width)
                now, number = width, number + 1
                skips.append(now)
            if level < 3:
                self.layer(f"{root}input_blocks.{number}.0.op", now, now, 3)
                skips.append(now)
                number += 1
        self.resnet(f"{root}middle_block.0", now, now)
        self.transformer(f"{root}middle_block.1", now)
        self.resnet(f"{root}middle_block.2", now, now)
        number = 0
        for level, width in reversed(list(enumerate(WIDTHS))):
            for place in range(3):
                self.resnet(f"{root}output_blocks.{number}.0", now + skips.pop(), width)
                if level < 3:
                    self.transformer(f"{root}output_blocks.{number}.1", width)
                if level > 0 and place == 2:
                    self.layer(f"{root}output_blocks.{number}.{2 if level < 3 else 1}.conv", width, width, 3)
                now, number = width, number + 1
        self.norm(f"{root}out.0", now)
        self.layer(f"{root}out.2", 4, now, 3)

    def text_encoder(self) -> None:
        root = "cond_stage_model.transformer.text_model."
        self.random(f"{root}embeddings.token_embedding.weight", 49408, CONTEXT)
        self.random(f"{root}embeddings.position_embedding.weight", 77, CONTEXT)
        for number in range(12):
            layer = f"{root}encoder.layers.{number}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                self.layer(f"{layer}.self_attn.{part}", CONTEXT, CONTEXT)
            self.layer(f"{layer}.mlp.fc1", CONTEXT * 4, CONTEXT)
            self.layer(f"{layer}.mlp.fc2", CONTEXT, CONTEXT * 4)
            self.norm(f"{layer}.layer_norm1", CONTEXT)
            self.norm(f"{layer}.layer_norm2", CONTEXT)
        self.norm(f"{root}final_layer_norm", CONTEXT)

    def vae(self) -> None:
        root, widths = "first_stage_model.", (128, 256, 512, 512)
        for half, channels in (("encoder", 3), ("decoder", 4)):
            first = widths[0] if half == "encoder" else widths[-1]
            self.layer(f"{root}{half}.conv_in", first, channels, 3)
            now, order = first, list(enumerate(widths))
            for level, width in order if half == "encoder" else reversed(order):
                way = "down" if half == "encoder" else "up"
                for block in range(2 if half == "encoder" else 3):
                    self._vae_resnet(f"{root}{half}.{way}.{level}.block.{block}", now, width)
                    now = width
                if (half == "encoder" and level < 3) or (half == "decoder" and level > 0):
                    self.layer(f"{root}{half}.{way}.{level}.{way}sample.conv", now, now, 3)
            self._vae_middle(f"{root}{half}.mid", widths[-1])
            self.norm(f"{root}{half}.norm_out", now)
            self.layer(f"{root}{half}.conv_out", 8 if half == "encoder" else 3, now, 3)
        self.layer(f"{root}quant_conv", 8, 8, 1)
        self.layer(f"{root}post_quant_conv", 4, 4, 1)

    def _vae_resnet(self, name: str, into: int, out: int) -> None:
        self.norm(f"{name}.norm1", into)
        self.layer(f"{name}.conv1", out, into, 3)
        self.norm(f"{name}.norm2", out)
        self.layer(f"{name}.conv2", out, out, 3)
        if into != out:
            self.layer(f"{name}.nin_shortcut", out, into, 1)

    def _vae_middle(self, name: str, width: int) -> None:
        self._vae_resnet(f"{name}.block_1", width, width)
        self.norm(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.layer(f"{name}.attn_1.{part}", width, width, 1)
        self._vae_resnet(f"{name}.block_2", width, width)


def make_sd15(path: Path) -> Path:
    """A checkpoint of 1.07 thousand million random numbers, 2 GB; made once."""
    if not path.is_file():
        maker = Maker()
        for part in (maker.unet, maker.text_encoder, maker.vae):
            part()
        aside = path.with_suffix(".part")
        save_file(maker.tensors, aside)
        aside.replace(path)
    return path
