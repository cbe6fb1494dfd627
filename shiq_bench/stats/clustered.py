"""Means and rates over episodes, and win rates at equal length, with errors clustered by prompt."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from shiq_bench.stats.intervals import Estimate, Floats, number, t_interval


def clustered_mean(
    values: Sequence[float | None], clusters: Sequence[Hashable], trials: Sequence[float | None] | None = None
) -> Estimate:
    r"""Pooled mean, or rate, with a standard error clustered by prompt.

    Episodes of one prompt are alike, so the prompt is the unit of the error. With ``trials`` the estimate is the rate
    :math:`r = \sum x_i / \sum m_i` (successes over trials, n counts trials), otherwise every :math:`m_i` is 1
    (n counts episodes). Linearised over the G prompts (Cochran 1977, section 6; with :math:`m_i = 1` the clustered
    error of Miller 2024, arXiv:2411.00640, with the factor G/(G-1)):

    .. math:: e_g = \sum_{i \in g} (x_i - r m_i), \quad
              \widehat{Var}(r) = \frac{G}{G-1} \frac{\sum_g e_g^2}{(\sum_i m_i)^2}

    With one episode a prompt and no trials this is the textbook s/sqrt(n).

    Args:
        values: one an episode, ``[E]``; missing ones (None, NaN) are left out.
        clusters: the prompt of each episode, ``[E]``.
        trials: trials of each episode, ``[E]``; an episode with none is left out.
    """
    columns = _columns(values, clusters, trials)
    rate, influence = _linearised(*columns)
    n = float(columns[1].sum())
    return t_interval(rate, _error(influence), int(n) if n.is_integer() else n, len(influence))


def paired_examples(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], metric: str) -> Estimate:
    r"""Difference of two policies' pooled means (or rates) of a metric, paired by prompt.

    It is the difference of the two means on the prompts both have. Its error comes from the per-prompt differences of
    the two linearised estimates, :math:`d_g = e^a_g / \sum m^a - e^b_g / \sum m^b`, so what makes a prompt hard for
    both cancels. With equally many episodes a prompt it is :func:`paired_difference` of the prompts' means.

    Args:
        a, b: examples of the two policies, as in ``Evaluation.examples``.

    Returns:
        Estimate in the metric's unit; n and units count shared prompts.
    """
    left, right, shared = _shared(a, b, metric)
    (rate_a, influence_a), (rate_b, influence_b) = _linearised(*left), _linearised(*right)
    if rate_a is None or rate_b is None:
        return Estimate(None, None, None, None, len(shared), len(shared))
    stderr = _error({g: influence_a[g] - influence_b[g] for g in shared})
    return t_interval(rate_a - rate_b, stderr, len(shared), len(shared))


def linearised(examples: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    r"""Prompt -> what it adds to the pooled mean (or rate) :math:`r`; the mean over the G prompts is r.

    .. math:: z_g = r + \frac{\sum_{i \in g} (x_i - r m_i)}{\frac{1}{G} \sum_i m_i}

    With equally many episodes a prompt and no trials it is the prompt's own mean. Empty where the
    metric was not measured, or is not finite.
    """
    return _contributions(_of_metric(examples, metric))


def linearised_difference(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, float]:
    """Prompt that both have -> difference of the two :func:`linearised`; the mean is :func:`paired_examples`'s."""
    left, right, _ = _shared(a, b, metric)
    one, other = _contributions(left), _contributions(right)
    return {g: z - other[g] for g, z in one.items() if g in other}


def prompts_with(examples: Sequence[Mapping[str, Any]], metric: str) -> set[Hashable]:
    """Prompts with an episode that has the metric, and of a rate a trial."""
    return set(_of_metric(examples, metric)[2])


def summarise(examples: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Raw per-episode values to ``Evaluation.metrics``: name -> {mean, n, stderr}.

    Means are pooled over episodes (a metric with ``name/n`` beside it: over trials), errors are
    clustered by ``prompt_id``. An episode without the metric, or with None or NaN, is left out and
    n says so; with nothing left, mean is None and n is 0. An infinite value makes the mean None.

    Raises:
        ValueError: a value is no number.
    """
    summary: dict[str, dict[str, float | None]] = {}
    for name in metrics:
        values, trials, prompts = _raw(examples, name)
        estimate = clustered_mean(values, prompts, trials)
        summary[name] = {"mean": estimate.mean, "n": estimate.n, "stderr": estimate.stderr}
    return summary


def length_controlled(wins: Sequence[float], gaps: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    r"""Win rate at equal length, by logistic regression on the gap in length (Dubois et al. 2024, arXiv:2404.04475).

    .. math:: P(win) = \sigma(\theta + \phi \tanh(g / s_g)), \quad \text{reported: } \sigma(\theta)

    The length term alone is controlled for, not who asked what. A weak normal prior on :math:`\phi` (standard
    deviation 3) keeps it finite where length decides everything; the error of :math:`\theta` is the sandwich,
    clustered by prompt, brought to shares by the delta method. Where all are won, or all lost, there
    is none; where every answer is longer, or every one shorter, nothing is known of equal length,
    and the rate is None.

    Args:
        wins: 1, 0, or one half for a tie. ``[E]``
        gaps: length minus the other's, in any unit. ``[E]``
        clusters: the prompt of each. ``[E]``
    """
    y, g = np.asarray(wins, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    units = len(set(clusters))
    if not y.size or g.min() > 0 or g.max() < 0:
        return Estimate(None, None, None, None, int(y.size), units)
    spread = g.std()
    x = np.stack([np.ones_like(g), np.tanh(g / spread) if spread else np.zeros_like(g)], axis=1)  # [E, 2]
    # One pseudo-observation each way, an eighth of an episode, keeps theta finite where every one is won.
    prior = np.diag([0.0, 1 / 9])
    beta = np.zeros(2)
    for _ in range(100):
        p = expit(x @ beta)
        score = x.T @ (y - p) - prior @ beta - np.array([(expit(beta[0]) - 0.5) / 4, 0.0])
        info = (x * (p * (1 - p))[:, None]).T @ x + prior
        info[0, 0] += expit(beta[0]) * (1 - expit(beta[0])) / 4
        step = np.linalg.solve(info, score)
        beta = beta + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-12:
            break
    rate = float(expit(beta[0]))
    if units < 2 or y.min() == y.max() != 0.5:
        return Estimate(rate, None, None, None, int(y.size), units)
    residual = x * (y - expit(x @ beta))[:, None]
    order = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((units, 2))
    np.add.at(sums, [order[c] for c in clusters], residual)
    bread = np.linalg.inv(info)
    variance = (bread @ (sums.T @ sums) @ bread)[0, 0] * units / (units - 1)
    return t_interval(rate, float(rate * (1 - rate) * np.sqrt(max(0.0, variance))), int(y.size), units)


_Columns = tuple[Floats, Floats, list[Hashable]]


def _raw(examples: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[Any], list[Any] | None, list[Hashable]]:
    rate = any(f"{metric}/n" in e for e in examples)
    trials = [e.get(f"{metric}/n") for e in examples] if rate else None
    return [e.get(metric) for e in examples], trials, [e["prompt_id"] for e in examples]


def _of_metric(examples: Sequence[Mapping[str, Any]], metric: str) -> _Columns:
    values, trials, prompts = _raw(examples, metric)
    return _columns(values, prompts, trials)


def _columns(values: Sequence[Any], clusters: Sequence[Hashable], trials: Sequence[Any] | None) -> _Columns:
    """Values, trials and clusters of the episodes that have any: ``[E]`` each."""
    x = np.array([number(v) for v in values], dtype=np.float64)
    m = np.ones_like(x) if trials is None else np.array([number(v) for v in trials], dtype=np.float64)
    if not len(x) == len(m) == len(clusters):
        raise ValueError(f"{len(x)} values, {len(m)} trials and {len(clusters)} clusters: expected one each")
    keep = ~np.isnan(x) & (m > 0)
    return x[keep], m[keep], [c for c, k in zip(clusters, keep, strict=True) if k]


def _shared(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], metric: str
) -> tuple[_Columns, _Columns, list[Hashable]]:
    """The episodes of either on the prompts both have, and those prompts."""
    sides = [_of_metric(a, metric), _of_metric(b, metric)]
    both = set(sides[0][2]) & set(sides[1][2])
    for i, (x, m, clusters) in enumerate(sides):
        keep = np.array([c in both for c in clusters], dtype=bool)
        sides[i] = x[keep], m[keep], [c for c in clusters if c in both]
    return sides[0], sides[1], sorted(both, key=str)


def _linearised(x: Floats, m: Floats, groups: Sequence[Hashable]) -> tuple[float | None, dict[Hashable, float]]:
    """The ratio sum(x)/sum(m) and each group's influence on it, e_g / sum(m), in order of appearance."""
    order = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    if not order or not np.isfinite(x).all():
        return None, dict.fromkeys(order, float("nan"))
    rate = float(x.sum() / m.sum())
    index = np.array([order[g] for g in groups])
    influence = np.bincount(index, weights=x - rate * m, minlength=len(order)) / m.sum()
    # Rounding leaves 1e-17 where every group is alike; there the error is exactly 0.
    influence[np.abs(influence) < 1e-13 * np.abs(x).sum() / m.sum()] = 0.0
    return rate, {g: float(influence[i]) for g, i in order.items()}


def _contributions(columns: _Columns) -> dict[str, float]:
    rate, influence = _linearised(*columns)
    return {} if rate is None else {str(g): rate + len(influence) * e for g, e in influence.items()}


def _error(influence: Mapping[Hashable, float]) -> float | None:
    """sqrt(G/(G-1) sum e_g^2); None below two groups."""
    e = np.array(list(influence.values()), dtype=np.float64)
    if e.size < 2 or not np.isfinite(e).all():
        return None
    return float(np.sqrt(e.size / (e.size - 1) * np.square(e).sum()))
