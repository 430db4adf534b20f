"""A module's documentation is what the operator reads; its argument spec is what happens. They say the same."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.loader import fragment_loader
from ansible.utils.plugin_docs import get_docstring

from guards import tree
from guards.yaml_rules import SECRET, tasks_of

MAIN_LINES = 25
ATTRIBUTES = ("check_mode", "diff_mode", "idempotent")
# May hold a secret: whoever declares one of these says `no_log` in either direction.
PERHAPS_SECRET = re.compile(r"(^|_)(url|dsn|token|credentials?|auth)(_|$)")
VALIDATOR_KEYS = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
TASK_KEYWORDS = frozenset(
    {"args", "become", "become_user", "changed_when", "check_mode", "delegate_to", "diff", "environment", "failed_when"}
    | {"loop", "loop_control", "name", "no_log", "notify", "register", "run_once", "tags", "timeout", "vars", "when"}
)


class _ReachedAnsible(BaseException):
    """Carries the arguments with which a module's `main()` built its AnsibleModule. No `except Exception` stops it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__("AnsibleModule was built")
        self.arguments = arguments


def declared(path: Path) -> dict[str, Any]:
    """What the module at `path` passes to AnsibleModule: argument_spec, supports_check_mode, required_if and so on.

    It is read from a call of `main()` that is stopped there, so it is what happens however the spec is put together.
    """
    name = f"guarded_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    signature = inspect.signature(AnsibleModule.__init__)

    def stop(self: object, *args: object, **kwargs: object) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        raise _ReachedAnsible(dict(bound.arguments))

    try:
        spec.loader.exec_module(module)
        with patch.object(AnsibleModule, "__init__", stop):
            module.main()
    except _ReachedAnsible as reached:
        return reached.arguments
    finally:
        del sys.modules[name]
    raise AssertionError(f"{path.name}: main() built no AnsibleModule")


def documented(path: Path, fragments: Path = tree.ROOT / "plugins" / "doc_fragments") -> tuple[Any, Any, Any]:
    """DOCUMENTATION with its fragments merged in, EXAMPLES as text, and RETURN, as Ansible itself reads them."""
    fragment_loader.add_directory(str(fragments))
    doc, examples, returned, _ = get_docstring(str(path), fragment_loader, is_module=True, plugin_type="module")
    return doc, examples, returned


def offences(path: Path) -> list[str]:
    """Everything in the module at `path` that its documentation, its spec and its examples do not agree on."""
    doc, examples, returned = documented(path)
    if not isinstance(doc, dict):
        return ["DOCUMENTATION is missing or is no YAML mapping"]
    arguments = declared(path)
    spec: dict[str, Any] = arguments["argument_spec"] or {}
    found = main_offences(path.read_text())
    if doc.get("module") != path.stem:
        found.append(f"DOCUMENTATION names the module '{doc.get('module')}'")
    if not doc.get("short_description") or not doc.get("description"):
        found.append("DOCUMENTATION has no short_description or no description")
    if not arguments["supports_check_mode"]:
        found.append("supports_check_mode is not set: under --check the module, and its gate, would be skipped")
    found += option_offences(doc.get("options") or {}, spec)
    found += secret_offences(spec)
    found += attribute_offences(doc.get("attributes") or {})
    found += return_offences(returned)
    found += example_offences(path.stem, examples or "", spec, {key: arguments.get(key) for key in VALIDATOR_KEYS})
    return found


def main_offences(source: str) -> list[str]:
    """A module whose `main()` is missing or too long to be an entry: the work belongs to services."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            return [f"main() has {lines} lines, more than {MAIN_LINES}"] if lines > MAIN_LINES else []
    return ["there is no main()"]


def option_offences(options: Mapping[str, Any], spec: Mapping[str, Any], where: str = "") -> list[str]:
    """Differences between documented options and the argument spec, sub-options included."""
    found = [f"option '{where}{name}' is documented but not accepted" for name in options if name not in spec]
    found += [f"option '{where}{name}' is accepted but not documented" for name in spec if name not in options]
    for name in (name for name in options if name in spec):
        said, does = options[name], spec[name]
        full = f"{where}{name}"
        if not said.get("description"):
            found.append(f"option '{full}' has no description")
        for key, in_doc, in_spec in (
            ("type", said.get("type", "str"), does.get("type", "str")),
            ("elements", said.get("elements"), does.get("elements")),
            ("required", bool(said.get("required", False)), bool(does.get("required", False))),
            ("default", said.get("default"), does.get("default")),
            ("choices", list(said.get("choices") or ()), list(does.get("choices") or ())),
            ("aliases", sorted(said.get("aliases") or ()), sorted(does.get("aliases") or ())),
        ):
            if in_doc != in_spec:
                found.append(f"option '{full}': {key} is {in_doc!r} in the documentation and {in_spec!r} in the spec")
        found += option_offences(said.get("suboptions") or {}, does.get("options") or {}, f"{full}.")
    return found


def secret_offences(spec: Mapping[str, Any], where: str = "") -> list[str]:
    """Options that hold a secret and would be logged, or that may hold one and do not say."""
    found: list[str] = []
    for name, option in spec.items():
        if SECRET.search(name) and option.get("no_log") is not True and not name.endswith(("_file", "_path")):
            found.append(f"option '{where}{name}' holds a secret but is not no_log")
        elif PERHAPS_SECRET.search(name) and option.get("type", "str") == "str" and "no_log" not in option:
            found.append(f"option '{where}{name}' may hold a secret; say no_log=True or no_log=False")
        found += secret_offences(option.get("options") or {}, f"{where}{name}.")
    return found


def attribute_offences(attributes: Mapping[str, Any]) -> list[str]:
    """Promises about check mode, diff mode and idempotence that are missing or say too little."""
    found: list[str] = []
    for name in ATTRIBUTES:
        attribute = attributes.get(name)
        if not attribute:
            found.append(f"attribute '{name}' is not documented")
        elif attribute.get("support") not in {"full", "partial", "none", "N/A"}:
            found.append(f"attribute '{name}' has support {attribute.get('support')!r}")
        elif attribute["support"] == "partial" and not attribute.get("details"):
            found.append(f"attribute '{name}' is partial without details")
    return found


def return_offences(returned: object) -> list[str]:
    """Return values that an operator cannot look up."""
    if not isinstance(returned, Mapping) or not returned:
        return ["RETURN is missing or empty"]
    return [
        f"RETURN '{name}' has no {key}"
        for name, value in returned.items()
        for key in ("description", "returned", "type", "sample")
        if not isinstance(value, Mapping) or key not in value
    ]


def example_offences(
    name: str, examples: str, spec: dict[str, Any], rules: Mapping[str, Any] | None = None
) -> list[str]:
    """Examples that the module's own spec would refuse. Values with Jinja stand for any value of their type."""
    try:
        tasks = yaml.safe_load(examples)
    except yaml.YAMLError as error:
        return [f"EXAMPLES is no YAML: {error}"]
    if not isinstance(tasks, list) or not any(isinstance(task, dict) and name in task for task in tasks):
        return [f"EXAMPLES is no list of tasks with at least one use of {name}"]
    found: list[str] = []
    validator = ArgumentSpecValidator(spec, **dict(rules or {}))
    for task in tasks:
        strange = set(task) - TASK_KEYWORDS - {name}
        found += [f"example '{task.get('name')}': '{word}' is no keyword of a task" for word in sorted(strange)]
        if name in task:
            result = validator.validate(_without_jinja(task[name] or {}, spec))
            found += [f"example '{task.get('name')}': {message}" for message in result.error_messages]
    return found


def task_offences(content: object, arguments: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Uses of our modules, in plays or tasks, that their specs would refuse; `arguments` as `declared` by module name.

    ansible-lint leaves out every module that has an action plugin of the same name, so the long steps are checked here.
    """
    found: list[str] = []
    for task in tasks_of(content):
        where = f"'{task.get('name', '?')}'"
        for name in sorted(key for key in task if key.startswith("queue_")):
            if name not in arguments:
                found.append(f"{where}: there is no module {name}")
                continue
            spec = arguments[name]["argument_spec"] or {}
            validator = ArgumentSpecValidator(spec, **{key: arguments[name].get(key) for key in VALIDATOR_KEYS})
            given = task[name] or {}
            if isinstance(given, Mapping):
                messages = validator.validate(_without_jinja(given, spec)).error_messages
                found += [f"{where}: {name}: {message}" for message in messages]
            else:
                found.append(f"{where}: {name}: arguments are no mapping")
    return found


def _without_jinja(value: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _stand_in(given, spec.get(key) or {}) for key, given in value.items()}


def _stand_in(given: object, option: Mapping[str, Any]) -> object:
    if isinstance(given, Mapping):
        return _without_jinja(given, option.get("options") or {})
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [_stand_in(item, {**option, "type": option.get("elements", "str")}) for item in given]
    if not isinstance(given, str) or "{{" not in given:
        return given
    if option.get("choices"):
        return option["choices"][0]
    return {"int": 1, "float": 1.0, "bool": True, "list": [], "dict": {}}.get(option.get("type", "str"), "value")
