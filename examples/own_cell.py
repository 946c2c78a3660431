"""A cell of your own in a forecaster: one `step`, and everything else comes along."""

import torch

import ostinato as ot
from ostinato.data.bundled import load_bundled


class LeakyCell(ot.Cell):
    """A leaky integrator of a tanh layer: h' = (1 - a)·h + a·tanh(W [x, h]), with a learned rate a."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.mix = torch.nn.Linear(input_size + hidden_size, hidden_size)
        self.rate = torch.nn.Parameter(torch.zeros(hidden_size))

    def step(self, x: torch.Tensor, state: ot.State) -> tuple[torch.Tensor, ot.State]:
        """One tick."""
        a = torch.sigmoid(self.rate)
        h = (1 - a) * state["h"] + a * torch.tanh(self.mix(torch.cat([x, state["h"]], dim=-1)))
        return h, ot.State(h=h)


def main() -> None:
    passengers = load_bundled("airpassengers")
    forecaster = ot.Forecaster(12, cell=LeakyCell, members=1, test=12, steps=30, progress="quiet")
    forecaster.fit(passengers)
    for name, scores in (forecaster.metrics_["model"] | forecaster.metrics_["baselines"]).items():
        print(f"{name:16s} MASE {scores['mase']:.3f}")


if __name__ == "__main__":
    main()
