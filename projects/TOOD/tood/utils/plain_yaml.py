"""YAML of plain values: no tag runs code, and aliases do not multiply what is read."""

from typing import Any, Callable, Dict, Optional

import yaml

MAX_NODES = 200_000  # with aliases counted as often as they are used
MAX_DEPTH = 40
# Tags of plain values. A timestamp remains text.
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


def load_yaml(text: str, as_text: bool = False, loader: Optional[type] = None) -> Any:
    """Return the content of a YAML document.

    Args:
        as_text: return all scalars as they are written, such as names that are "yes" or "007".
        loader: a subclass of :class:`PlainLoader` that knows more tags.

    Raises:
        yaml.YAMLError, ValueError: if it is not YAML, contains other tags than those of plain
            values, the same key twice, an alias for a value that contains it, too many or too
            deeply nested values, or text that is not Unicode. Call it within ``guard_reading``.
    """
    try:
        return yaml.load(text, Loader=_TextLoader if as_text else loader or PlainLoader)
    except (LookupError, OverflowError) as error:  # PyYAML's, for "!!bool maybe" or "!!float"
        raise ValueError("a value is not of the type that is typed before it") from error


class _Bounded:
    """Counts what is composed before anything is constructed."""

    def __init__(self, stream):
        super().__init__(stream)
        self._depth = self._num_nodes = 0
        self._sizes: Dict[yaml.Node, int] = {}

    def compose_node(self, parent, index):
        is_alias, before = self.check_event(yaml.AliasEvent), self._num_nodes
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"its values are nested more than {MAX_DEPTH} times")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and node not in self._sizes:
            raise ValueError("it has an alias for a value that contains the alias")
        length = len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0
        self._num_nodes += self._sizes[node] if is_alias else 1 + length
        if self._num_nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} values, aliases counted as used")
        self._sizes.setdefault(node, self._num_nodes - before)
        return node

    def compose_scalar_node(self, anchor):
        node = super().compose_scalar_node(anchor)
        node.value.encode()  # raises ValueError for a lone surrogate
        return node

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ValueError(f"it has the key {key.value[:40]} twice in one place")
                seen.add((key.tag, key.value))
        return node


class _TextLoader(_Bounded, yaml.BaseLoader):
    pass


class PlainLoader(_Bounded, yaml.SafeLoader):
    yaml_constructors: Dict[Optional[str], Callable] = {
        f"tag:yaml.org,2002:{tag}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{tag}"]
        for tag in _TAGS
    }
    yaml_constructors[None] = yaml.SafeLoader.yaml_constructors[None]  # refuses other tags
    yaml_implicit_resolvers = {
        first: [x for x in resolvers if not x[0].endswith((":timestamp", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_int(self, node):
        """Return an integer, or the text of one that has more than 64 bits."""
        number = 2**63 if len(node.value) > 40 else self.construct_yaml_int(node)
        return number if abs(number) < 2**63 else node.value


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_int)
