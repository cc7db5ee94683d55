"""Networks that tests save and load, and a way to forge their files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparseprune import zoo
from sparseprune.convert import convert
from sparseprune.copying import copy_with
from sparseprune.formats import FORMATS
from sparseprune.io import load
from sparseprune.nn import SPARSE, SparseConv
from sparseprune.program.planned import Planned, plan
from sparseprune.prune import prune


class Residual(nn.Module):
    """Convolutions with batch norm, a functional call, concatenation, shapes and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect", groups=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(16, 5)
        self.register_buffer("scale", torch.rand(8, 1, 1))
        self.register_buffer("shift", torch.rand(8, 1, 1), persistent=False)
        self.gain = nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        z = self.bn2(self.conv2(y)) * self.scale + y - self.shift
        if mask is not None:
            z = z * mask
        z = torch.cat([z, y.mul(2.0)], dim=1) if not flag else z
        z = F.dropout(z, 0.5, self.training)
        pooled = F.max_pool2d(z, 2)[:, :, ::1].mean((2, 3))
        return self.fc(pooled.view(x.shape[0], -1)) * self.gain


class Tied(nn.Module):
    """Two names for one weight, two for one layer, one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 8)
        self.again = self.inner
        self.other = nn.Linear(8, 8, bias=False)
        self.other.weight = self.inner.weight
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + torch.arange(tokens.shape[1], device=tokens.device)[:, None]
        x = torch.tanh(self.again(self.inner(self.inner(x)))) + self.other(x)
        return self.out(x)


class Attends(nn.Module):
    """Layers of torch.nn that are made of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation=F.gelu, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16))
        self.rnn = nn.GRU(16, 6, batch_first=True, bidirectional=True)
        self.heads = nn.ModuleDict({"class-1": nn.Linear(12, 3), "b": nn.PReLU(3)})

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.token.expand(x.size(0), -1, -1), x), dim=1)
        mixed, _ = self.attention(x, x, x, need_weights=False)
        states, _ = self.rnn(self.encoder(x + mixed))
        best = states.max(dim=1).values
        return self.heads["b"](self.heads["class-1"](best))


class Branches(nn.Module):
    """What torch.fx cannot follow: a branch on a value."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 3)
        self.head2 = nn.Linear(width, 3, bias=False)
        self.head2.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x) if x.sum() > 0 else self.head2(x)


class Separable(nn.Module):
    """As mobile networks: a dense first layer, filters of every channel, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 32, 1)
        self.filter = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project = nn.Conv2d(32, 8, 1)
        self.head = nn.Linear(8, 400)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = x + self.project(F.relu6(self.filter(F.relu6(self.expand(x)))))
        return self.head(F.relu(x).mean((2, 3))) * scale


class Shuffles(nn.Module):
    """As ShuffleNet and U-Net: channels in halves and dealt, pixels repeated, images joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        left, right = x.chunk(2, 1)
        dealt = F.channel_shuffle(torch.cat((left, self.b(right)), 1), 2)
        large = F.interpolate(F.relu(self.c(dealt)), scale_factor=2.0)
        return self.d(torch.cat((large, x), 1))


class Regions(nn.Module):
    """Two regions, and between them what no program does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 5)
        self.register_buffer("shift", torch.rand(24))

    def forward(self, x: Tensor, *, flip: bool = False) -> dict[str, Tensor]:
        x = torch.cumsum(F.relu(self.b(F.relu(self.a(x)))), -1) + self.shift
        x = x.flip(-1) if flip else x
        return {"logits": self.c(F.silu(self.b(x)))}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 200), nn.ReLU(), nn.Linear(200, 64), nn.GELU(),
                         nn.Linear(64, 7))  # fmt: skip


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3), nn.Softmax(-1)))


def signals(dims: int) -> nn.Module:
    """Convolutions of 1 or 3 dimensions."""
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[dims]
    return nn.Sequential(
        conv(3, 8, 2, padding="same", padding_mode="reflect"),
        norm(8),
        nn.ReLU(),
        conv(8, 8, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(8 * 4**dims, 5),
    )


def layers() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3, stride=2, output_padding=1, dilation=2),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 6, affine=False),
        nn.Hardtanh(-0.5, 0.5),
        nn.Upsample(scale_factor=2.0, mode="bilinear"),
        nn.ConstantPad2d((1, 0, 2, 1), 0.25),
        nn.LPPool2d(2.0, 2),
        nn.AdaptiveAvgPool2d((None, 4)),
        nn.Flatten(2),
        nn.Unflatten(2, (-1, 4)),
        nn.RMSNorm(4),
        nn.Identity(),
    )


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tokens(vocab: int, *shape: int) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(1))


small = {"width": 32, "depth": 2, "heads": 4, "vocab": 50, "context": 16}
small_image = {"width": 32, "depth": 2, "heads": 4, "image": 32}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "sequential": (sequential, lambda: image(4, 6)),
    "layers": (layers, lambda: image(2, 3, 7, 7)),
    "mlp": (mlp, lambda: image(4, 48)),
    "conv1d": (lambda: signals(1), lambda: image(2, 3, 8)),
    "conv3d": (lambda: signals(3), lambda: image(2, 3, 8, 8, 8)),
    "residual": (Residual, lambda: image(2, 3, 8, 8)),
    "separable": (Separable, lambda: image(2, 3, 16, 14)),
    "shuffles": (Shuffles, lambda: image(2, 3, 16, 14)),
    "regions": (Regions, lambda: image(6, 16)),
    "tied": (Tied, lambda: tokens(11, 2, 5)),
    "attends": (Attends, lambda: image(2, 5, 16)),
    "lstm": (lambda: nn.LSTM(4, 5, 2, bidirectional=True, proj_size=3), lambda: image(6, 2, 4)),
    "lenet_5": (lambda: zoo.build("lenet_5"), lambda: image(2, 1, 28, 28)),
    "resnet20": (lambda: zoo.build("resnet20"), lambda: image(2, 3, 32, 32)),
    "mobilenet_v2": (lambda: zoo.build("mobilenet_v2"), lambda: image(1, 3, 64, 64)),
    "gpt": (lambda: zoo.build("gpt_tiny", **small), lambda: tokens(50, 2, 9)),
    "bert": (lambda: zoo.build("bert_base", **small, hidden=64), lambda: tokens(50, 2, 9)),
    "vit": (lambda: zoo.build("vit_s16", **small_image), lambda: image(2, 3, 32, 32)),
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """The network, pruned, in eval mode with statistics that are not the initial ones."""
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    model, x = build(), inputs()
    with torch.no_grad():
        model(x)  # running statistics of batch norms
    if name not in ("layers", "lstm"):
        prune(model, sparsity=0.8)
    return model.eval(), x


def packed(model: nn.Module, x: Tensor, format: str = "csr") -> nn.Module:
    return convert(model, x, keep_dense="never", format=format)


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = model(x)
    y = y["logits"] if isinstance(y, dict) else y
    return y if isinstance(y, Tensor) else y[0]


TWINS = {nn.Linear: SPARSE[nn.Linear]} | {
    dense: sparse for dense, sparse in SPARSE.items() if issubclass(sparse, SparseConv)
}


def planned(name: str) -> tuple[nn.Module, Tensor]:
    """The network with its programs, packed but for first and depthwise convolutions."""
    model, x = make(name)
    fast = pack_all(model, "csr/groups", ("stem", "filter", "conv1")).eval()
    reason = plan(fast, x)
    assert reason is None, reason
    return fast, x


def serves(model: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether the programs of a model take this call."""
    return isinstance(model, Planned) and model._programmed(args, kwargs) is not None


def pack_all(model: nn.Module, name: str, keep: tuple[str, ...] = ()) -> nn.Module:
    """A copy with every Linear and convolution in one format, whatever convert would choose."""
    fmt = next(f for f in FORMATS if f.name == name)
    twins: dict[nn.Module, nn.Module] = {}
    for path, child in model.named_modules():
        twin: Any = TWINS.get(type(child))
        if path in keep or twin is None or twin.kind not in fmt.serves:
            continue
        if fmt.refuses(*twin.dense_weight(child)) is None:
            twins[child] = twin.from_dense(child, fmt)
    return copy_with(model, twins)


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Rewrites manifest and tensors with correct checksums, as an attacker would."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    manifest = json.loads(metadata["manifest"])
    change(manifest, tensors)
    for name, tensor in tensors.items():
        if name in manifest["tensors"]:
            raw = tensor.reshape(-1).view(torch.uint8).numpy()
            manifest["tensors"][name] |= {
                "crc32": zlib.crc32(raw),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
    text = json.dumps(manifest)
    metadata |= {"manifest": text, "crc32": str(zlib.crc32(text.encode()))}
    save_file(tensors, path, metadata)


def refused(path: Path, change: Callable[..., object], match: str = "load: file") -> None:
    whole = path.read_bytes()
    edit(path, change)
    with pytest.raises(ValueError, match=match) as caught:
        load(path)
    assert str(caught.value).startswith("load: file")
    path.write_bytes(whole)


def step(op: str, target: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "target": target, "args": list(args), "kwargs": kwargs}
