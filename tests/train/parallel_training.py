"""What `test_parallel` starts with torchrun: fit a flow, and write what each process found."""

import json
import sys
from pathlib import Path

import torch

import sbi_physics as sp
from sbi_physics.train.config import TrainConfig


def main(folder: str) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(600, 2, generator=generator)
    x = theta + 0.3 * torch.randn(600, 2, generator=generator)
    weights = 0.5 + torch.rand(600, generator=generator)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    config = TrainConfig(epochs=4, batch_size=64)
    found = {}
    for ensemble in (1, 2):
        npe = sp.NPE(prior, ensemble=ensemble, config=config, transforms=2, hidden_features=16, blocks=1, bins=4)
        checkpoint = str(Path(folder) / "checkpoint.st")
        posterior = npe.fit(theta, x, weights=weights, seed=1, checkpoint=checkpoint, progress=False)
        found[ensemble] = {
            "training": posterior.provenance["training"],
            "log_prob": posterior.log_prob(theta[:50], x[:50]).tolist(),
        }
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
