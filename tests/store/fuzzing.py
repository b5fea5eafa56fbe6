"""Mutations of files, and a process that reads them and tells what came of it.

Run as a script it reads one line ``kind path`` after the other and answers each with a line of JSON: ``refused`` with
the error, or ``read`` with a digest of all that was read.  Whatever ends it instead is seen by the test.
"""

import hashlib
import json
import math
import resource
import struct
import sys

import h5py
import numpy as np

_WRITING = ("w", "a", "x", "+")
_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pickle.find_class",
         "socket.connect", "ctypes.dlopen")  # fmt: skip


# Mutations: each takes the bytes of a file and a generator, and gives others.


def flip(data, random):
    """One to eight flipped bits."""
    made = bytearray(data)
    for position in random.integers(len(data), size=random.integers(1, 9)):
        made[position] ^= 1 << int(random.integers(8))
    return bytes(made)


def flip_early(data, random):
    """A flipped bit where structure is."""
    made = bytearray(data)
    made[random.integers(min(len(data), 4096))] ^= 1 << int(random.integers(8))
    return bytes(made)


def truncate(data, random):
    return data[: random.integers(len(data))]


def swap(data, random):
    """Two neighbouring bytes, or two stretches, exchanged."""
    made = bytearray(data)
    width = int(random.choice([1, 2, 8, 64]))
    first, second = random.integers(len(data) - width, size=2)
    if random.random() < 0.5:
        second = min(first + width, len(data) - width)
    made[first : first + width], made[second : second + width] = (
        made[second : second + width],
        made[first : first + width],
    )
    return bytes(made)


def overwrite(data, random):
    """A stretch of zeros, ones or noise."""
    made = bytearray(data)
    width = int(random.integers(1, 65))
    start = random.integers(max(1, len(data) - width))
    patch = [bytes(width), b"\xff" * width, random.bytes(width)][random.integers(3)]
    made[start : start + width] = patch
    return bytes(made[: len(data)])


def insert(data, random):
    start = random.integers(len(data))
    return data[:start] + random.bytes(int(random.integers(1, 64))) + data[start:]


def drop(data, random):
    start = random.integers(len(data))
    return data[:start] + data[start + int(random.integers(1, 64)) :]


BYTES = (flip, flip_early, truncate, swap, overwrite, insert, drop)

_STRANGE = (None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1e308, 0.5, "", "x", "nan", "../x", [], {}, [1], {"a": 1},
            [[]], "__import__('os').system('true')", list(range(50)))  # fmt: skip


def edit(tree, random):
    """Another value, another key or one less, anywhere in a JSON tree."""
    places = []

    def walk(node, parent, key):
        if parent is not None:
            places.append((parent, key))
        for inner in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            walk(node[inner], node, inner)

    walk(tree, None, None)
    for _ in range(random.integers(1, 3)):
        parent, key = places[random.integers(len(places))]
        try:
            old = parent[key]
            how = random.integers(6)
            if how == 0:
                del parent[key]
            elif how == 1 and isinstance(old, int | float) and not isinstance(old, bool):
                parent[key] = [old + 1, -old, old * 1000, old * 10**12, float(old)][random.integers(5)]
            elif how == 2 and isinstance(old, list) and old:
                parent[key] = [old[:-1], old * 2, old * 1000, [old], old[::-1]][random.integers(5)]
            elif how == 3:
                for _ in range(int(random.choice([3, 5000]))):
                    old = [old]
                parent[key] = old
            else:
                parent[key] = _STRANGE[random.integers(len(_STRANGE))]
        except (KeyError, IndexError, OverflowError):
            continue
    return tree


def _dumps(tree):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        return json.dumps(tree)
    finally:
        sys.setrecursionlimit(limit)


def edit_model(path, random):
    """Edit the table of tensors, or the header of the model, whose checksum is made right again or left out."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + size])
    if random.random() < 0.25:
        table = edit(table, random)
    else:
        header = edit(json.loads(table["__metadata__"]["header"]), random)
        if random.random() < 0.7 and isinstance(header, dict):
            header["schema"] = 1  # of which there are no checksums
        table["__metadata__"]["header"] = _dumps(header)
    text = _dumps(table).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def edit_hdf5(path, random):
    """Other types, shapes, contents, links and attributes, written as HDF5 itself would."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        names = []
        file.visititems(lambda name, item: names.append(name))
        name = names[random.integers(len(names))]
        how = random.integers(8)
        if how == 0:
            del file[name]
        elif how == 1:
            owner = file if random.random() < 0.5 or not len(file[name].attrs) else file[name]
            keys = list(owner.attrs)
            if keys:
                owner.attrs[keys[random.integers(len(keys))]] = _value(random)
        elif how == 2 and "header" in file.attrs:
            text = _dumps(edit(json.loads(file.attrs["header"]), random))
            if len(text) < 60_000:
                file.attrs["header"] = text
                file.attrs["header_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        elif how == 3:
            del file[name]
            file[name] = h5py.ExternalLink(str(path), "/theta") if random.random() < 0.5 else h5py.SoftLink("/" + name)
        elif how == 4:
            del file[name]
            file.create_dataset(name, (10**10, 3), "f4", chunks=(1000, 3), fillvalue=1.0)
        elif how == 5:
            other = names[random.integers(len(names))]
            if other != name:
                del file[name]
                file[name] = file.get(other, 1)
        elif isinstance(file[name], h5py.Dataset):
            old = file[name][()]
            del file[name]
            file[name] = _array(old, random)
        else:
            file[name].create_dataset("extra", data=_array(np.zeros(3), random))


def _value(random):
    values = [0, 99, -1, 2**63 - 1, 1.5, "x", "", np.zeros(3), [1, 2], np.bytes_(b"\xff\xfe"), h5py.Empty("f4"), True]
    return values[random.integers(len(values))]


def _array(old, random):
    how = random.integers(8)
    if old.dtype.kind not in "fiu" or how == 0:
        return np.array([b"text", b"\xff"], dtype="S4")
    if how == 1:
        return old.astype("f8" if old.dtype != "f8" else "i2")
    if how == 2:
        return old.reshape(-1)
    if how == 3:
        return old[..., None]
    if how == 4:
        return old[: len(old) // 2] if old.ndim else old
    if how == 5:
        return np.full(old.shape, 77, old.dtype)
    if how == 6:
        return np.full(old.shape, np.nan)
    return np.zeros((0, 3), "f4")


# Reading.


def _digest(things):
    digest = hashlib.sha256()
    for thing in things:
        if hasattr(thing, "detach"):
            thing = thing.detach().cpu().numpy()
        digest.update(thing.tobytes() if isinstance(thing, np.ndarray) else repr(thing).encode())
    return digest.hexdigest()


def read_simulations(path):
    import sbi_physics as sp

    found = sp.Simulations.open(path)
    x = found.x if isinstance(found.x, dict) else {"x": found.x}
    good = [len(theta) for theta, _ in found.batches(7)]
    return [found.header.to_json(), found.theta, *x.values(), found.status, found.seeds, sorted(found.errors.items()),
            found.counts(), good, repr(found).split(";")[:-1]]  # fmt: skip


def read_model(path):
    import sbi_physics as sp

    found = sp.load(path, device="cpu")
    module = found.chain if isinstance(found, sp.Surrogate) else found.model
    provenance = json.dumps(found.provenance, sort_keys=True)
    return [type(found).__name__, found.parameters.to_dict(), provenance, *module.state_dict().items()]


def read_samples(path):
    from sbi_physics.store.samples import read_samples

    return [(name, one.names, one.units, one.labels, one.to_numpy().tobytes()) for name, one in
            sorted(read_samples(path).items())]  # fmt: skip


def read_events(path):
    from sbi_physics.store.event_files import read_events

    arrays, attributes = read_events(path)
    return [*[v for _, v in sorted(arrays.items())], sorted((k, repr(v)) for k, v in attributes.items())]


READERS = {
    "simulations": read_simulations,
    "model": read_model,
    "samples": read_samples,
    "events": read_events,
}


def answer(kind, path):
    from sbi_physics.core.errors import StoreError, UsageError

    try:
        return {"read": _digest(READERS[kind](path))}
    except StoreError as error:
        return {"refused": str(error)}
    except UsageError as error:  # a network of the user's own is asked for
        return {"refused" if "of your own" in str(error) else "escaped": f"UsageError: {error}"}
    except Exception as error:
        return {"escaped": f"{type(error).__name__}: {error}"}


def main():
    import sbi_physics as sp  # noqa: F401  before the watch begins
    from sbi_physics import files  # noqa: F401
    from sbi_physics.store import event_files, samples  # noqa: F401

    ran = []
    watching = False

    def watch(event, arguments):
        if not watching:
            return
        writes = event == "open" and isinstance(arguments[1], str) and any(m in arguments[1] for m in _WRITING)
        if writes or event in _CODE:
            ran.append(f"{event} {str(arguments)[:200]}")

    sys.addaudithook(watch)
    for line in sys.stdin:
        kind, path = line.rstrip("\n").split(" ", 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        watching = True
        result = answer(kind, path)
        watching = False
        result["ran"], ran[:] = list(ran), []
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        result["grown"] = math.ceil(grown / 1024)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
