"""The card of a dataset, as hubs show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shiq_bench.data.schema import COLUMNS, DATA, HASH, MANIFEST, histogram, train_command

#: Licences that the hubs' cards have a key for, as far as data of tasks are likely to carry them.
_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by", "odbl", "gpl-3.0", "unlicense",
)  # fmt: skip


def card(manifest: Mapping[str, Any], returns: Sequence[tuple[str, float]]) -> str:
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
