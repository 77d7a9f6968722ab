"""Verbs that are several actions, such as `cogvx lora info`."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import tyro


def one_of(actions: Mapping[str, Callable[..., None]]) -> Any:
    """The annotation of a verb's only argument: the action that the command line names, to be called without any."""
    kinds = [
        Annotated[Any, tyro.conf.subcommand(name, constructor=_later(action), prefix_name=False)]
        for name, action in actions.items()
    ]
    return Annotated[functools.reduce(operator.or_, kinds), tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]


def _later(action: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Only takes the arguments: tyro would frame an error that is raised while it reads them."""

    @functools.wraps(action)
    def taken(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(action, *positional, **named)

    return taken
