"""Offline data as a folder to keep, share and look at: written by ``shiq-bench data build``, trained from by ``run``.

Nothing here imports torch or transformers, so that looking at data is quick.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import math
import os
import random
import shlex
import shutil
import unicodedata
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shiq_bench.records import Trajectory, UserError, stable_hash

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from shiq_bench.api import Task

#: Version of the folder. Readers refuse a newer one by name.
DATASET_VERSION = 2
KIND = "shiq-bench dataset"
DATA, MANIFEST, CARD, TOKENIZER = "data.parquet", "dataset.json", "README.md", "tokenizer"
#: Digits of the hash of ``data.parquet`` that enter the identity of a run.
HASH = 16

#: Column -> its type and what it holds. One row is a trajectory.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "prompt_id": ("string", "the task's prompt; trajectories that share it form a group"),
    "token_ids": ("list<int32>", "prompt, actions and observations in order, as ids of the tokenizer in `tokenizer/`"),
    "action_mask": ("list<bool>", "true where the policy emitted the token"),
    "rewards": ("list<double>", "reward credited at each token, zero off the actions"),
    "sampler_logp": (
        "list<double>",
        "log-probability (nats) of each action under its sampler, zero elsewhere; or null",
    ),
    "truncated": ("bool", "the dialogue was cut by a limit rather than ended by the policy"),
    "source": ("string", "who acted: `reference` (sampled), `gold` (the task's demonstration), or the task's own"),
    "weight": ("double", "weight in expectations"),
    "rank": ("double", "what preference methods compare by, higher preferred; null: the return"),
    "text": ("string", "all tokens decoded, for people: nothing is trained from it"),
    "total_reward": ("double", "the return: sum of `rewards`"),
}
#: Settings of the run that decide a dataset, and what it takes to draw it.
BUILD = (
    "model", "revision", "trust_remote_code", "samples", "gold", "data_seed", "engine", "max_tokens", "max_length",
    "gpu_memory",
)  # fmt: skip
#: What the record of a run says about the dataset it was trained from.
ORIGIN = (
    "sha256", "model", "weights_hash", "tokenizer_hash", "task_options", "split", "samples", "gold", "data_seed",
    "max_tokens", "max_length", "source_hash", "git_commit",
)  # fmt: skip
_REQUIRED: Mapping[str, type] = {
    "task": str, "task_options": dict, "samples": int, "gold": bool, "data_seed": int, "sha256": str,
    "weights_hash": str, "tokenizer_hash": str, **dict.fromkeys(("model", "split"), str),
}  # fmt: skip
#: Licences that the hubs' cards have a key for, as far as data of tasks are likely to carry them.
_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by", "odbl", "gpl-3.0", "unlicense",
)  # fmt: skip


class Decoder(Protocol):
    """What both a bare tokenizer and one of transformers can do."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str: ...


# --- what is counted -----------------------------------------------------------------------------


def describe(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Counts and mean returns (weighted, by source), as a record and a manifest say them."""
    returns: dict[str, list[tuple[float, float]]] = {}  # weight and return
    for t in trajectories:
        returns.setdefault(t.source, []).append((t.weight, t.total_reward))
    return {
        "trajectories": len(trajectories),
        "prompts": len({t.prompt_id for t in trajectories}),
        "by_source": {s: len(rs) for s, rs in returns.items()},
        "mean_return": {s: sum(w * r for w, r in rs) / sum(w for w, _ in rs) for s, rs in returns.items()},
        "truncated": sum(t.truncated for t in trajectories),
        "action_tokens": sum(sum(t.action_mask) for t in trajectories),
    }


def histogram(returns: Sequence[tuple[str, float]], most: int = 10) -> list[tuple[str, dict[str, int]]]:
    """How often each return occurs, by source, in ascending order: the values themselves, or ``most`` equal bins.

    Args:
        returns: source and return of each trajectory.
        most: distinct values up to which none are thrown together.

    Returns:
        A label and the counts by source, a row. Counts add up to the trajectories.
    """
    values = sorted({r for _, r in returns})
    if len(values) <= most:
        names = [f"{v:.6g}" for v in values]
        # Values that differ in later digits than are printed share a row.
        place = dict(zip(values, names, strict=True))
        names = list(dict.fromkeys(names))
        found = Counter((place[r], s) for s, r in returns)
    else:
        low, width = values[0], (values[-1] - values[0]) / most
        ends = [f"{low + i * width:.4g}" for i in range(most + 1)]
        names = [f"{ends[i]} to {ends[i + 1]}" for i in range(most)]
        found = Counter((names[min(most - 1, int((r - low) / width))], s) for s, r in returns)
    sources = sorted({s for s, _ in returns})
    return [(name, {s: found[name, s] for s in sources}) for name in names]


# --- writing -------------------------------------------------------------------------------------


def check_free(out: Path) -> None:
    """Find out before anything is drawn whether a dataset can be put at ``out``.

    Raises:
        UserError: something is there already, the folder above cannot be written, or it can have no such name.
    """
    try:
        if out.is_symlink() or out.exists():
            if not out.is_dir() or out.is_symlink():
                raise UserError(f"{out} is no folder; expected one to be made: give another --out")
            if any(out.iterdir()):
                raise UserError(f"{out} is not empty, and nothing is overwritten: give another --out, or move it away")
        above = next(p for p in out.absolute().parents if p.exists())
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror or error}: give another --out") from error
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot make {out}: {above} cannot be written: give another --out")


def train_command(manifest: Mapping[str, Any], folder: str) -> str:
    """What to type to train from the dataset in ``folder``.

    The words that made it, for its model, plugins, limits and options of the task are those to train with.
    """
    words = shlex.split(manifest["command"])  # shiq-bench data build ...
    at = words.index("--out")
    return shlex.join(["shiq-bench", "run", "--algo", "shiq", *words[3:at], "--data", folder, *words[at + 2 :]])


def tokenizer_hash(tokenizer: Any) -> str:
    """What the ids and the turns of a dialogue mean: vocabulary, added tokens included, and chat template."""
    return stable_hash({"vocabulary": tokenizer.get_vocab(), "template": tokenizer.chat_template})


def write_dataset(
    out: Path, trajectories: Sequence[Trajectory], tokenizer: Any, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the folder whole or not at all; the same data give the same bytes.

    Args:
        out: absent or empty.
        trajectories: in the order that training groups them by.
        tokenizer: of transformers; its files come along.
        origin: where they are from: settings and versions, ``task``, ``licence``, ``notes`` and the ``command``.

    Returns:
        The manifest: ``origin`` with hashes and counts.

    Raises:
        UserError: ``out`` is taken, or cannot be written.
    """
    check_free(out)
    temporary = out.absolute().parent / f".shiq-bench.{os.getpid()}"  # shorter than a name that is just not too long
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        tokenizer.save_pretrained(temporary / TOKENIZER)
        data = _parquet(trajectories, _decoder(temporary))
        manifest = {
            **origin,
            "kind": KIND,
            "schema_version": DATASET_VERSION,
            "sha256": hashlib.sha256(data).hexdigest(),
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "counts": describe(trajectories),
            "packages": {**origin.get("packages", {}), "pyarrow": version("pyarrow")},
        }
        (temporary / DATA).write_bytes(data)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n")
        (temporary / CARD).write_text(_card(manifest, [(t.source, t.total_reward) for t in trajectories]))
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}: give another --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _schema() -> Any:
    import pyarrow as pa

    plain = {"string": pa.string(), "bool": pa.bool_(), "int32": pa.int32(), "double": pa.float64()}
    kinds = {**plain, **{f"list<{name}>": pa.list_(kind) for name, kind in plain.items()}}
    return pa.schema([(name, kinds[kind]) for name, (kind, _) in COLUMNS.items()])


def _parquet(trajectories: Sequence[Trajectory], decoder: Decoder) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def value(t: Trajectory, name: str) -> Any:
        if name == "text":
            return decoder.decode(list(t.token_ids), skip_special_tokens=False)
        return getattr(t, name)

    schema = _schema()
    columns = [pa.array([value(t, field.name) for t in trajectories], field.type) for field in schema]
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), file, compression="zstd", row_group_size=1024)
    return file.getvalue()


def _card(manifest: Mapping[str, Any], returns: Sequence[tuple[str, float]]) -> str:
    """The card of a hub, made of the manifest and of nothing else but the returns."""
    import yaml

    counts, licence = manifest["counts"], str(manifest.get("licence", ""))
    first = (licence.replace(",", " ").replace(":", " ").split() or [""])[0].lower()
    size = next((n for n in (1_000, 10_000, 100_000, 1_000_000) if counts["trajectories"] < n), None)
    sizes = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", None: "n>1M"}
    head: dict[str, Any] = {
        "pretty_name": f"Offline trajectories of {manifest['task']}",
        **({"license": first} if first in _LICENCES else {}),
        "tags": ["reinforcement-learning", "offline-rl", "shiq-bench"],
        "task_categories": ["text-generation"],
        "size_categories": [sizes[size]],
        "configs": [{"config_name": "default", "data_files": DATA}],
    }
    sources = sorted(counts["by_source"])
    options = ", ".join(f"{k}={v}" for k, v in manifest["task_options"].items())
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# Offline trajectories of `{manifest['task']}`",
        f"Dialogues of the task `{manifest['task']}` ({options or 'no options'}), split `{manifest['split']}`, as "
        "token ids with an action mask and a reward at every token. Asked for were "
        f"{manifest['samples']} completions a prompt of the model `{manifest['model']}` (weights "
        f"`{manifest['weights_hash'][:HASH]}`, data seed {manifest['data_seed']}), and the task's own trajectories"
        f"{' or else its demonstrations' if manifest['gold'] else ', where it has any'}.",
        f"## Made by\n\n```sh\n{manifest['command']}\n```\n\n"
        f"at commit `{manifest.get('git_commit') or 'unknown'}`; `{MANIFEST}` holds every setting, version and hash.",
        f"## Use\n\n```sh\nshiq-bench data show FOLDER\n{train_command(manifest, 'FOLDER')}\n```\n\n"
        f'```python\ndatasets.load_dataset("parquet", data_files="FOLDER/{DATA}")\n```',
        "## Columns\n\n"
        + _markdown(["column", "type", "meaning"], [[f"`{n}`", k, what] for n, (k, what) in COLUMNS.items()]),
        "## Counts\n\n"
        + _markdown(
            ["source", "trajectories", "mean return"],
            [[_cell(s), counts["by_source"][s], f"{counts['mean_return'][s]:.4g}"] for s in sources],
        )
        + f"\n\n{counts['trajectories']} trajectories of {counts['prompts']} prompts, {counts['action_tokens']} action "
        f"tokens, {counts['truncated']} truncated. Mean returns are weighted by `weight`.",
        "## Returns\n\nTrajectories by return and source.\n\n"
        + _markdown(
            ["return", *map(_cell, sources)], [[name, *(n[s] for s in sources)] for name, n in histogram(returns)]
        ),
        f"## Licence and source\n\n{licence or 'The task states none.'}",
    ]
    if manifest.get("notes"):
        parts.append("## Known oddities\n\n" + "\n".join(f"- {' '.join(str(n).split())}" for n in manifest["notes"]))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# --- reading -------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a dataset says of itself; the data are not looked at.

    Raises:
        UserError: there is no dataset, or one of a newer schema.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "holds no dataset" if folder.is_dir() else "is no folder"
        expected = f"expected one made by `shiq-bench data build --task TASK --out {folder}`"
        raise UserError(f"{folder} {what}: {expected}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise UserError(f"{path} is no manifest of a dataset: expected the kind {KIND!r}")
    version = manifest.get("schema_version")
    if not isinstance(version, int) or version > DATASET_VERSION:
        raise UserError(f"{path}: schema {version} is newer than {DATASET_VERSION}: upgrade shiq-bench")
    if wrong := [name for name, kind in _REQUIRED.items() if not isinstance(manifest.get(name), kind)]:
        raise UserError(f"{path} does not say {', '.join(wrong)}: build the dataset again")
    return {**dict.fromkeys(ORIGIN), **manifest}


def check_dataset(folder: Path, task: Task) -> None:
    """What can be told before a model is there: a dataset that is whole, of nothing but the task's training prompts.

    Raises:
        UserError: it is damaged, or holds other prompts.
    """
    rows, allowed = _table(folder, read_manifest(folder)), set(task.prompts("rl"))
    for n, prompt_id in enumerate(rows.column("prompt_id").to_pylist()):
        _check_prompt(folder, n, prompt_id, allowed, task)


def _check_prompt(folder: Path, n: int, prompt_id: str, allowed: Container[str], task: Task) -> None:
    if prompt_id not in allowed:
        where = "held out for evaluation" if prompt_id in task.prompts("heldout") else "no prompt of this task"
        raise UserError(
            f"row {n} of {folder / DATA}: prompt {prompt_id!r} is {where}; "
            "expected prompts of the split rl alone: build the dataset with this task's options"
        )


def _table(folder: Path, manifest: Mapping[str, Any]) -> Any:
    """The rows, undamaged and of the right columns and types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / DATA
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}: build the dataset again") from error
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise UserError(f"{path} is damaged: it is not the file that {MANIFEST} was written for; build it again")
    try:
        found = pq.ParquetFile(pa.BufferReader(data)).read()
    except pa.ArrowException as error:
        raise UserError(f"{path} is no parquet file: {' '.join(str(error).split())}") from error
    for field in _schema():
        kind = COLUMNS[field.name][0]
        if field.name not in found.column_names:
            raise UserError(f"{path} has no column {field.name!r}; expected one of type {kind}")
        column = found.column(field.name)
        if column.type != field.type:
            raise UserError(f"{path}: column {field.name!r} is of type {column.type}; expected {kind}")
        holes = column.null_count if field.name not in ("sampler_logp", "rank") else 0
        if pa.types.is_list(column.type):
            holes += sum(chunk.flatten().null_count for chunk in column.chunks)
        if holes:
            raise UserError(f"{path}: column {field.name!r} has {holes} nulls; expected none")
    if not len(found):
        raise UserError(f"{path} holds no trajectories: build the dataset again")
    return found


def _trajectories(rows: Any, numbers: Sequence[int]) -> Iterator[Trajectory]:
    """Rows as trajectories; ``numbers`` are theirs in the file.

    Raises:
        UserError: one cannot be; its row is named.
    """
    fields = [name for name in COLUMNS if name not in ("text", "total_reward")]
    columns = {name: rows.column(name).to_pylist() for name in (*fields, "total_reward")}
    for n, number in enumerate(numbers):
        row: dict[str, Any] = {name: tuple(v) if isinstance(v := columns[name][n], list) else v for name in fields}
        try:
            t = Trajectory(**row)
            if not any(t.action_mask):
                raise ValueError(f"trajectory of {t.prompt_id}: it has no action")
            if not all(map(math.isfinite, (*t.rewards, t.weight, *(t.sampler_logp or ()), t.merit))) or t.weight <= 0:
                raise ValueError(f"trajectory of {t.prompt_id}: a number is not finite, or its weight not positive")
            if not math.isclose(t.total_reward, columns["total_reward"][n], rel_tol=1e-9, abs_tol=1e-9):
                raise ValueError(f"trajectory of {t.prompt_id}: total_reward is not the sum of rewards")
        except ValueError as error:
            raise UserError(f"row {number} of {DATA}: {error}") from error
        yield t


def read_dataset(folder: Path, task: Task, tokenizer: Any, max_length: int, data_hash: str = "") -> list[Trajectory]:
    """Trajectories exactly as they were written, for a run that may learn from them.

    Args:
        task: whose training prompts they must answer.
        tokenizer: of the model to be trained; ids must mean to it what they meant to the sampler.
        max_length: of a dialogue, in tokens.
        data_hash: the dataset that is expected; empty is any.

    Raises:
        UserError: damaged, of another tokenizer, too long, invalid, or not of the split ``rl``.
    """
    manifest = read_manifest(folder)
    if data_hash and manifest["sha256"][:HASH] != data_hash:
        raise UserError(f"{folder} has changed since this run was asked for: type the command again")
    if manifest["tokenizer_hash"] != tokenizer_hash(tokenizer):
        raise UserError(
            f"{folder} was made with the tokenizer of {manifest['model']}, and this model's is another, so ids would "
            f"mean other words: `shiq-bench data build --task {manifest['task']} --model MODEL --out FOLDER` "
            "with the model to be trained"
        )
    allowed, vocabulary = set(task.prompts("rl")), len(tokenizer)
    out = []
    rows = _table(folder, manifest)
    for n, t in enumerate(_trajectories(rows, range(len(rows)))):
        _check_prompt(folder, n, t.prompt_id, allowed, task)
        if len(t.token_ids) > max_length:
            raise UserError(
                f"row {n} of {folder / DATA} has {len(t.token_ids)} tokens, and max_length is {max_length}: "
                f"--set max_length={manifest['max_length'] or len(t.token_ids)}"
            )
        if not (min(t.token_ids) >= 0 and max(t.token_ids) < vocabulary):
            raise UserError(
                f"row {n} of {folder / DATA} has ids outside the vocabulary of {vocabulary}: build it again"
            )
        out.append(t)
    return out


# --- showing -------------------------------------------------------------------------------------

#: What stands around the policy's words and around marks of ours; in text of a model they are spelt out.
_OPEN, _CLOSE, _LEFT, _RIGHT = "»«⟨⟩"
#: Longest observation shown whole, and what is kept of a longer one at either end; in tokens.
_LONG, _KEPT = 160, 60


def _decoder(folder: Path) -> Decoder:
    """The tokenizer of a dataset, without importing transformers where its own file is enough."""
    path = folder / TOKENIZER / "tokenizer.json"
    try:
        if path.is_file():
            from tokenizers import Tokenizer

            bare: Decoder = Tokenizer.from_file(str(path))
            return bare
        from transformers import AutoTokenizer

        slow: Decoder = AutoTokenizer.from_pretrained(folder / TOKENIZER)
        return slow
    except Exception as error:  # the library raises a bare Exception for a broken file
        raise UserError(f"{folder / TOKENIZER} holds no tokenizer: {' '.join(str(error).split())}") from error


def visible(text: str) -> str:
    """Text of a model as it may be printed: only line breaks act, and none of our marks can be forged.

    Control characters become their pictures (␛ is an escape), invisible ones and our marks ⟨U+..⟩.
    """
    out = []
    for c in text:
        if c == "\n":
            out.append(c)
        elif c < " ":
            out.append(chr(0x2400 + ord(c)))
        elif c in (_OPEN, _CLOSE, _LEFT, _RIGHT) or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            out.append(f"{_LEFT}U+{ord(c):04X}{_RIGHT}")
        else:
            out.append(c)
    return "".join(out)


def _inline(text: str) -> str:
    return visible(text).replace("\n", "␊")


def _pieces(t: Trajectory, decoder: Decoder, full: bool) -> Iterator[tuple[str, bool, float]]:
    """Text, whether the policy emitted it, and the reward at its end: runs of tokens of one kind.

    Texts of all tokens up to a place are compared, so that a character split between runs is shown
    once, where it is completed, and a space that only joins words is not lost.
    """
    ids, n = list(t.token_ids), len(t.token_ids)
    shown = ""

    def text(end: int) -> str:
        nonlocal shown
        whole = decoder.decode(ids[:end], skip_special_tokens=False)
        # An unfinished character at the end is decoded as a replacement: it waits for its other bytes.
        done = whole if end == n else whole.rstrip("\ufffd")
        new = done[len(shown) :]
        shown = max(shown, done, key=len)
        return new

    start = 0
    for end in range(1, n + 1):
        if end < n and t.action_mask[end] == t.action_mask[start] and not t.rewards[end - 1]:
            continue
        action = t.action_mask[start]
        if action or full or end - start <= _LONG:
            yield text(end), action, t.rewards[end - 1]
        else:
            yield text(start + _KEPT), False, 0.0
            text(end - _KEPT)
            yield f"{_LEFT}… {end - start - 2 * _KEPT} tokens …{_RIGHT}", False, math.nan
            yield text(end), False, 0.0
        start = end


def dialogue(t: Trajectory, decoder: Decoder, full: bool = False) -> Text:
    """One trajectory as the loss sees it: »the policy's words«, context, and ⟨+1⟩ behind the token that carries it.

    Args:
        full: do not shorten long observations.
    """
    from rich.text import Text

    out, inside = Text(), False
    for text, action, reward in _pieces(t, decoder, full):
        if action != inside:
            out.append(_OPEN if action else _CLOSE, style="bold cyan")
            inside = action
        if math.isnan(reward):
            out.append(text, style="italic")
            continue
        out.append(visible(text), style="bold green" if action else "dim")
        if reward:
            out.append(f"{_LEFT}{reward:+.4g}{_RIGHT}", style="bold yellow" if reward > 0 else "bold red")
    if inside:
        out.append(_CLOSE, style="bold cyan")
    return out


def show(
    folder: Path,
    console: Console,
    *,
    count: int = 3,
    prompt: str = "",
    source: str = "",
    seed: int | None = None,
    full: bool = False,
) -> None:
    """Print counts, returns and some dialogues of a dataset.

    Args:
        count: dialogues at most.
        prompt: only of this prompt.
        source: only of this source.
        seed: pick at random; None is the first ones.
        full: do not shorten long observations.

    Raises:
        UserError: no dataset, a damaged one, or nothing to show.
    """
    from rich.text import Text

    manifest = read_manifest(folder)
    table = _table(folder, manifest)
    prompts, sources = table.column("prompt_id").to_pylist(), table.column("source").to_pylist()
    for name, asked, known in (("prompt", prompt, prompts), ("source", source, sources)):
        if asked and asked not in known:
            near = difflib.get_close_matches(asked, sorted(set(known)), n=1, cutoff=0.5) or sorted(set(known))[:1]
            raise UserError(f"{folder} has no {name} {_inline(asked)!r}: try --{name} {_inline(near[0])!r}")
    chosen = [
        n for n in range(len(table)) if (not prompt or prompts[n] == prompt) and (not source or sources[n] == source)
    ]
    if not chosen:
        raise UserError(
            f"{folder} has prompt {_inline(prompt)!r} and source {_inline(source)!r}, and never both at once"
        )
    if seed is not None:
        chosen = sorted(random.Random(seed).sample(chosen, min(count, len(chosen))))
    chosen = chosen[:count]

    _summary(console, folder, manifest, sources, table)
    decoder = _decoder(folder)
    legend = Text.assemble(
        (f"{_OPEN}the policy's tokens{_CLOSE}", "bold green"), "   ", ("context", "dim"), "   ",
        (f"{_LEFT}+1{_RIGHT}", "bold yellow"), " reward of the token before it   ",
        f"␛ {_LEFT}U+200B{_RIGHT} characters made visible",
    )  # fmt: skip
    console.print(legend, soft_wrap=True)
    for n in chosen:
        t = next(_trajectories(table.slice(n, 1), [n]))
        head = (
            f"\n── row {n} · prompt {_inline(t.prompt_id)} · {_inline(t.source)} · return {t.total_reward:.4g}"
            f"{' · truncated' if t.truncated else ''} · {sum(t.action_mask)} action tokens of {len(t.token_ids)}"
            f"{'' if t.weight == 1 else f' · weight {t.weight:.4g}'}"
        )
        console.print(Text(head, style="bold"), soft_wrap=True)
        console.print(dialogue(t, decoder, full), soft_wrap=True)


def _summary(console: Console, folder: Path, manifest: Mapping[str, Any], sources: Sequence[str], rows: Any) -> None:
    """Counts and returns, from the rows themselves."""
    from rich.table import Table
    from rich.text import Text

    returns = list(zip(sources, rows.column("total_reward").to_pylist(), strict=True))
    truncated = sum(rows.column("truncated").to_pylist())
    prompts = len(set(rows.column("prompt_id").to_pylist()))
    told = (
        f"{folder}: task {_inline(manifest['task'])}, model {_inline(manifest['model'])}, {len(returns)} trajectories "
        f"of {prompts} prompts, {truncated} truncated"
    )
    console.print(Text(told), soft_wrap=True)
    kinds = sorted(set(sources))
    out = Table("return", box=None, pad_edge=False)
    for kind in kinds:
        out.add_column(Text(_inline(kind)), justify="right")
    for name, counts in histogram(returns):
        out.add_row(name, *(str(counts[s]) for s in kinds))
    console.print(out)
    console.print()
