"""Episodes and answers: one loop, driven by a generator or by a task's own demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shiq_bench.api.task import Codec, Episode, Task
from shiq_bench.api.trajectory import Completion
from shiq_bench.generation.generator import Generator
from shiq_bench.records.hashing import stable_hash

#: Episodes over so far, and all of them.
Progress = Callable[[int, int], None]

#: ``(step, [(index, episode, room)]) -> one completion each``, or None where there is no answer.
#: The index is the episode's place in the whole list; room is what is left of the dialogue's length.
_Policy = Callable[[int, list[tuple[int, Episode, int]]], Sequence[Completion | None]]


def rollout(
    task: Task,
    episodes: Sequence[Episode],
    generator: Generator,
    codec: Codec,
    *,
    temperature: float,
    max_tokens: int,
    max_length: int,
    seed: int | str,
    on_progress: Progress = lambda done, total: None,
) -> None:
    """Play every episode to its end, all live ones together; the episodes hold the result.

    An answer is as long as ``max_tokens``, the episode's own ``max_new_tokens`` and what is left of
    ``max_length`` allow. Its seed derives from ``seed``, the episode's place in the list and the
    number of the step, so it does not depend on which other episodes are still alive.

    Raises:
        RuntimeError: the task neither ends an episode nor makes it longer.
    """

    def policy(step: int, live: list[tuple[int, Episode, int]]) -> list[Completion]:
        return generator.generate(
            [e.transcript.token_ids for _, e, _ in live],
            temperature=temperature,
            max_tokens=[
                min(max_tokens, room if e.max_new_tokens is None else min(e.max_new_tokens, room))
                for _, e, room in live
            ],
            seeds=[int(stable_hash([seed, index, step])[:15], 16) for index, _, _ in live],
            stop_ids=codec.end_ids,
        )

    _play(task, episodes, policy, max_length, on_progress)


def replay(task: Task, episodes: Sequence[Episode], codec: Codec, max_length: int = 1 << 62) -> list[Episode]:
    """Play every episode with the task's own demonstrations.

    What a sampler's log-probabilities would be is not known: they stand as 0.0, and whoever keeps
    the trajectories drops them. An episode that runs out of demonstrations, or whose next one
    would not fit into ``max_length``, is cut there: half an answer demonstrates nothing.

    Returns:
        The episodes that were demonstrated to their end, in order.

    Raises:
        RuntimeError: the task neither ends an episode nor makes it longer.
    """

    def policy(step: int, live: list[tuple[int, Episode, int]]) -> list[Completion | None]:
        out: list[Completion | None] = []
        for _, episode, room in live:
            said = task.demonstration(episode)
            ids = () if said is None else tuple(codec.answer(said) if isinstance(said, str) else said)
            fits = said is not None and len(ids) <= room
            out.append(Completion(ids, (0.0,) * len(ids), "stop") if fits else None)
        return out

    cut = _play(task, episodes, policy, max_length, lambda done, total: None)
    return [e for e in episodes if id(e) not in cut]


def _play(task: Task, episodes: Sequence[Episode], policy: _Policy, max_length: int, on_progress: Progress) -> set[int]:
    """Step all live episodes until none is left; returns ``id()`` of those cut here."""
    cut: set[int] = set()

    def stop(episode: Episode) -> None:
        episode.transcript.truncated = True
        episode.done = True
        cut.add(id(episode))

    step = 0
    while True:
        live = []
        for index, episode in enumerate(episodes):
            if not episode.done:
                room = max_length - len(episode.transcript.token_ids)
                # A task ends an episode that has no room left; where it did not, it is ended here.
                if room < 1 or (episode.max_new_tokens is not None and episode.max_new_tokens < 1):
                    stop(episode)
                else:
                    live.append((index, episode, room))
        on_progress(len(episodes) - len(live), len(episodes))
        if not live:
            return cut
        acting: list[Episode] = []
        completions: list[Completion] = []
        for (_, episode, _), completion in zip(live, policy(step, live), strict=True):
            if completion is None:
                stop(episode)
            else:
                acting.append(episode)
                completions.append(completion)
        if acting:
            lengths = [len(e.transcript.token_ids) for e in acting]
            task.step(acting, completions)
            for episode, length in zip(acting, lengths, strict=True):
                if not episode.done and len(episode.transcript.token_ids) <= length:
                    raise RuntimeError(
                        f"{type(task).__name__}.step neither ended {episode.prompt_id!r} nor added to it"
                    )
        step += 1
