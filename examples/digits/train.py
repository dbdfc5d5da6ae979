"""Train a small SViT (arXiv 2306.07050) on the 8x8 digits that ship with scikit-learn.

It makes a real, content-dependent, token-pruned checkpoint in the layout of the official SViT
repository, in a few minutes on two CPU cores:

    python train.py -o .

Shapes: B images, N = 64 patch tokens, C channels, G gates. A token sequence is [B, N + 1, C] with
the class token first.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

IMAGE_SIZE = 48
PATCH_SIZE = 6
CHANNELS = 64
DEPTH = 6
NUM_HEADS = 4
NUM_CLASSES = 10

# Same facts as arch.yaml, which tells a reader of the checkpoint what its weights cannot.
GATE_BLOCKS = (2, 3, 4, 5)
GATE_CLASS_TOKEN = (False, False, False, True)
TARGET_KEEP = (0.7, 0.7, 0.49, 0.343)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

HELDOUT_IMAGES = 360
CALIBRATION_IMAGES = 128
RATIO_LOSS_WEIGHT = 4.0

# How a gate decides: by its logits, by a Gumbel sample (training), or not at all.
GateMode = Literal["threshold", "sample", "keep_all"]


class PatchEmbed(nn.Module):
    """Cut an image [B, 3, H, W] into patch tokens [B, N, C] in raster order."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, CHANNELS, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class GateMlp(nn.Module):
    """Two-layer head from C channels to the keep (0) and prune (1) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(CHANNELS, CHANNELS // 4)
        self.fc2 = nn.Linear(CHANNELS // 4, 2)
        # Start with decided gates (margins of a few units). From small margins they stay near
        # p = target for every token, and then a threshold keeps almost all tokens or almost none.
        nn.init.normal_(self.fc2.weight, std=1.0)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Gate(nn.Module):
    """Decide for every token whether the block behind this gate computes it."""

    def __init__(self, gates_class_token: bool) -> None:
        super().__init__()
        self.gates_class_token = gates_class_token
        self.norm = nn.LayerNorm(CHANNELS, eps=1e-5)
        self.mlp = GateMlp()

    def forward(self, tokens: Tensor, mode: GateMode) -> Tensor:
        """Map tokens [B, N + 1, C] to a 0/1 keep mask [B, N + 1] (float, straight-through)."""
        if mode == "keep_all":
            return tokens.new_ones(tokens.shape[:2])
        seen = tokens if self.gates_class_token else tokens[:, 1:]
        log_probs = self.mlp(self.norm(seen)).log_softmax(dim=-1)
        if mode == "sample":
            keep = F.gumbel_softmax(log_probs, tau=1.0, hard=True)[..., 0]
        else:
            keep = (log_probs[..., 0] > log_probs[..., 1]).to(tokens.dtype)
        return keep if self.gates_class_token else F.pad(keep, (1, 0), value=1.0)


class Block(nn.Module):
    """A pre-norm transformer block that computes kept tokens and leaves the others as they are."""

    def __init__(self) -> None:
        super().__init__()
        # PyTorch's own layer, under its own name, gives the official parameter names.
        self.TransformerEncoderLayer = nn.TransformerEncoderLayer(
            CHANNELS,
            NUM_HEADS,
            dim_feedforward=4 * CHANNELS,
            dropout=0.0,
            activation=F.gelu,
            layer_norm_eps=1e-5,
            batch_first=True,
            norm_first=True,
        )

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map tokens [B, N + 1, C], with an optional keep mask [B, N + 1], to the same shape."""
        if keep is None:
            return self.TransformerEncoderLayer(tokens)
        # Large but finite: where a gate keeps nothing, -inf would make NaN; so it is the identity.
        key_bias = (1.0 - keep.detach()) * -1e4
        computed = self.TransformerEncoderLayer(tokens, src_key_padding_mask=key_bias)
        return tokens + keep.unsqueeze(-1) * (computed - tokens)


class SViT(nn.Module):
    """A small SViT whose state dict has the official key layout."""

    def __init__(self) -> None:
        super().__init__()
        num_patches = (IMAGE_SIZE // PATCH_SIZE) ** 2
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, CHANNELS))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, num_patches + 1, CHANNELS))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.selective_modules = nn.ModuleList(Gate(gated) for gated in GATE_CLASS_TOKEN)
        self.norm = nn.LayerNorm(CHANNELS, eps=1e-6)
        self.head = nn.Linear(CHANNELS, NUM_CLASSES)

    def forward(self, images: Tensor, mode: GateMode) -> tuple[Tensor, list[Tensor]]:
        """Map images [B, 3, H, W] to logits [B, 10] and G keep masks over the tokens gated.

        A mask is [B, N], or [B, N + 1] for a gate that gates the class token too.
        """
        tokens = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self.pos_embed
        masks: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index not in GATE_BLOCKS:
                tokens = block(tokens)
                continue
            gate = self.selective_modules[GATE_BLOCKS.index(index)]
            keep = gate(tokens, mode)
            masks.append(keep if gate.gates_class_token else keep[:, 1:])
            tokens = block(tokens, keep)
        return self.head(self.norm(tokens)[:, 0]), masks


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """Return all digits as uint8 RGB images [1797, 48, 48, 3] and their int64 labels [1797]."""
    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    large = [np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in small]
    gray = np.stack(large) & 0xFC  # 64 levels are plenty for 17, and halve the compressed files
    return np.repeat(gray[..., None], 3, axis=-1), digits.target.astype(np.int64)


def to_float(images: np.ndarray) -> Tensor:
    """Map uint8 images [B, H, W, 3] to float images [B, 3, H, W] in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def normalise(images: Tensor) -> Tensor:
    """Subtract the ImageNet mean and divide by its deviation, per channel of [B, 3, H, W]."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augment(images: Tensor) -> Tensor:
    """Rotate (±12°), scale (±12 %) and shift (±4 pixels) each image of [B, 3, H, W] at random."""
    count = len(images)
    angle = (2 * torch.rand(count) - 1) * math.radians(12)
    scale = 1 + 0.12 * (2 * torch.rand(count) - 1)
    shift = (2 * torch.rand(count, 2) - 1) * (2 * 4 / IMAGE_SIZE)  # the image spans -1..1
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(count, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def ratio_loss(masks: list[Tensor]) -> Tensor:
    """Mean over gates of (mean keep - target)², the ratio loss of the paper without its weight."""
    errors = [(mask.mean() - target) ** 2 for mask, target in zip(masks, TARGET_KEEP, strict=True)]
    return torch.stack(errors).mean()


def train(model: SViT, images: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """Train in place on images [B, 3, H, W] in 0..1: first dense, then with sampled gates."""
    steps = args.epochs * math.ceil(len(images) / args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.15)
    model.train()
    for epoch in range(args.epochs):
        mode: GateMode = "keep_all" if epoch < args.dense_epochs else "sample"
        for batch in torch.randperm(len(images)).split(args.batch_size):
            logits, masks = model(normalise(augment(images[batch])), mode)
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            if mode == "sample":
                loss = loss + RATIO_LOSS_WEIGHT * ratio_loss(masks)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        ratios = " ".join(f"{mask.mean():.2f}" for mask in masks)
        print(f"epoch {epoch + 1:3d}  {mode:8s}  loss {loss.item():.4f}  keep {ratios}", flush=True)


@torch.no_grad()
def evaluate(model: SViT, images: Tensor, labels: Tensor, mode: GateMode) -> str:
    """Return a line with top-1 on images [B, 3, H, W] in 0..1 and kept counts per gate."""
    model.eval()
    logits, masks = model(normalise(images), mode)
    top1 = (logits.argmax(-1) == labels).float().mean()
    gates = []
    for mask in masks:
        counts = mask.sum(1)
        gates.append(f"{mask.mean():.3f} ({counts.min():.0f}..{counts.max():.0f})")
    return f"{mode:10s} top-1 {100 * top1:.2f} %  keep ratio (min..max kept) {'  '.join(gates)}"


def save_checkpoint(model: SViT, path: Path, args: argparse.Namespace) -> None:
    """Write the container of the official training code, without its optimizer state."""
    container = {
        "model": model.state_dict(),
        "optimizer": None,
        "lr_scheduler": None,
        "epoch": args.epochs - 1,
        "model_ema": None,
        "scaler": None,
        "args": args,
    }
    torch.save(container, path)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train a small SViT on scikit-learn's digits.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--dense-epochs", type=int, default=15, help="epochs before gates open")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", default=".", help="folder for the checkpoint and data")
    return parser.parse_args()


def main() -> None:
    """Split the data, train, save the checkpoint and the two image sets, print the figures."""
    args = parse_args()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    images, labels = load_images()
    # The split never depends on --seed: held-out digits stay held out.
    train_images, heldout_images, train_labels, heldout_labels = train_test_split(
        images, labels, test_size=HELDOUT_IMAGES, stratify=labels, random_state=0
    )
    calibration = slice(0, CALIBRATION_IMAGES)
    np.savez_compressed(output / "heldout.npz", images=heldout_images, labels=heldout_labels)
    np.savez_compressed(
        output / "calibration.npz",
        images=train_images[calibration],
        labels=train_labels[calibration],
    )

    model = SViT()
    start = time.perf_counter()
    train(model, to_float(train_images), torch.from_numpy(train_labels), args)
    print(f"trained in {time.perf_counter() - start:.0f} s with torch {torch.__version__}")
    save_checkpoint(model, output / "svit_digits.pth", args)

    modes: tuple[GateMode, ...] = ("threshold", "sample", "keep_all")
    for mode in modes:
        print(evaluate(model, to_float(heldout_images), torch.from_numpy(heldout_labels), mode))


if __name__ == "__main__":
    main()
