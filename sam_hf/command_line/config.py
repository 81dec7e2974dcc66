"""Configuration files in YAML, and the parser of programs with a few options."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from typing import Any

import yaml

from ..errors import UsageError


class ConfigLoader(yaml.SafeLoader):
    """
    A loader that differs from PyYAML's in three points.

    - `yes` and `no` are text, since `eval_strategy: no` is a value of Trainer's. Boolean options read both words.
    - `1e-4` is a number, as in YAML 1.2. YAML 1.1 asks for `1.0e-4`.
    - A key that is given twice is an error, as YAML says. PyYAML takes the last.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [entry for entry in resolvers if first not in "yYnN" or not entry[0].endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: str) -> dict[str, Any]:
    """Return the mapping that the configuration file at `path` holds."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, ConfigLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"the configuration {path} must hold `option: value` lines")
    return values


class PlainParser(ArgumentParser):
    """A parser of standard options that reports wrong use as `UsageError`."""

    def error(self, message: str) -> Any:
        raise UsageError(message)
