"""The authors' classifier and its training, written from a description of their code with torch alone.

Independent of `vitp_pipeline`: neither its model nor its optimizer, schedule or loss is used.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 37
"""Of the position table, whatever the image size."""


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5).softmax(-1) @ v
        return self.proj(seen.transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x))
        return x + self.ls2.gamma * self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class OfficialViT(nn.Module):
    """`DinoVisionTransformer` of sajjad-sh33/ViT-P as its state dict and forward are described.

    Args:
        registers: `num_register_tokens`, 0 in every released configuration.
    """

    def __init__(self, width: int, depth: int, heads: int, classes: int, registers: int = 0) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + SIDE * SIDE, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 14, stride=14)})
        self.cls_embeddings = nn.Linear(2, width, bias=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def positions(self, rows: int, cols: int) -> Tensor:
        """(1, rows·cols, D): the table, always resampled with an offset of 0.1."""
        table = self.pos_embed[:, 1:].unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)
        scale = [(rows + 0.1) / SIDE, (cols + 0.1) / SIDE]
        return F.interpolate(table, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)

    def forward(self, images: Tensor, points: Tensor) -> Tensor:
        """(B, 3, H, W) normalized and (B, N, 2) (row, col) in [−1, 1) to (B·N, K) logits."""
        patches = self.patch_embed["proj"](images)
        x = patches.flatten(2).transpose(1, 2) + self.positions(*patches.shape[-2:])
        tokens = [self.cls_embeddings(points) + self.pos_embed[:, :1]]
        if hasattr(self, "register_tokens"):
            tokens.append(self.register_tokens.expand(len(images), -1, -1))
        x = torch.cat([*tokens, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, : points.shape[1]]).flatten(0, 1)


def official_factor(step: int, warmup: int, total: int) -> float:
    """`WarmupCosineSchedule`: linear from 0, then half a cosine to 0."""
    if step < warmup:
        return step / max(1, warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class OfficialTraining:
    """SGD with momentum 0.9, the point layer at a peak rate of its own, clipping by the norm of all gradients.

    Attributes:
        norms: of the gradient, before clipping, at every step.
    """

    def __init__(self, model: OfficialViT, lr: float, warmup: int, total: int, point_lr: float = 1e-2) -> None:
        self.model, self.warmup, self.total = model, warmup, total
        self.parameters = dict(model.named_parameters())
        self.lr = {name: point_lr if name == "cls_embeddings.weight" else lr for name in self.parameters}
        self.velocity: dict[str, Tensor] = {}
        self.norms: list[float] = []

    def step(self, step: int, images: Tensor, points: Tensor, classes: Tensor) -> float:
        """Learn from (B, 3, H, W) normalized images, (B, N, 2) points and their (B, N) classes; return the loss."""
        log = self.model(images, points).log_softmax(-1)
        loss = -log[torch.arange(classes.numel()), classes.flatten()].mean()
        used = {name: p for name, p in self.parameters.items() if name != "mask_token"}
        gradients = dict(zip(used, torch.autograd.grad(loss, list(used.values())), strict=True))
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        self.norms.append(float(norm))
        factor = official_factor(step, self.warmup, self.total)
        with torch.no_grad():
            for name, gradient in gradients.items():
                clipped = gradient * min(1.0, 1.0 / (float(norm) + 1e-6))
                moved = 0.9 * self.velocity[name] + clipped if name in self.velocity else clipped
                self.velocity[name] = moved
                used[name] -= self.lr[name] * factor * moved
        return loss.item()
