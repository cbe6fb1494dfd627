"""UltraFeedback: one question, one answer, judged by a reward model (Cui et al. 2023, arXiv 2310.01377)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import shiq_bench as sb
from shiq_bench.api.task import Examples, Measured
from shiq_bench.records.hashing import stable_hash
from shiq_bench.tasks.ultrafeedback import data, files, judges
from shiq_bench.tasks.ultrafeedback.data import Answering, cut, dialogue, paid_trajectory
from shiq_bench.tasks.ultrafeedback.judges import TINY, Precision, beats

if TYPE_CHECKING:
    from shiq_bench.rewards.model import RewardModel

Source = Literal["auto", "dataset", "model"]

#: Passes of the embedded policy over its answers, and the longest dialogue it learns from, in tokens.
EPOCHS, LONGEST = 6, 384


@sb.task("ultrafeedback")
@dataclass(frozen=True)
class UltraFeedback(sb.Task):
    """Questions with two or more judged answers; a policy's own are judged by a reward model (UltraFeedback).

    Preferences are the dataset's: chosen before rejected, or the higher score of four completions. Returns of stored
    answers are the dataset's scores, divided by the largest there can be, or a reward model's; fresh answers always
    have a reward model's.

    Attributes:
        dataset: a .jsonl or .parquet file, a dataset folder, or a name on the hub; ``--data`` sets it.
        dataset_hash: which dataset: filled in from ``dataset``.
        dataset_revision: revision on the hub; by default the one that is pinned here.
        rewards: returns of stored answers: the ``dataset``'s scores, a reward ``model``'s, or ``auto``: the former
            where there are any.
        reward_model: whose rewards are trained on: ``tiny`` (fitted on the spot), a folder, a hub id, or id@revision.
        judge: reward model that evaluates; empty: the same one.
        reward_precision: of both.
    """

    dataset: str = field(default="", metadata={"outcome": False, "data": True})
    dataset_hash: str = ""
    dataset_revision: str = ""
    rewards: Source = "auto"
    reward_model: str = TINY
    judge: str = ""
    reward_precision: Precision = "fp32"

    metrics: ClassVar[tuple[sb.Metric, ...]] = (
        sb.Metric("reward", "higher", "reward (judge's scale)", headline=True, optional=True),
        sb.Metric("win_reference", "higher", "wins against the reference", percent=True, optional=True),
        sb.Metric("win_reference_lc", "higher", "the same, length-controlled", percent=True, optional=True),
        sb.Metric("longer_reference", "neither", "longer than the reference", percent=True, optional=True),
        sb.Metric("win_chosen", "higher", "wins against the chosen answer", percent=True, optional=True),
        sb.Metric("win_chosen_lc", "higher", "the same, length-controlled", percent=True, optional=True),
        sb.Metric("longer_chosen", "neither", "longer than the chosen answer", percent=True, optional=True),
        sb.Metric("length", "neither", "length (tokens)", optional=True),
        sb.Metric("judge_cut", "lower", "begin beyond the judge's reach", percent=True, optional=True),
        sb.Metric("unfit", "lower", "prompts that do not fit", percent=True),
    )

    def __post_init__(self) -> None:
        for name, known in {"rewards": get_args(Source), "reward_precision": get_args(Precision)}.items():
            if (value := getattr(self, name)) not in known:
                raise sb.UserError(f"ultrafeedback has no {name} {value!r}{sb.suggest(str(value), known)}")
        if self.dataset:
            found = files.fingerprint(self.dataset, self.dataset_revision)
            if self.dataset_hash not in ("", found):
                raise sb.UserError(
                    f"dataset_hash={self.dataset_hash}, and {self.dataset} is {found}: give the --data it was, "
                    "or leave dataset_hash out"
                )
            object.__setattr__(self, "dataset_hash", found)  # the identity of a run must not depend on a path

    def defaults_for(self, model: str | None) -> Mapping[str, Any]:
        """Short answers and a few updates for the embedded model; the usual numbers of the papers for others."""
        if model in (None, TINY):
            return {
                "samples": 0, "steps": 100, "groups_per_step": 4, "learning_rate": 3e-4, "max_tokens": 96,
                "max_length": LONGEST, "eval_samples": 1, "eval_splits": "heldout", "algorithm.beta": 0.1,
            }  # fmt: skip
        return {
            "samples": 0, "steps": 500, "groups_per_step": 32, "learning_rate": 1e-6, "max_tokens": 1024,
            "max_length": 2048, "eval_samples": 1, "eval_splits": "heldout", "micro_groups": 1,
        }  # fmt: skip

    @property
    def licence(self) -> str:  # type: ignore[override]
        """Of what the hub has under its known names; of other data it is not known here."""
        known = self.dataset in files.HUB
        return f"MIT, from {self.dataset} (Cui et al. 2023)" if known else "Not known: it is that of the data given."

    # cached_property writes to the instance's own dictionary, which a frozen dataclass allows.

    @functools.cached_property
    def corpus(self) -> data.Corpus:
        """The dataset.

        Raises:
            UserError: none was given, or it cannot be read.
        """
        if not self.dataset:
            raise sb.UserError(
                "ultrafeedback needs preference data: give --data FILE (.jsonl, .parquet or a folder, with prompt, "
                "chosen and rejected), or where there is a network --data HuggingFaceH4/ultrafeedback_binarized; "
                "beside a dataset of shiq-bench data build, --set dataset=FILE"
            )
        return data.read(self.dataset, self.dataset_revision)

    @property
    def stored_rewards(self) -> Source:
        """Where the returns of stored answers come from: ``dataset`` or ``model``.

        Raises:
            UserError: they are to be the dataset's, and it has none.
        """
        if self.rewards == "dataset" and not self.corpus.scored:
            raise sb.UserError(f"not every answer in {self.dataset} has a score: set rewards=model, or leave it out")
        return "dataset" if self.rewards != "model" and self.corpus.scored else "model"

    @functools.cached_property
    def _payer(self) -> RewardModel:
        return judges.opened(self, self.reward_model, self.reward_precision)

    @functools.cached_property
    def _judge(self) -> RewardModel:
        own = self.judge not in ("", self.reward_model)
        return judges.opened(self, self.judge, self.reward_precision) if own else self._payer

    def prepare(self, report: Callable[[str, int, int], None]) -> None:
        """Fit the embedded reward model where it is used, and open the judge."""
        if TINY in (self.reward_model, self.judge):
            from shiq_bench.rewards.fit import tiny_reward_model

            tiny_reward_model(self, "ultrafeedback", report)
        report("opening the reward model", 0, 0)
        _ = self._judge

    def fingerprint(self) -> str:
        """Hash of the reward models, for a folder may hold others tomorrow, and of what the hub gave under a name."""
        from shiq_bench.rewards.fit import tiny_identity

        names = (self.reward_model, self.judge or self.reward_model)
        found = [tiny_identity() if n == TINY else judges.named(n, self.reward_precision).fingerprint for n in names]
        moving = files.is_hub(self.dataset) and (self.dataset_revision or files.pinned(self.dataset))
        return stable_hash([*found, self.corpus.digest if moving else ""])

    def validate_run(self, spec: sb.RunSpec, algorithm: sb.Algorithm, fresh: bool) -> Sequence[str]:
        """Where rewards and preferences come from, and whether the judge is whoever gave them.

        Raises:
            UserError: no data, or stored and sampled answers would be paid on two scales.
        """
        source = self.stored_rewards
        if source == "dataset" and spec.samples and not (fresh or spec.data):
            raise sb.UserError(
                f"samples={spec.samples} are paid by a reward model and stored answers by the dataset's scores, two "
                "scales: set rewards=model, or samples=0"
            )
        if not spec.steps:
            return ()
        if spec.data:
            return ("rewards and preferences: as the dataset given by --data has them",)
        rewarded = algorithm.need(sb.Rewards) is not None
        if not (fresh or spec.samples) and not rewarded:
            return ("preferences: the dataset's; rewards are not seen",)
        if source == "dataset" and not fresh:
            return (f"rewards: the dataset's own scores, in [0, 1] ({self.corpus.schema})",)
        same = " It is also the judge." if self.judge in ("", self.reward_model) else ""
        what = "rewards" if rewarded else "preferences"
        return (f"{what}: reward model {judges.short(self.reward_model)}.{same}",)

    def resolved_options(self, codec: sb.Codec, spec: sb.RunSpec) -> Mapping[str, Any]:
        """The dataset's schema, what was left out of it, and who judges."""
        sizes = ", ".join(f"{len(self.prompts(split))} {split}" for split in data.SPLITS)
        found: dict[str, Any] = {
            "dataset": Path(self.dataset).name if Path(self.dataset).exists() else self.dataset,
            "schema": self.corpus.schema,
            "questions": f"{sizes} (start fits the tiny models)",
        }
        lost = [f"{n} of {self.corpus.rows} rows: {why}" for why, n in self.corpus.dropped.items()]
        for split in ("rl", "heldout"):
            asked = self.prompts(split)
            fit = [e for e in self.episodes(asked, codec, spec.max_length) if not e.done]
            if unfit := len(asked) - len(fit):
                lost.append(f"{unfit} of {len(asked)} prompts of {split}: they fill the budget")
            if alike := len(fit) - len(self._stored(split, codec, spec)):
                lost.append(f"{alike} of {len(asked)} prompts of {split}: answers alike once cut")
        found["dropped"] = ", ".join(lost) or "nothing"
        if self.corpus.contradictions:
            found["scores against the preference"] = f"{self.corpus.contradictions} questions"
        judge = judges.short(self.judge or self.reward_model)
        found["judge"] = f"{judge} ({self._judge.fingerprint[:12]}, {self.reward_precision})"
        if getattr(codec, "plain_template", False):
            found["template"] = "plain, for the tokenizer has none"
        return found

    # --- prompts and data

    def prompts(self, split: str) -> list[str]:
        """Ids of a split: 40% ``start``, 40% ``rl``, 20% ``heldout``, by a question's own hash; ``all`` is everything.

        Raises:
            UserError: no such split, or no data.
        """
        if split not in (*data.SPLITS, "all"):
            raise sb.UserError(f"ultrafeedback has no split {split!r}{sb.suggest(split, [*data.SPLITS, 'all'])}")
        found = self.corpus.split(split)
        if not found:
            raise sb.UserError(f"{self.dataset} has too few questions: split {split} is empty")
        return found

    def preferences(self, split: str) -> list[sb.Preference]:
        """Every two answers to a question of which one is preferred."""
        return [
            sb.Preference(q.id, q.messages, better.text, worse.text)
            for q in (self.corpus.questions[i] for i in self.prompts(split))
            for n, better in enumerate(q.answers)
            for worse in q.answers[n + 1 :]
            if better.rank > worse.rank
        ]

    def trajectories(self, split: str, codec: sb.Codec, spec: sb.RunSpec) -> list[sb.Trajectory]:
        """The stored answers, cut where a fresh one would be: then they have no end of turn, and are truncated.

        A question whose prompt fills the budget, or whose answers are all the same once cut, has none.
        """
        stored = [pair for group in self._stored(split, codec, spec) for pair in group]
        if self.stored_rewards == "dataset":
            paid = [answer.score or 0.0 for _, answer in stored]
        else:
            paid = self._payer.score([dialogue(e.question, e.text) for e, _ in stored])
        # Beside samples, which only a reward model has judged, its word orders all.
        ranks = [None if spec.samples else answer.rank for _, answer in stored]
        return [
            replace(paid_trajectory(episode, reward, "dataset"), rank=rank, sampler_logp=None)  # nobody sampled it
            for (episode, _), reward, rank in zip(stored, paid, ranks, strict=True)
        ]

    def _stored(self, split: str, codec: sb.Codec, spec: sb.RunSpec) -> list[list[tuple[Answering, data.Answer]]]:
        """Answers within the limits, question by question, where there are two that differ."""
        found: list[list[tuple[Answering, data.Answer]]] = []
        for prompt_id in self.prompts(split):
            question = self.corpus.questions[prompt_id]
            if Answering(question, codec, spec.max_length).done:
                continue
            group = []
            for answer in question.answers:
                episode = Answering(question, codec, spec.max_length)
                self._answer(episode, cut(codec.answer(answer.text), min(spec.max_tokens, episode.left)))
                group.append((episode, answer))
            if len({tuple(e.transcript.token_ids) for e, _ in group}) > 1:
                found.append(group)
        return found

    # --- episodes

    def episodes(self, prompt_ids: Sequence[str], codec: sb.Codec, max_length: int) -> list[sb.Episode]:
        """Questions to answer; one whose prompt fills the budget is over at once.

        Raises:
            UserError: an id is unknown.
        """
        unknown = next((i for i in prompt_ids if i not in self.corpus.questions), None)
        if unknown is not None:
            raise sb.UserError(f"ultrafeedback has no prompt {unknown!r} in {self.dataset}")
        return [Answering(self.corpus.questions[i], codec, max_length) for i in prompt_ids]

    def step(self, episodes: Sequence[sb.Episode], completions: Sequence[sb.Completion]) -> None:
        """One answer ends the episode."""
        for episode, completion in zip(episodes, completions, strict=True):
            self._answer(cast(Answering, episode), completion)

    def _answer(self, episode: Answering, completion: sb.Completion) -> None:
        episode.transcript.act(completion)
        episode.transcript.truncated = completion.finish == "length"
        episode.text = episode.codec.text(completion.token_ids)
        episode.done = True

    def demonstration(self, episode: sb.Episode) -> Sequence[int]:
        """The best answer of the dataset, cut where it no longer fits."""
        answering = cast(Answering, episode)
        return list(cut(answering.codec.answer(answering.question.answers[0].text), answering.left).token_ids)

    def finish(self, episodes: Sequence[sb.Episode], source: str) -> list[tuple[sb.Trajectory, sb.Score]]:
        """Rewards of the reward model that is trained on, paid at the last token; metrics of the judge.

        A prompt that did not fit has no answer to judge: it is counted, and in no mean.
        """
        played = [cast(Answering, episode) for episode in episodes]
        fit = [e for e in played if not e.unfit]
        answers = [dialogue(e.question, e.text) for e in fit]
        chosen = [dialogue(e.question, e.question.answers[0].text) for e in fit]
        judged = self._judge.score([*answers, *chosen])
        paid = judged if self._payer is self._judge else self._payer.score(answers)
        verdicts = {id(e): (judged[i], judged[len(fit) + i], paid[i]) for i, e in enumerate(fit)}
        out = []
        for episode in played:
            if episode.unfit:
                details: dict[str, Any] = {"prompt_tokens": episode.unfit}
                out.append((paid_trajectory(episode, 0.0, source), sb.Score(0.0, (), {"unfit": 1.0}, details)))
                continue
            reward, of_chosen, pay = verdicts[id(episode)]
            best = episode.question.answers[0].text
            metrics = {
                "reward": reward,
                "win_chosen": beats(reward, of_chosen),
                "longer_chosen": beats(len(episode.text), len(best)),
                "length": float(sum(episode.transcript.action_mask)),
                "judge_cut": float(self._judge.encode(dialogue(episode.question, episode.text))[1]),
                "unfit": 0.0,
            }
            details = {
                "question": episode.question.messages[-1]["content"],
                "answer": episode.text,
                "characters": len(episode.text),
                "chosen_characters": len(best),
                "chosen_reward": of_chosen,
            }
            trajectory = paid_trajectory(episode, pay, source)
            out.append((trajectory, sb.Score(trajectory.total_reward, (trajectory.total_reward,), metrics, details)))
        return out

    def aggregate(self, metrics: Measured, examples: Examples, reference: Examples = ()) -> Measured:
        """Win rates, ties half: against the chosen answer length-controlled, against the reference raw as well.

        An answer meets every one that the reference gave to the same prompt.
        """
        return judges.win_rates(examples, reference)

    def tiny(self) -> sb.TinyModel:
        """The embedded default: fitted to the best answers of the split ``start``."""
        questions = len(self.prompts("start"))
        return sb.TinyModel(
            vocabulary=2048, width=192, layers=3, heads=3, steps=max(20, EPOCHS * questions // 8), batch=8,
            learning_rate=2e-3, context_weight=0.1, max_length=LONGEST,
        )  # fmt: skip

    def notes(self) -> list[str]:
        found = [
            "the reward is the judge's own scale: compare it within one judge only",
            "an answer cut by the limit is judged as it stands; the chosen answer is judged whole",
        ]
        if TINY in (self.judge or self.reward_model, self.reward_model):
            found.append(
                "the reward model is tiny and was fitted on the spot to a few hundred pairs: it shows that the "
                "machinery works, and says little about what people prefer"
            )
        return found

    def details(self) -> Mapping[str, Sequence[str]]:
        return {
            "data (--data)": [
                "a .jsonl or .parquet file, a dataset folder, or a name on the hub, in one of these schemas",
                *(f"{name}: {', '.join(columns)}" for name, columns in data.COLUMNS.items()),
                "scores are optional: score_chosen and score_rejected (also under metadata), 0 to 10",
            ],
            "splits": [f"{name}: {share}% of the questions, by their own hash" for name, share in data.SPLITS.items()],
            "notes": self.notes(),
        }

    def close(self) -> None:
        """Let go of the reward models and the data: a study holds many tasks."""
        for name in ("_payer", "_judge", "corpus"):
            self.__dict__.pop(name, None)
