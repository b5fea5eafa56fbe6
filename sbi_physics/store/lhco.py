"""The R&D events of the LHC Olympics, with dijet masses of 3.3 to 3.7 TeV.

Kasieczka et al. 2021 (arXiv:2101.08320), with the features of Nachman and Shih 2020 (arXiv:2001.04990) in the split of
Hallin et al. 2021 (arXiv:2109.00546): background of quarks and gluons, and W' -> X Y at 3.5 TeV with X and Y of 0.5 and
0.1 TeV.  `train` and `test` together are the complete region; `extra_signal` is for scoring alone.
"""

from dataclasses import dataclass

from torch import Tensor

from sbi_physics.store.datasets import fetch
from sbi_physics.store.tables import read_table

__all__ = ["LHCO_FEATURES", "LHCOlympics", "LabelledEvents", "load_lhco"]

LHCO_FEATURES = ("m_J1", "delta_m", "tau21_J1", "tau21_J2")
_COLUMNS = ("m_JJ", *LHCO_FEATURES, "label")
_FILES = {
    "train": "innerdata_train.npy",
    "test": "innerdata_test.npy",
    "extra_signal": "innerdata_extrasig_val.npy",
}


@dataclass(frozen=True)
class LabelledEvents:
    """Events of which it is known what they are.

    Attributes:
        features: ``(n, 4)``, the columns of `LHCO_FEATURES`: mass of the lighter jet and difference of both masses
            [TeV], tau21 of the lighter and the heavier jet.
        mass: the dijet mass ``(n,)`` [TeV].
        labels: 1 for signal, 0 for background, ``(n,)``; for scoring alone.
    """

    features: Tensor
    mass: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.mass)


@dataclass(frozen=True)
class LHCOlympics:
    """The three files.

    Attributes:
        train: 60,000 events, 395 of them signal.
        test: 62,124 events, 377 of them signal.
        extra_signal: 27,264 further events of signal.
    """

    train: LabelledEvents
    test: LabelledEvents
    extra_signal: LabelledEvents


def load_lhco(*, progress: bool = True) -> LHCOlympics:
    """Fetch and read the events.

    Args:
        progress: whether to show a bar while downloading.

    Raises:
        StoreError: the files are neither here nor to be had.
    """
    paths = fetch("lhco", progress=progress)
    parts = {}
    for part, file in _FILES.items():
        table = read_table(paths[file], names=_COLUMNS)
        parts[part] = LabelledEvents(table.stack(LHCO_FEATURES), table["m_JJ"], table["label"].long())
    return LHCOlympics(**parts)
