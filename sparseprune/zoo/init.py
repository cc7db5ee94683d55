"""Random starting weights, so that signals neither vanish nor explode in deep networks."""

from __future__ import annotations

from torch import nn


def he_(model: nn.Module) -> nn.Module:
    """w ~ N(0, 2 / fan_in) in every convolution and linear layer. (He et al., 2015)

    Biases keep torch's small random values: a kernel that forgets a bias then shows in the output.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    return model


def bert_(model: nn.Module) -> nn.Module:
    """w ~ N(0, 0.02^2) in linear layers and embeddings, biases zero. (BERT and GPT-2)"""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            nn.init.normal_(layer.weight, std=0.02)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model
