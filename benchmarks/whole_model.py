"""The CNN of benchmarks/whole.py, which both environments load: it needs PyTorch alone."""

from __future__ import annotations

import itertools

import torch

NAME = "images"
SHAPE = (8, 3, 64, 64)
"""Of the example, and of the calls that are timed: eight images of 64 x 64 in colour."""

_WIDTHS = (3, 32, 64, 128, 192)


class SmallCnn(torch.nn.Module):
    """Four convolutions with stride 2 and a head: 320,058 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(
            *(
                torch.nn.Sequential(
                    torch.nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False),
                    torch.nn.BatchNorm2d(wide),
                    torch.nn.ReLU(),
                )
                for narrow, wide in itertools.pairwise(_WIDTHS)
            )
        )
        self.head = torch.nn.Linear(_WIDTHS[-1], 26)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits for a batch of images.

        Args:
            images: float32 [N, 3, 64, 64].

        Returns:
            float32 [N, 26].
        """
        logits: torch.Tensor = self.head(self.blocks(images).mean((2, 3)))
        return logits


def build(_path: str | None = None) -> SmallCnn:
    """The CNN with random weights, always the same; Olive passes a path."""
    torch.manual_seed(0)
    return SmallCnn().eval()


def example() -> torch.Tensor:
    """Eight images of standard normal numbers, always the same."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
