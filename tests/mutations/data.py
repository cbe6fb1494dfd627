"""Bugs planted in ``data``."""

from __future__ import annotations

from tests.mutations.base import PADDED, TRAINING, TREE, Mutation

BUGS = [
    Mutation(
        "labels shifted by one",
        "shiq_bench/data/collation.py",
        "taken += [(path[i], path[i - 1])",
        "taken += [(path[i], path[i])",
        PADDED,
    ),
    Mutation(
        "prompt token among the actions",
        "shiq_bench/data/collation.py",
        "for i, a in enumerate(t.action_mask) if a]",
        "for i, a in enumerate(t.action_mask) if a or i == 1]",
        PADDED,
    ),
    Mutation(
        "an answer that sees the one before it",
        "shiq_bench/data/collation.py",
        "tree.end[node] = len(tree.ids)",
        "tree.end[node] = len(tree.ids) + 1",
        TREE,
    ),
    Mutation(
        "positions run on through a tree",
        "shiq_bench/data/collation.py",
        "tree.depth.extend(range(shared, len(now)))",
        "tree.depth.extend(range(size, size + len(now) - shared))",
        TREE,
    ),
    Mutation(
        "reward at the wrong token",
        "shiq_bench/data/groups.py",
        "rewards = list(compress(t.rewards, t.action_mask))",
        "rewards = sorted(compress(t.rewards, t.action_mask))",
        f"{TRAINING}::test_a_batch_by_hand",
    ),
    Mutation(
        "mean return taken off the first action",
        "shiq_bench/data/groups.py",
        "rewards[-1] -= row.reward_shift",
        "rewards[0] -= row.reward_shift",
        f"{TRAINING}::test_a_batch_by_hand",
    ),
    Mutation(
        "unit reward scaling forgotten",
        "shiq_bench/data/groups.py",
        "rewards=tuple(r / largest for r in t.rewards)",
        "rewards=tuple(r for r in t.rewards)",
        f"{TRAINING}::test_returns_are_brought_into_the_unit_range_where_a_method_asks",
    ),
    Mutation(
        "pair order swapped",
        "shiq_bench/data/groups.py",
        "for pair, weight in (((i, j), both * p), ((j, i), both * (1 - p))):",
        "for pair, weight in (((j, i), both * p), ((i, j), both * (1 - p))):",
        f"{TRAINING}::test_pairs_by_hand",
    ),
    Mutation(
        "Bradley-Terry probability reversed",
        "shiq_bench/data/groups.py",
        'p = _sigma(gap) if labels == "bradley_terry"',
        'p = _sigma(-gap) if labels == "bradley_terry"',
        f"{TRAINING}::test_pairs_by_hand",
    ),
    Mutation(
        "drawn preferences reversed",
        "shiq_bench/data/groups.py",
        "p = float(coins[i, j] < _sigma(gap))",
        "p = float(coins[i, j] > _sigma(gap))",
        f"{TRAINING}::test_sampled_pairs_follow_bradley_and_terry",
    ),
    Mutation(
        "one coin for every seed",
        "shiq_bench/data/groups.py",
        "seed_of(group[0].prompt_id, what, seed)",
        "seed_of(group[0].prompt_id, what)",
        f"{TRAINING}::test_sampled_pairs_follow_bradley_and_terry",
    ),
    Mutation(
        "desirable whatever the prompt's mean",
        "shiq_bench/data/groups.py",
        "gaps = [t.preference_score - mean for t in group]",
        "gaps = [t.preference_score for t in group]",
        f"{TRAINING}::test_labels_by_hand",
    ),
    Mutation(
        "labels against a mean without weights",
        "shiq_bench/data/groups.py",
        "mean = sum(t.weight * t.preference_score for t in group) / sum(t.weight for t in group)",
        "mean = sum(t.preference_score for t in group) / len(group)",
        f"{TRAINING}::test_labels_by_hand",
    ),
    Mutation(
        "mean return without weights",
        "shiq_bench/data/groups.py",
        "total.get(t.prompt_id, 0.0) + t.weight * t.total_reward",
        "total.get(t.prompt_id, 0.0) + t.total_reward",
        f"{TRAINING}::test_centring_takes_the_prompts_mean_off_the_last_action",
    ),
    Mutation(
        "mismatched answers from the same prompt",
        "shiq_bench/data/groups.py",
        "zip(groups, [*groups[1:], groups[0]], strict=True)",
        "zip(groups, groups, strict=True)",
        f"{TRAINING}::test_mismatched_answers_are_another_prompts",
    ),
    Mutation(
        "training on held-out prompts of a dataset",
        "shiq_bench/data/dataset.py",
        'allowed, vocabulary = set(task.prompts("rl")), len(tokenizer)',
        'allowed, vocabulary = set(task.prompts("rl") + task.prompts("heldout")), len(tokenizer)',
        "tests/data/test_refused_data.py::test_held_out_prompts_are_refused",
    ),
]
