"""Makes inputs: by atheris, which follows coverage, or where that is not to be had by mutation of good inputs.

What is done with them is in ``targets``. A crash is written to the corpus, for ``test_fuzz`` to try again ever after.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parent / "corpus"
INPUT_BYTES_MAX: Final = 4096
ONE_INPUT_SECONDS: Final = 10
"""No input may take longer: who sends it would hold up everybody."""

_JUNK: Final = (
    b"", b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"(", b")", b"'", b"%",
    b"\n", b"null", b"-1", b"1e400", b"9" * 400, b"\\ud800", b"\\u0000", b"[" * 300, b"(" * 300, b"\xff\xff\xff\xff",
)  # fmt: skip


def run_by_mutation(name: str, *, runs: int, seconds: float = 0.0, seed: int = 1) -> int:
    """Try ``runs`` inputs, the same for the same ``seed``, or as many as fit in ``seconds``. How many it were."""
    from tests.fuzz.targets import TARGETS

    found = TARGETS[name]
    dice = random.Random(seed)
    good = [*found.seeds, *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]
    ends = time.monotonic() + seconds if seconds else None
    done = 0
    while time.monotonic() < ends if ends is not None else done < runs:
        data = mutated(dice, good)
        with contextlib.suppress(*found.allowed):
            try:
                found.run(data)
            except found.allowed:
                raise
            except BaseException:
                keep(name, data)
                raise
        done += 1
    return done


def mutated(dice: random.Random, good: list[bytes]) -> bytes:
    """A good input with a few changes, or spliced with another one."""
    data = bytearray(dice.choice(good))
    for _ in range(dice.randint(1, 6)):
        at = dice.randint(0, len(data))
        match dice.randrange(6):
            case 0:
                data[at:at] = dice.choice(_JUNK)
            case 1:
                del data[at : at + dice.randint(1, 8)]
            case 2:
                data[at : at + 1] = dice.randbytes(dice.randint(1, 3))
            case 3:
                other = dice.choice(good)
                start = dice.randint(0, len(other))
                data[at:at] = other[start : start + dice.randint(1, 40)]
            case 4:
                data[at:at] = data[at : at + dice.randint(1, 20)] * dice.randint(1, 4)
            case _:
                if at < len(data):
                    data[at] ^= 1 << dice.randrange(8)
    return bytes(data[:INPUT_BYTES_MAX])


def keep(name: str, data: bytes) -> Path:
    """Write an input to the corpus."""
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def run_by_coverage(name: str, learned_in: str, *, runs: int = 0, seconds: int = 0, seed: int = 0) -> None:
    """Fuzz until ``runs`` inputs or ``seconds`` are done; ends the process. Raises ImportError without atheris.

    ``learned_in``: a directory for inputs that lead somewhere new.
    """
    import atheris

    with atheris.instrument_imports(include=["walstream", "jsonschema"]):
        from tests.fuzz.targets import TARGETS
    found = TARGETS[name]

    def one(data: bytes) -> None:
        with contextlib.suppress(*found.allowed):
            found.run(data)

    crashes = CORPUS / name
    crashes.mkdir(parents=True, exist_ok=True)
    arguments = [
        "fuzz", f"-artifact_prefix={crashes}/", f"-max_len={INPUT_BYTES_MAX}", f"-timeout={ONE_INPUT_SECONDS}",
        "-rss_limit_mb=1500", f"-seed={seed}", "-print_final_stats=1", "-verbosity=0" if runs else "-verbosity=1",
    ]  # fmt: skip
    arguments += [f"-runs={runs}"] if runs else []
    arguments += [f"-max_total_time={seconds}"] if seconds else []
    # What it finds interesting goes to a directory of its own; the corpus has what once was a crash.
    learned = Path(learned_in) / name
    learned.mkdir(parents=True, exist_ok=True)
    for number, seed_ in enumerate(found.seeds):
        (learned / f"seed-{number}").write_bytes(seed_)
    atheris.Setup([*arguments, str(learned), str(crashes)], one)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """``engine.py [TARGET] [--seconds N | --runs N] [--seed N] [--list]``, all targets by default."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz what reads strangers' bytes.")
    parser.add_argument("target", nargs="?", help="one of those that --list names; all in turn by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--runs", type=int, default=0, help="inputs for each target, instead of a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learned", help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args(arguments)
    if given.learned is not None:
        _fuzz(given)
        return 0
    return _each_in_a_process(given)


def _fuzz(given: argparse.Namespace) -> None:
    seconds = 0 if given.runs else given.seconds
    try:
        run_by_coverage(given.target, given.learned, runs=given.runs, seconds=seconds, seed=given.seed)
    except ImportError:
        print(f"{given.target}: no atheris for this Python: by mutation alone", file=sys.stderr)
        done = run_by_mutation(given.target, runs=given.runs, seconds=seconds, seed=given.seed)
        print(f"{given.target}: {done} inputs", file=sys.stderr)


def _each_in_a_process(given: argparse.Namespace) -> int:
    """The fuzzer ends its process."""
    from tests.fuzz.targets import TARGETS

    if given.list:
        print("\n".join(TARGETS))
        return 0
    if given.target is not None and given.target not in TARGETS:
        print(f"no target {given.target!r}; there are: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    failed = []
    bounds = ["--runs", str(given.runs)] if given.runs else ["--seconds", str(given.seconds)]
    with tempfile.TemporaryDirectory(prefix="walstream-fuzz-") as learned:
        for name in [given.target] if given.target is not None else TARGETS:
            print(f"--- {name}", file=sys.stderr)
            further = [*bounds, "--seed", str(given.seed), "--learned", learned]
            done = subprocess.run([sys.executable, "-m", "tests.fuzz.engine", name, *further], check=False)
            if done.returncode:
                failed.append(name)
    if failed:
        print(f"found something: {', '.join(failed)}; see tests/fuzz/corpus", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
