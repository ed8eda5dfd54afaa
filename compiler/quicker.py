"""Caches for results that Numba's front end computes repeatedly: they save a third of its time.

Each replacement returns what the original returned; the comment says what was slow. Numba is pinned.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from compiler.untyped import Flags, Instruction, Record, Variable, events, modules_with_ufunc_loops

if TYPE_CHECKING:
    from collections.abc import Callable


def apply() -> None:
    """Install all replacements, and disable garbage collection: a build is a short process with many small objects."""
    gc.disable()
    _silence_events()
    _remember_names_of_records()
    _collect_variables_in_one_list()
    _remember_defaults_of_flags()
    _remember_loops_of_ufuncs()


def _silence_events() -> None:
    # Numba notifies listeners of each step, but there are none.
    def nobody_listens(*_arguments: Any, **_named: Any) -> None:
        pass

    events.broadcast = events.start_event = events.end_event = nobody_listens


def _remember_names_of_records() -> None:
    # A record's name lists all its fields, and is part of each mangled function name.
    make_name = Record.__repr__

    def remembered(record: Any) -> str:
        name = record.__dict__.get("_remembered_name")
        if name is None:
            name = record.__dict__["_remembered_name"] = make_name(record)
        return str(name)

    Record.__repr__ = remembered


def _collect_variables_in_one_list() -> None:
    # The original concatenates a list per level of nesting, and calls isinstance five times for each value.
    collectors: dict[type, Callable[[Any, list[Any]], None]] = {}

    def collect(value: Any, variables: list[Any]) -> None:
        kind = value.__class__
        collector = collectors.get(kind)
        if collector is None:
            collector = collectors[kind] = collector_of(kind)
        collector(value, variables)

    def of_sequence(values: Any, variables: list[Any]) -> None:
        for value in values:
            collect(value, variables)

    def collector_of(value_type: type) -> Callable[[Any, list[Any]], None]:
        if issubclass(value_type, Variable):
            return lambda variable, variables: variables.append(variable)
        if issubclass(value_type, Instruction):
            return lambda instruction, variables: variables.extend(instruction.list_vars())
        if issubclass(value_type, list | tuple):
            return of_sequence
        if issubclass(value_type, dict):
            return lambda mapping, variables: of_sequence(mapping.values(), variables)
        return lambda _value, _found: None

    def list_variables(_instruction: Any, value: Any) -> list[Any]:
        variables: list[Any] = []
        collect(value, variables)
        return variables

    Instruction._rec_list_vars = list_variables


def _remember_defaults_of_flags() -> None:
    # Comparing two sets of flags builds a dictionary of some thirty defaults for each.
    def values(flags: Any) -> dict[str, Any]:
        defaults = flags.__class__.__dict__.get("_remembered_defaults")
        if defaults is None:
            defaults = flags.__class__._remembered_defaults = {k: o.default for k, o in flags.options.items()}
        return {**defaults, **flags._values}

    def equal(flags: Any, other: Any) -> Any:
        if not isinstance(other, Flags):
            return NotImplemented
        if flags.__class__ is other.__class__ and flags._values == other._values:
            return True
        return flags.values() == other.values()

    Flags.values = values
    Flags.__eq__ = equal


def _remember_loops_of_ufuncs() -> None:
    # Each operator on integers is first tried as a NumPy ufunc, whose loops are searched.
    find, known = modules_with_ufunc_loops[0].ufunc_find_matching_loop, dict[Any, Any]()

    def remembered(ufunc: Any, argument_types: Any) -> Any:
        key = (ufunc, tuple(argument_types))
        if key not in known:
            known[key] = find(ufunc, argument_types)
        return known[key]

    for module in modules_with_ufunc_loops:
        module.ufunc_find_matching_loop = remembered
