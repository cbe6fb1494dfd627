"""Bugs planted in ``generation``."""

from __future__ import annotations

from tests.mutations.base import ENGINES, LORA, Mutation

BUGS = [
    Mutation(
        "temperature in scoring",
        "shiq_bench/generation/hf.py",
        "self.logps.append(logp.gather(",
        "self.logps.append((logp / (self.temperature or 1)).log_softmax(-1).gather(",
        f"{ENGINES}::test_logprobs_are_the_models_at_temperature_one[0.6-hf]",
    ),
    Mutation(
        "temperature not in sampling",
        "shiq_bench/generation/hf.py",
        "(logp.double() / self.temperature)",
        "logp.double()",
        f"{ENGINES}::test_samples_follow_the_distribution[0.6-hf]",
    ),
    Mutation(
        "sampled end-of-turn dropped",
        "shiq_bench/generation/hf.py",
        "Completion(tuple(tokens[: n + 1]), tuple(logps[: n + 1])",
        "Completion(tuple(tokens[:n]), tuple(logps[:n])",
        f"{ENGINES}::test_stops_and_limits[hf]",
    ),
    Mutation(
        "sampler keeps its first weights",
        "shiq_bench/generation/hf.py",
        "        check_weights(folder)\n        self._model = None\n",
        "        check_weights(folder)\n        if self._model is not None:\n            return\n",
        f"{ENGINES}::test_load_takes_new_weights_and_forgets_old_prefixes[hf]",
    ),
    Mutation(
        "sampler keeps its first adapter",
        "shiq_bench/generation/vllm.py",
        "number, self._adapter = next(_ADAPTERS), None",
        "number, self._adapter = 1, None",
        f"{LORA}::test_what_is_served_is_what_was_trained[vllm]",
    ),
    Mutation(
        "stale prefix cache after new weights",
        "shiq_bench/generation/vllm.py",
        "if not self._llm.reset_prefix_cache():",
        "if not self._llm:",
        f"{ENGINES}::test_load_takes_new_weights_and_forgets_old_prefixes[vllm]",
    ),
]
