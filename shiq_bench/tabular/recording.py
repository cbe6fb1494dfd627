"""A function of tensors recorded once, operation by operation, and played again without what surrounds them.

Mapping a loss over seeds with ``vmap`` and differentiating it costs milliseconds of bookkeeping for
microseconds of arithmetic. What it amounts to is the same list of operations at every update: they
are written down below autograd and vmap, and played on other values by the same kernels in the
same order, so that every number is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_ATEN = torch.ops.aten
#: What reads values, or gives as many of them as the values say: the operations after it are not always the same.
_DECIDING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

#: A function of tensors by name to tensors by name, None for what it does not depend on.
Function = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor | None]]


class _Recorder(TorchDispatchMode):
    """Writes down every operation that reaches the tensors and depends on ``inputs``.

    Attributes:
        fixed: no operation read a value.
        spoilt: one changed in place what depends on nothing, and can be done once only.
    """

    def __init__(self, inputs: Mapping[str, Tensor], folding: bool) -> None:
        super().__init__()
        self.graph, self.constants, self.folding = fx.Graph(), torch.nn.Module(), folding
        self.fixed, self.spoilt = True, False
        # Tensors are known by their identity, and so must live as long as the recording.
        self._nodes = {id(t): (t, self.graph.placeholder(f"x{n}")) for n, t in enumerate(inputs.values())}
        self._kept: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or else torch imports its compiler, to keep it out of here

    def node(self, tensor: Tensor) -> fx.Node:
        """What a tensor comes from; one that nothing here has made is a constant."""
        if id(tensor) not in self._nodes:
            name = f"c{len(self._nodes)}"
            self.constants.register_buffer(name, tensor)
            self._nodes[id(tensor)] = tensor, self.graph.get_attr(name)
        return self._nodes[id(tensor)][1]

    def _constant(self, tensor: Tensor) -> bool:
        return id(tensor) not in self._nodes or self._nodes[id(tensor)][1].op == "get_attr"

    def _learn(self, out: Any, node: fx.Node) -> None:
        if isinstance(out, Tensor):
            self._nodes.setdefault(id(out), (out, node))  # what works in place gives back what it was given
        elif isinstance(out, list | tuple):
            for n, part in enumerate(out):
                self._learn(part, self.graph.call_function(getitem, (node, n)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        constant = self.folding and bool(tensors) and all(map(self._constant, tensors))
        self.fixed &= not any(tag in func.tags for tag in _DECIDING)
        self.spoilt |= self.folding and func._schema.is_mutable and any(map(self._constant, tensors))
        out = func(*args, **kwargs)
        if constant:
            self._kept.append(out)
        elif func is _ATEN.detach.default:
            self._nodes[id(out)] = out, self.node(args[0])  # nothing has a gradient when it is played
        else:
            if func is _ATEN.lift_fresh.default:  # gives back what it is given, which may yet be changed in place
                func, args = _ATEN.lift_fresh_copy.default, (args[0].clone(),)
                self._nodes.pop(id(out), None)
            args, kwargs = tree_map_only(Tensor, self.node, (args, kwargs))
            self._learn(out, self.graph.call_function(func, args, kwargs))
        return out


def recorded(function: Function, inputs: Mapping[str, Tensor], changing: Container[str]) -> Function:
    """``function`` for other inputs of the same names and shapes, without gradient.

    Args:
        function: does the same operations whatever the values are.
        changing: names of the inputs that will ever be others, or have other values; what depends on
            none of them is computed once.

    Returns:
        What plays them; or ``function`` itself, where an operation read a value.
    """
    live = [name for name in inputs if name in changing]
    for folding in (True, False):
        recorder = _Recorder({name: inputs[name] for name in live}, folding)
        with recorder:
            found = function(inputs)
        if not recorder.spoilt:
            break
    if not recorder.fixed:
        return function
    names = [name for name, t in found.items() if t is not None]
    recorder.graph.output([recorder.node(t) for t in found.values() if t is not None])
    recorder.graph.eliminate_dead_code()
    play = fx.GraphModule(recorder.constants, recorder.graph).forward

    def again(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(names, play(*[inputs[name] for name in live]), strict=True))

    return again


def alike(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor | None]) -> bool:
    """Whether two results have the same numbers to the bit, NaN counting as one number."""
    a, b = ({n: t for n, t in x.items() if t is not None} for x in (a, b))
    return a.keys() == b.keys() and all(
        t.shape == b[n].shape and bool(((t == b[n]) | (t.isnan() & b[n].isnan())).all()) for n, t in a.items()
    )
