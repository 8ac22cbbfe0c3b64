"""Loops in compiled code, found from where each instruction may go next."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

Edges = Sequence[Collection[int]]


def innermost_loops(successors: Edges, wanted: Collection[int]) -> list[list[int]]:
    """Return the nodes of each loop with a wanted node that holds no other such loop, in order.

    A loop is a strongly connected part of the graph. The loops within it are those that are left
    without its entries, wherever a compiler has placed them.
    """
    predecessors: list[list[int]] = [[] for _ in successors]
    for node, following in enumerate(successors):
        for other in following:
            predecessors[other].append(node)
    nodes = set(range(len(successors)))
    return sorted(_innermost(successors, predecessors, nodes, set(wanted)))


def _innermost(
    successors: Edges, predecessors: Edges, nodes: set[int], wanted: set[int]
) -> Iterator[list[int]]:
    for part in _connected_parts(successors, predecessors, nodes):
        is_loop = len(part) > 1 or not part.isdisjoint(successors[min(part)])
        if not is_loop or part.isdisjoint(wanted):
            continue
        entries = {node for node in part if not part.issuperset(predecessors[node])}
        rest = part - (entries or {min(part)})
        yield from list(_innermost(successors, predecessors, rest, wanted)) or [sorted(part)]


def _connected_parts(successors: Edges, predecessors: Edges, nodes: set[int]) -> Iterator[set[int]]:
    """Yield the strongly connected parts of some of the nodes (Kosaraju's algorithm)."""
    order, seen = list[int](), set[int]()
    for root in nodes:
        order += _reached(successors, root, nodes, seen)
    seen.clear()
    for root in reversed(order):
        if root not in seen:
            yield set(_reached(predecessors, root, nodes, seen))


def _reached(edges: Edges, root: int, nodes: set[int], seen: set[int]) -> list[int]:
    """Return what is reached first from a node, each after all that it leads to."""
    order = list[int]()
    pending = [(root, False)]
    while pending:
        node, is_done = pending.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            pending.append((node, True))
            pending += [(other, False) for other in edges[node] if other in nodes]
    return order
