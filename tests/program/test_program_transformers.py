"""Models of Hugging Face transformers: graphs and programs for what convert makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from sparseprune import convert, prune
from sparseprune.io import load, save
from sparseprune.program.planned import Planned

transformers: Any = pytest.importorskip("transformers")

TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "vocab_size": 50}  # fmt: skip
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "image_size": 16, "patch_size": 4}  # fmt: skip
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50}
SHARED = {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32}


def of(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()


def words(**more: Any) -> dict[str, Any]:
    return {"input_ids": torch.randint(2, 50, (2, 10)), **more}


def padded() -> dict[str, Any]:
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:] = 0
    return words(attention_mask=mask)


def pixels() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "bert": (of("BertModel", "BertConfig", **TEXT), words),
    "bert_padded": (of("BertModel", "BertConfig", **TEXT), padded),
    "bert_eager": (of("BertModel", "BertConfig", attn_implementation="eager", **TEXT), padded),
    "bert_classes": (of("BertForSequenceClassification", "BertConfig", **TEXT), padded),
    "distilbert": (of("DistilBertModel", "DistilBertConfig", **DISTIL), padded),
    "roberta": (of("RobertaModel", "RobertaConfig", **TEXT), padded),
    "vit": (of("ViTModel", "ViTConfig", **IMAGE), pixels),
    "vit_classes": (of("ViTForImageClassification", "ViTConfig", **IMAGE), pixels),
    "deit": (of("DeiTModel", "DeiTConfig", **IMAGE), pixels),
}
models = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs wherever they exist, whatever their time."""
    monkeypatch.setenv("SPARSEPRUNE_TUNE", "0")


def made(name: str) -> tuple[nn.Module, Any, dict[str, Any]]:
    """A pruned model, the same converted, and its example."""
    torch.manual_seed(0)
    build, example = MODELS[name]
    model, inputs = build(), example()
    prune(model, 0.8)
    return model, convert(model, inputs, keep_dense="never"), inputs


def check(model: nn.Module, fast: nn.Module, inputs: dict[str, Any]) -> None:
    """The same type with the same contents."""
    with torch.no_grad():
        got, form = pytree.tree_flatten(fast(**inputs))
        expected, wanted = pytree.tree_flatten(model(**inputs))
    assert form == wanted
    for mine, its in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


def batches(inputs: dict[str, Any], count: int) -> dict[str, Any]:
    return {n: torch.cat([x[:1]] * count) for n, x in inputs.items()}


@models
def test_programs_serve_every_batch(name: str) -> None:
    model, fast, inputs = made(name)
    assert isinstance(fast, Planned) and fast._program_names
    assert not any("graph" in n or "programs" in n or "fx" in n for n in fast.report.notes)
    for given in (inputs, batches(inputs, 1), batches(inputs, 3)):
        assert fast._programmed((), given) is not None
        check(model, fast, given)


@models
def test_other_lengths_masks_and_outputs(name: str) -> None:
    model, fast, inputs = made(name)
    if "input_ids" in inputs:
        shorter = {n: x[:, :7] for n, x in inputs.items()}
        assert fast._programmed((), shorter) is not None
        check(model, fast, shorter)
        check(model, fast, {"input_ids": inputs["input_ids"]})
        full = torch.ones_like(inputs["input_ids"])
        for mask in (full, full.tril(4), full.clone().fill_(0)):
            check(model, fast, inputs | {"attention_mask": mask})
    check(model, fast, inputs | {"output_hidden_states": True})
    check(model, fast, inputs | {"return_dict": False})


@pytest.mark.parametrize("name", ["bert_padded", "vit"])
def test_files_keep_the_programs(name: str, tmp_path: Path) -> None:
    _, fast, inputs = made(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "save: the file holds the layers but not the forward")
        save(fast, tmp_path / "file")
    loaded: Any = load(tmp_path / "file", MODELS[name][0]())
    assert isinstance(loaded, Planned) and loaded._programmed((), inputs) is not None
    for given in (inputs, batches(inputs, 3)):
        check(fast, loaded, given)


@pytest.mark.parametrize("name", ["GPT2Model", "GPT2LMHeadModel"])
def test_gpt2_without_cache(name: str) -> None:
    """Its layers are of a class of its own, which prune leaves and convert knows."""
    torch.manual_seed(0)
    model = of(name, "GPT2Config", use_cache=False, **GPT)()
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "Conv1D":
                module.weight.mul_(torch.rand_like(module.weight) > 0.8)
    inputs = padded()
    fast: Any = convert(model, inputs, keep_dense="never")
    assert isinstance(fast, Planned)
    for given in (inputs, batches(inputs, 3), {n: x[:, :5] for n, x in inputs.items()}):
        assert fast._programmed((), given) is not None
        check(model, fast, given)
    check(model, fast, {"input_ids": inputs["input_ids"]})


def test_a_cache_that_is_given_back_is_refused_with_a_reason() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_key_value_heads=2, **TEXT)
    model = transformers.LlamaModel(config).eval()
    prune(model, 0.8)
    inputs = words()
    fast: Any = convert(model, inputs, keep_dense="never")
    assert not isinstance(fast, Planned)
    assert any("DynamicCache" in note for note in fast.report.notes)
    with torch.no_grad():
        torch.testing.assert_close(fast(**inputs)[0], model(**inputs)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "StableLm", "GPTNeoX"])
def test_decoders_without_cache_are_one_program(name: str, eager: bool) -> None:
    torch.manual_seed(0)
    settings = TEXT | {"use_cache": False} | ({} if name == "GPTNeoX" else SHARED)
    settings["attn_implementation"] = "eager" if eager else "sdpa"
    model = of(f"{name}Model", f"{name}Config", **settings)()
    prune(model, 0.8)
    inputs = padded()
    fast: Any = convert(model, inputs, keep_dense="never")
    assert isinstance(fast, Planned) and len(fast._program_names) == 1
    for given in (inputs, batches(inputs, 3), {n: x[:, :5] for n, x in inputs.items()}):
        assert fast._programmed((), given) is not None
        check(model, fast, given)
