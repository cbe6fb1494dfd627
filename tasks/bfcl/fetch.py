"""Find the official package, or fetch it: exactly one release, checked by hash, never installed.

Its own pins cannot live beside torch, so it is no dependency: pip downloads the wheel alone, through the
user's own configuration, and it is unpacked into the cache. ``python -m shiq_bench.tasks.bfcl.fetch`` does so by hand.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from shiq_bench import UserError
from shiq_bench.records.cache import cached_folder, home
from shiq_bench.records.hashing import stable_hash

VERSION = "2025.7.17"
SHA256 = "1982d6804db2389d9f241d5ded49286ca47d9654fc518ea70857f5051217f88b"
KEY = {"package": "bfcl-eval", "version": VERSION, "sha256": SHA256}


def locate() -> Path:
    """The folder that holds ``bfcl_eval/``: an installed copy of the exact version, else the cache.

    Raises:
        UserError: nothing is cached and the package index cannot be reached, or the file is another one.
    """
    return _installed() or cached_folder("bfcl", KEY, _download)


def unpack(wheel: Path, folder: Path, sha256: str = SHA256) -> None:
    """Check the hash of ``wheel`` and every path inside it, then unpack it into ``folder``.

    Raises:
        UserError: another file than expected, or an entry that would land outside ``folder``.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise UserError(f"{wheel.name} has hash {found[:12]}…, expected {sha256[:12]}…: refused, nothing was unpacked")
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                path = PurePosixPath(entry.filename)
                link = stat.S_ISLNK(entry.external_attr >> 16)
                if link or path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
                    raise UserError(f"{wheel.name} holds the path {entry.filename!r}: refused, nothing was unpacked")
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise UserError(f"{wheel.name} is no wheel: {error}") from None


def _installed() -> Path | None:
    try:
        package = importlib.metadata.distribution("bfcl-eval")
    except importlib.metadata.PackageNotFoundError:
        return None
    root = Path(str(package.locate_file("")))
    # An editable install has its files elsewhere; the cache then serves.
    return root if package.version == VERSION and (root / "bfcl_eval" / "data").is_dir() else None


def _download(folder: Path) -> None:
    """Fill ``folder`` with the unpacked wheel."""
    print(f"bfcl: fetching bfcl-eval {VERSION} (1.7 MB, once) into {home() / 'bfcl'}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        requirements = temporary / "requirements.txt"
        requirements.write_text(f"bfcl-eval=={VERSION} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--no-deps", "--require-hashes", "-r", str(requirements), "-d", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(temporary.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise UserError(_advice(done.stderr))
        unpack(wheels[0], folder)


def _advice(stderr: str) -> str:
    """One line: what pip said, what to run where there is a network, which folder to copy."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"bfcl-eval {VERSION} from the package index has another hash than {SHA256[:12]}…: refused"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "pip said nothing")
    cache = home() / "bfcl" / stable_hash(KEY)[:24]
    return (
        f"bfcl-eval {VERSION} is not cached and could not be fetched ({said[:160]}): where there is a network run "
        f"`python -m shiq_bench.tasks.bfcl.fetch`, then copy the folder it prints to {cache}"
    )


if __name__ == "__main__":
    try:
        print(locate())
    except UserError as problem:
        sys.exit(f"error: {problem}")
