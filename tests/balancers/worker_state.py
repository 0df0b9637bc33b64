"""Resume every case of `test_state` in a new process, and save how it goes on.

python worker_state.py FOLDER    # FOLDER/saved.pt holds the options, the state to load and the batches to go on with
"""

import sys
from pathlib import Path

import torch
from integration import Training


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    resumed = {}
    for name, case in torch.load(folder / "saved.pt", weights_only=True).items():
        training = Training.make(**case["make"], seed=1)
        training.load_state_dict(case["state"])
        weights = training.run(case["batches"], case["names"])
        resumed[name] = {"weights": weights, "state": training.state_dict()}
    torch.save(resumed, folder / "resumed.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
