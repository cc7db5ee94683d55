"""save() and load(): the same logits in a fresh process."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_models import Remembers, rebinds_a_buffer
from io_problems import (
    NETWORKS,
    Branches,
    Residual,
    image,
    make,
    pack_all,
    packed,
    planned,
    run,
    sequential,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import sparseprune
from sparseprune.formats import FORMATS
from sparseprune.io import load, save
from sparseprune.nn import SparseLinear
from sparseprune.prune import prune

PLANNED = (
    "mlp",
    "residual",
    "separable",
    "regions",
    "lenet_5",
    "resnet20",
    "mobilenet_v2",
    "gpt",
    "vit",
)
"""Networks that run programs."""
RECURRENT = ("attends", "lstm")
"""Networks with a GRU or LSTM of torch, whose bits depend on where its weights lie on some CPUs."""
ROOT = Path(sparseprune.__file__ or "").resolve().parents[1]

FRESH = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sparseprune.io import load
torch.set_num_threads(int(sys.argv[2]))
for saved in sorted(Path(sys.argv[1]).glob("*.model")):
    with torch.inference_mode():
        model = load(saved)
        x = load_file(saved.with_suffix(".x"))["x"].clone()  # aligned, as torch's bits want it
        y = model(x)
        if "-planned" in saved.name:
            assert model._programmed((x,), {}) is not None, saved
    assert not any(m.training for m in model.modules()), saved
    y = y["logits"] if isinstance(y, dict) else y
    y = y if isinstance(y, torch.Tensor) else y[0]
    save_file({"y": y.contiguous()}, saved.with_suffix(".y"))
"""


def fresh(code: str, *arguments: str) -> None:
    """Runs code in a process that knows the package and nothing of this file."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_fresh_process_computes_the_same_bits(tmp_path: Path) -> None:
    expected: dict[str, Tensor] = {}
    for name in NETWORKS:
        model, x = make(name)
        variants = {"dense": model}
        if name not in ("layers", "lstm"):
            if name in ("sequential", "conv1d", "conv3d", "residual", "tied", "attends", "lenet_5"):
                variants["auto"] = packed(model, x)
            if name in PLANNED:
                variants["planned"] = planned(name)[0]
            for fmt in FORMATS:
                variants[fmt.name.replace("/", "-")] = pack_all(model, fmt.name)
        for variant, network in variants.items():
            key = f"{name}-{variant}"
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                save(network, tmp_path / f"{key}.model")
            save_file({"x": x}, tmp_path / f"{key}.x")
            expected[key] = run(network, x)
    fresh(FRESH, str(tmp_path), str(torch.get_num_threads()))
    for key, logits in expected.items():
        got = load_file(tmp_path / f"{key}.y")["y"]
        if key.startswith(RECURRENT):
            torch.testing.assert_close(got, logits, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(got, logits), key


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Tensor, Path]:
    model, x = make("residual")
    fast, path = packed(model, x), tmp_path_factory.mktemp("io") / "residual.safetensors"
    save(fast, path)
    return fast, x, path


def test_report_flags_and_names_survive(residual: tuple[nn.Module, Tensor, Path]) -> None:
    fast, _, path = residual
    loaded = load(path)
    assert loaded.report.to_dict() == fast.report.to_dict()  # type: ignore[operator, union-attr]
    assert list(loaded.state_dict()) == list(fast.state_dict())
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in fast.named_parameters()
    }
    assert not loaded.get_parameter("fc.bias").requires_grad
    assert "shift" in dict(loaded.named_buffers()) and "shift" not in loaded.state_dict()
    assert loaded.get_submodule("fc.weight").backend == "auto"


def test_loaded_model_compiles_exports_and_copies(
    residual: tuple[nn.Module, Tensor, Path], tmp_path: Path
) -> None:
    fast, x, path = residual
    loaded, expected = load(path), run(fast, x)
    compiled = torch.compile(loaded, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, x), expected)
    exported = torch.export.export(loaded, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    twin = copy.deepcopy(loaded)
    assert torch.equal(run(twin, x), expected) and twin.report is not None
    twin.load_state_dict(fast.state_dict())
    save(twin, tmp_path / "again.safetensors")
    assert torch.equal(run(load(tmp_path / "again.safetensors"), x), expected)


def test_optional_arguments_keep_their_default(
    residual: tuple[nn.Module, Tensor, Path],
) -> None:
    fast, x, path = residual
    loaded = load(path)
    with torch.inference_mode():
        given = loaded(x, mask=None, flag=False)  # another form of call: layer by layer
        torch.testing.assert_close(given, fast(x))
        with pytest.raises(ValueError, match=r"argument 'mask' must be None.*model="):
            loaded(x, torch.ones(8, 8))
        with pytest.raises(ValueError, match="argument 'flag' must be False"):
            loaded(x, flag=True)


def test_sharing_survives(tmp_path: Path) -> None:
    model, x = make("tied")
    save(model, tmp_path / "dense")
    loaded: Any = load(tmp_path / "dense")
    assert loaded.again is loaded.inner and loaded.out.weight is loaded.embed.weight
    assert loaded.other.weight is loaded.inner.weight
    with safe_open(tmp_path / "dense", "pt") as file:
        assert set(file.keys()) == {"embed.weight", "inner.weight", "inner.bias"}
    save(packed(model, x), tmp_path / "packed")
    loaded = load(tmp_path / "packed")
    assert loaded.again is loaded.inner and loaded.other.weight is loaded.inner.weight


def test_tensors_over_shared_memory_keep_their_values(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = nn.Parameter(model[0].weight.data)  # another object, the same memory
    model[2].weight = nn.Parameter(model[0].weight.data[:2])  # a part of it
    save(model, tmp_path / "file")
    loaded: Any = load(tmp_path / "file")
    assert loaded[1].weight is loaded[0].weight
    assert torch.equal(run(loaded, torch.ones(1, 4)), run(model, torch.ones(1, 4)))


def test_layers_made_of_layers_are_rebuilt_in_order(tmp_path: Path) -> None:
    decoder = nn.TransformerDecoderLayer(8, 2, 16, activation="gelu", norm_first=True)
    for model in (
        nn.Transformer(8, 2, 1, 1, 16),
        nn.TransformerDecoder(decoder, 2),
        nn.TransformerEncoderLayer(8, 2, 16, activation=nn.SiLU(), bias=False),
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False, add_bias_kv=True),
        nn.RNN(2, 3, bias=False, nonlinearity="relu"),
        nn.EmbeddingBag(5, 3, mode="sum", padding_idx=1),
        nn.BatchNorm1d(3, momentum=None, track_running_stats=False),
    ):
        save(model, tmp_path / "file")
        loaded = load(tmp_path / "file")
        assert type(loaded) is type(model) and repr(loaded) == repr(model)
        assert list(loaded.state_dict()) == list(model.state_dict())


def test_memory_order_and_dtypes_survive(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1).double())
    model[0] = model[0].to(memory_format=torch.channels_last)
    model[1].register_buffer("brief", torch.rand(3).bfloat16())
    model[1].register_buffer("empty", torch.zeros(0, 3))
    save(model, tmp_path / "file")
    loaded: Any = load(tmp_path / "file")
    assert loaded[0].weight.stride() == model[0].weight.stride()
    assert loaded[1].weight.dtype == torch.float64 and loaded[1].brief.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_training_mode_hooks_and_parametrizations(tmp_path: Path) -> None:
    model = sequential()
    parametrizations.weight_norm(model[0])  # type: ignore[operator, index]
    torch_prune.l1_unstructured(model[2][0], "weight", 0.5)  # type: ignore[operator, index]
    model.train()
    x = image(2, 6)
    expected = run(model, x)
    save(model, tmp_path / "file")
    assert model.training and hasattr(model[2][0], "weight_mask")  # type: ignore[operator, index]
    torch.testing.assert_close(run(load(tmp_path / "file"), x), expected)
    hooked = sequential()
    hooked.register_forward_hook(lambda module, args, y: y * 2)
    with pytest.warns(UserWarning, match="forward hooks"):
        save(hooked, tmp_path / "hooked")


class Odd(nn.Module):
    """A forward that is given; what it does besides tensor functions decides about its graph."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(4, 4), kind

    def forward(self, x: Tensor, times: int = 2, *more: Tensor, **named: Tensor) -> Any:
        if self.kind == "random":
            return self.fc(x) + torch.rand(4)
        if self.kind == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.fc(x)
        if self.kind == "numpy":
            return self.fc(torch.from_numpy(x.numpy()))
        if self.kind == "branch":
            return self.fc(x) if x.mean() > 0 else x
        for _ in range(times):
            x = self.fc(x) - torch.ones(4) + math.sqrt(x.shape[-1])
        return {
            "y": x,
            "parts": [x[..., 0], x.shape],
            "rest": named["z"],
        }


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("random", "draws random numbers"), ("autocast", "uses autocast"), ("numpy", "ndarray"),
     ("branch", "control flow")],
)  # fmt: skip
def test_what_a_graph_would_get_wrong_is_not_saved(kind: str, reason: str, tmp_path: Path) -> None:
    seed = torch.get_rng_state()
    model = Odd(kind).eval()
    drawn = torch.get_rng_state()
    with pytest.warns(UserWarning, match=reason):
        save(model, tmp_path / "file")
    assert torch.equal(torch.get_rng_state(), drawn)
    with pytest.raises(ValueError, match=reason):
        load(tmp_path / "file")
    torch.set_rng_state(seed)


def test_loops_over_arguments_and_nested_results(tmp_path: Path) -> None:
    model, x = Odd("more").eval(), torch.randn(3, 4)
    save(model, tmp_path / "file")
    loaded = load(tmp_path / "file")
    y, expected = loaded(x, z=x), model(x, z=x)
    assert torch.equal(y["y"], expected["y"]) and y["parts"][1] == expected["parts"][1]
    assert y["rest"] is x
    with pytest.raises(ValueError, match="argument 'times' must be 2"):
        loaded(x, 3, z=x)


# --- a model of the user


def test_a_forward_that_sets_what_it_reads_is_not_saved(tmp_path: Path) -> None:
    """A graph would leave the buffer as it is."""
    model = Remembers(rebinds_a_buffer).eval()
    with pytest.warns(UserWarning, match="sets 'mean', which a graph would leave"):
        save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", model=Remembers(rebinds_a_buffer))
    x = torch.randn(3, 20)
    for _ in range(2):
        torch.testing.assert_close(again(x), model(x))


def test_untraceable_model_is_loaded_into_its_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, path = Branches().eval(), image(5, 6), tmp_path / "branches"
    prune(model, sparsity=0.7)
    fast = packed(model, x)
    with pytest.warns(UserWarning, match=r"not the forward of Branches.*load\(path, model="):
        save(fast, path)
    with pytest.raises(ValueError, match=r"load: file .*branches.*model=Branches\(\.\.\.\)"):
        load(path)
    given = Branches()
    before = copy.deepcopy(given.state_dict())
    loaded: Any = load(path, given)
    assert type(loaded) is Branches and isinstance(loaded.head, SparseLinear)
    assert not loaded.training
    assert torch.equal(run(loaded, x), run(fast, x))
    assert loaded.report is not None
    with pytest.warns(UserWarning, match="TraceError"):
        save(model, path.with_name("dense"))
    dense: Any = load(path.with_name("dense"), given)
    assert dense.head2.weight is dense.head.weight and torch.equal(run(dense, x), run(model, x))
    assert type(given.head) is nn.Linear and given.training
    assert all(torch.equal(before[n], t) for n, t in given.state_dict().items())
    with pytest.raises(ValueError, match=r"'body\.0'.*\(8, 6\).*\(9, 6\)"):
        load(path, Branches(9))
    with pytest.raises(ValueError, match="holds a Branches, the given model is a Residual"):
        load(path, Residual())
    with pytest.raises(TypeError, match=r"load: model must be an nn.Module, got type"):
        load(path, Branches)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sequential", "residual", "tied", "attends", "gpt"])
def test_traceable_models_load_into_their_class_too(name: str, tmp_path: Path) -> None:
    model, x = make(name)
    fast = packed(model, x)
    save(fast, tmp_path / "file")
    given = NETWORKS[name][0]()
    loaded = load(tmp_path / "file", given)
    assert isinstance(loaded, type(given)) and torch.equal(run(loaded, x), run(fast, x))


def test_model_with_other_tensors_is_refused(tmp_path: Path) -> None:
    save(Residual(), tmp_path / "file")
    more, wide = Residual(), Residual()
    more.extra = nn.Linear(2, 2)
    wide.gain = nn.Parameter(torch.rand(2))
    with pytest.raises(ValueError, match=r"no tensors \['extra.bias', 'extra.weight'\]"):
        load(tmp_path / "file", more)
    with pytest.raises(ValueError, match=r"'gain' is \(1,\) in the file, \(2,\)"):
        load(tmp_path / "file", wide)
    del more.extra, more.bn1
    with pytest.raises(ValueError, match=r"given model has no .*bn1"):
        load(tmp_path / "file", more)
