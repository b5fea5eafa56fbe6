"""The part of the report on what simulating costs beyond the simulator."""

from typing import Any

from benchmarks.tables import table

__all__ = ["overhead", "programs", "streaming"]

_NAMES = {"npe": "NPE", "nle": "NLE", "surrogate": "surrogate"}


def overhead(result: dict[str, Any]) -> list[str]:
    """Microseconds a simulation by way of running, and the rate of the store."""
    times, store = result["overhead_microseconds"], result["store"]
    rows = [[way, f"{value:.1f}"] for way, value in times.items() if isinstance(value, float)]
    rates = [[way, f"{rate:,.0f}"] for way, rate in store["megabytes_a_second"].items()]
    return [
        "## Simulating and storing",
        f"Overhead of the engine above a simulator of 5 parameters and 100 outputs, {result['simulations']:,} "
        f"simulations in blocks of {result['block']:,}, from call to finished file, starts of processes included.",
        table(["way", "microseconds a simulation"], rows),
        f"Writing {store['rows']:,} rows of 5 + 100 numbers: {store['rate_over_plain']:.2f} of the rate of plain h5py, "
        f"{store['rate_over_plain_on_the_disk']:.2f} where that, too, waits for the disk.",
        table(["writer", "MB/s"], rates),
    ]


def programs(result: dict[str, Any]) -> list[str]:
    """Microseconds a run of a program that does nothing, by way of running it."""
    rows = [[way, f"{of['processor']:,.0f}", f"{of['clock']:,.0f}"] for way, of in result["microseconds"].items()]
    return [
        "## Programs as simulators",
        f"Runs of `{result['program']}`, which prints two numbers that are read, in "
        f"{len(next(iter(result['turns'].values())))} turns of {result['runs']} runs each.",
        table(["way", "microseconds of the processor a run", "of the clock, fastest turn"], rows),
    ]


def streaming(result: dict[str, Any]) -> list[str]:
    """Memory of fits to a file larger than that, and what reading from the disk costs an epoch."""
    epochs, large = result["epochs"], result["large"]
    found = [(words, large[name]) for name, words in _NAMES.items() if name in large]
    rows = [
        [words, f"{of['peak_resident_mb'] * 2**20 / 1e9:.2f}", f"{of['fit_of_one_epoch_s']:.0f}"] for words, of in found
    ]
    return [
        "## Training on what is larger than memory",
        f"Fits of one epoch on a file of {large['bytes'] / 1e9:.1f} GB, {large['rows']:,} rows; where both fit, an "
        f"epoch from the disk costs {epochs['ratio_of_clock']:.2f} times one in memory by the clock, and "
        f"{epochs['ratio_of_processor']:.2f} in seconds of the processor.",
        table(["fit", "most resident memory [GB]", "seconds"], rows),
    ]
