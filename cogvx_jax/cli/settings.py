"""Dataclasses as the options of a verb: each field is a flag, and the comment beside it the flag's help.

Fields that are dataclasses themselves are taken apart. tyro would put whatever a dataclass refuses into a box of its
own. So it fills look-alikes that refuse nothing; what they become when all is read says it in one sentence.
"""

import dataclasses
import functools
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import tyro

from cogvx_jax.configs import DiscriminatorConfig, LoRAConfig
from cogvx_jax.train.transformer.settings import ControlNetTraining, Objective, RunConfig, StageSettings
from cogvx_jax.train.vae.settings import VAEObjective, VAEStageSettings

# Flags that are not named as their fields; None is no flag.
NAMES: dict[type, dict[str, str | None]] = {
    LoRAConfig: {"rank": "lora_rank", "alpha": "lora_alpha", "targets": "lora_targets"},
    DiscriminatorConfig: {
        "width": "discriminator_width",
        "layers": "discriminator_layers",
        "groups": None,
        "norm_eps": None,
    },
    Objective: dict.fromkeys(("image_noise_mean", "image_noise_spread", "image_scale")),
    StageSettings: {"pack": None},
    ControlNetTraining: {"start": "controlnet", "layers": "controlnet_layers"},
    RunConfig: {"lora": None, "parts": None, "distill": None, "controlnet": None},
    VAEObjective: {"lpips": "lpips_weight"},
    VAEStageSettings: {"height": None, "width": None},
}
T = TypeVar("T")


def verb(of: type[T], recorded: Callable[[str], T]) -> Callable[[Callable[[T], None]], Callable[[T], None]]:
    """Makes a verb of a function of such options, which tyro calls as well as Python does.

    Args:
      recorded: gives the options that the run.json of a run stands for. Those of the command line come before them.
    """

    look_alike: Any = _look_alike(typing.cast(Any, of))

    def wrap(function: Callable[[T], None]) -> Callable[[T], None]:
        @functools.wraps(function)
        def parsed(options: T) -> None:
            if isinstance(options, look_alike) and getattr(options, "config", None) is not None:
                default = _relaxed(recorded(options.config))  # type: ignore[attr-defined]
                config = (tyro.conf.OmitArgPrefixes,)
                options = tyro.cli(look_alike, args=sys.argv[2:], default=default, config=config)
            function(_checked(options))

        flags = tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")
        parsed.__annotations__ = {"options": _annotated(look_alike, *flags), "return": None}
        del parsed.__wrapped__  # type: ignore[attr-defined]  # or tyro would look at the function itself
        return parsed

    return wrap


def from_flags(of: type[T], **values: Any) -> T:
    """The options that these flags give, by the flags' names in Python. Raises: TypeError for one that there is not."""
    made = _from_flags(of, values)
    if values:
        raise TypeError(f"there is no flag {min(values)!r}")
    return made


def _from_flags(of: type, values: dict[str, Any]) -> Any:
    own: dict[str, Any] = {}
    for field in dataclasses.fields(of):
        name = _names(of).get(field.name, field.name)
        if name is not None and _is_nested(field):
            own[field.name] = _from_flags(type(field.default), values)
        elif name in values:
            own[field.name] = values.pop(name)
    return of(**own)


def _annotated(kind: Any, *about: Any) -> Any:
    form: Any = Annotated
    return form[(kind, *about)]


@functools.cache
def _look_alike(of: Any) -> Any:
    """A dataclass with the same fields and flags that refuses nothing."""
    hints, changed = typing.get_type_hints(of, include_extras=True), dict[str, Any]()
    body: dict[str, Any] = {"__post_init__": lambda self: None, "__doc__": of.__doc__, "__module__": of.__module__}
    for field in dataclasses.fields(of):
        name = _names(of).get(field.name, field.name)
        if name is None:
            changed[field.name] = _annotated(Any, tyro.conf.Fixed, tyro.conf.Suppress)
        elif _is_nested(field):
            body[field.name] = _relaxed(field.default)
            changed[field.name] = type(body[field.name])
        elif name != field.name:
            changed[field.name] = _annotated(hints[field.name], tyro.conf.arg(name=name))
    body |= {"__annotations__": changed, "checked_as": of}
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(of.__name__, (of,), body))


def _relaxed(value: Any) -> Any:
    """A look-alike of options; what the class itself would fill in is left open."""
    if not dataclasses.is_dataclass(value):
        return value
    of: Any = type(value)
    open_fields = {name for name, flag in _names(of).items() if flag is None}
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(of)}
    if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(of)):
        plain = of()
        fields |= {f.name: f.default for f in dataclasses.fields(of) if fields[f.name] == getattr(plain, f.name)}
    return _look_alike(of)(**{name: x if name in open_fields else _relaxed(x) for name, x in fields.items()})


def _checked(value: Any) -> Any:
    """What a look-alike stands for. Raises: ValueError where the dataclasses refuse it."""
    if not dataclasses.is_dataclass(value):
        return value
    of: Any = getattr(value, "checked_as", type(value))
    return of(**{field.name: _checked(getattr(value, field.name)) for field in dataclasses.fields(of)})


def _names(of: type) -> Mapping[str, str | None]:
    return {name: flag for base in of.__mro__ for name, flag in NAMES.get(base, {}).items()}


def _is_nested(field: dataclasses.Field) -> bool:
    return dataclasses.is_dataclass(field.default)
