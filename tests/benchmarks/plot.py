"""The benchmark as a picture: each figure beside what it must reach."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from tests.benchmarks.measure import Ratio


def draw(ratios: Sequence[Ratio], path: Path) -> None:
    """Bars of how far each figure is from its bound (1: just reached; less is missed)."""
    # A bound of zero has no margin: it is in the table.
    ratios = [ratio for ratio in ratios if ratio.bound]
    margins = [
        ratio.median / ratio.bound if ratio.at_least else ratio.bound / ratio.median
        for ratio in ratios
    ]
    figure, axes = plt.subplots(figsize=(10, 0.45 * len(ratios) + 1.2), layout="constrained")
    colors = ["#2a7f62" if margin >= 1 else "#b3412e" for margin in margins]
    places = range(len(ratios))
    axes.barh(places, margins, color=colors)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(places, [ratio.key for ratio in ratios])
    axes.invert_yaxis()
    axes.set_xlabel("times better than it must be")
    for place, (ratio, margin) in enumerate(zip(ratios, margins, strict=True)):
        sign = ">=" if ratio.at_least else "<="
        axes.text(
            max(margin, 1), place, f"  {ratio.median:.3g} ({sign} {ratio.bound:g})", va="center"
        )
    axes.set_xlim(right=max(margins) * 6)
    figure.savefig(path, dpi=120)
    plt.close(figure)
