"""What playbooks, roles and scenarios may not do, and how a role is laid out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

SECRET = re.compile(r"(^|_)(password|passwd|passphrase|secret|private_key)(_|$)")
ROLE_FILES = ("README.md", "defaults/main.yml", "meta/argument_specs.yml", "tasks/main.yml")
ROLE_NAME = re.compile(r"queue_[a-z]+(_[a-z]+)*\Z")
PLAY_NAME = re.compile(r"(?P<n>\d+)/(?P<m>\d+) \| [A-Z][a-z]+\b")
BLOCKS = ("block", "rescue", "always")
TASK_LISTS = ("pre_tasks", "tasks", "post_tasks", "handlers")
# They wait for nobody when there is no terminal, so under AWX a confirmation by `pause` confirms nothing.
PROMPTS = frozenset({"pause", "ansible.builtin.pause"})


class _Loader(yaml.SafeLoader):
    """Reads Ansible's own tags (!vault, !unsafe) as their plain text."""


def _plain(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> object:
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_Loader.add_multi_constructor("!", _plain)


def load(path: Path) -> Any:
    """The YAML at `path`."""
    return yaml.load(path.read_text(), Loader=_Loader)  # noqa: S506 - a SafeLoader with Ansible's tags


def tasks_of(items: object) -> Iterator[dict[str, Any]]:
    """Every task below a list of plays or tasks, blocks included and unfolded."""
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        yield item
        for key in (*BLOCKS, *TASK_LISTS):
            yield from tasks_of(item.get(key))


def forbidden(content: object) -> list[str]:
    """Constructs that let a failed gate look passed, or wait for a person who is not there."""
    found: list[str] = []
    for task in tasks_of(content):
        where = f"'{task.get('name', '?')}'"
        if "ignore_errors" in task:
            found.append(f"{where}: ignore_errors")
        if _is_never(task.get("failed_when")):
            found.append(f"{where}: failed_when is always false")
        if "vars_prompt" in task:
            found.append(f"{where}: vars_prompt")
        found += [f"{where}: {name} waits for a terminal" for name in sorted(PROMPTS & set(task))]
        found += _role_use(task, where)
        found += _rescue(task, where)
    return found


def _is_never(condition: object) -> bool:
    if isinstance(condition, list):
        return any(_is_never(part) for part in condition)
    return condition is False or (isinstance(condition, str) and condition.strip().lower() in {"false", "no"})


def _role_use(task: Mapping[str, Any], where: str) -> list[str]:
    if "ansible.builtin.include_role" in task:
        return [f"{where}: include_role left out by tags checks no argument; use import_role"]
    use = task.get("ansible.builtin.import_role")
    if isinstance(use, dict) and "tasks_from" in use:
        return [f"{where}: tasks_from; a role has one entry point, main"]
    return []


def _rescue(task: Mapping[str, Any], where: str) -> list[str]:
    """A rescue that does not end in a failure turns the error into exit code 0."""
    rescue = task.get("rescue")
    if not rescue:
        return []
    return (
        [] if "ansible.builtin.fail" in rescue[-1] else [f"{where}: its rescue does not end with ansible.builtin.fail"]
    )


def playbook_offences(content: object) -> list[str]:
    """What breaks the shape of a playbook: numbered plays with a verb, facts stated, one failure stops all hosts."""
    if not isinstance(content, list) or not content:
        return ["is no list of plays"]
    found = forbidden(content)
    plays = [
        play for play in content if "import_playbook" not in play and "ansible.builtin.import_playbook" not in play
    ]
    for position, play in enumerate(plays, start=1):
        name = str(play.get("name", ""))
        numbered = PLAY_NAME.match(name)
        if not numbered:
            found.append(f"play '{name}': the name is not 'n/m | Verb the object'")
        elif (int(numbered["n"]), int(numbered["m"])) != (position, len(plays)):
            found.append(f"play '{name}' is number {position} of {len(plays)}")
        if play.get("any_errors_fatal") is not True:
            found.append(f"play '{name}': any_errors_fatal is not true; the next play would run on the hosts left")
        if "gather_facts" not in play:
            found.append(f"play '{name}': gather_facts is not stated")
    return found


def role_offences(role: Path) -> list[str]:
    """What breaks the layout of the role at `role`, and where its defaults and its argument spec differ."""
    found = [f"{name} is missing" for name in ROLE_FILES if not (role / name).is_file()]
    if not ROLE_NAME.match(role.name):
        found.append(f"the name '{role.name}' is not queue_<verb>")
    if found:
        return found
    if not (role / "README.md").read_text().strip():
        found.append("README.md is empty")
    defaults = load(role / "defaults/main.yml") or {}
    specs = (load(role / "meta/argument_specs.yml") or {}).get("argument_specs") or {}
    if list(specs) != ["main"]:
        found.append(f"argument_specs has the entry points {sorted(specs)}; there is one, main")
    main = specs.get("main") or {}
    if not main.get("short_description"):
        found.append("argument_specs: main has no short_description")
    return found + spec_offences(role.name, defaults, main.get("options") or {})


def spec_offences(role: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Differences between defaults/main.yml and the argument spec, and options that are not fully described.

    An option is either `required`, then it comes from the inventory and is named queue_*, or it has a default, the same
    in both files, and carries the role's name.
    """
    found = [f"default '{name}' is not in the argument spec" for name in defaults if name not in options]
    for name, option in options.items():
        required = option.get("required") is True
        found += [f"option '{name}' has no {key}" for key in ("description", "type") if not option.get(key)]
        if not name.startswith("queue_" if required else f"{role}_"):
            found.append(f"option '{name}' is not named {'queue_*' if required else role + '_*'}")
        if required and name in defaults:
            found.append(f"option '{name}' is required and has a default")
        if not required and (name not in defaults or "default" not in option):
            found.append(f"option '{name}' is neither required nor has a default in both files")
        elif not required and defaults[name] != option["default"]:
            found.append(f"option '{name}': default is {defaults[name]!r}, the spec says {option['default']!r}")
        if SECRET.search(name) and option.get("no_log") is not True and not name.endswith(("_file", "_path")):
            found.append(f"option '{name}' holds a secret but is not no_log")
    return found
