"""The boundary to Ansible: builds what a step needs, turns refusals into one message, and lets no secret out."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from ansible.module_utils import basic

from ..adapters.system_clock import SystemClock
from ..core.errors import SluiceError
from ..core.verdicts import Gate

#: Seconds of work between two progress lines.
SLICE_SECONDS = 8.0
#: A store's, or an application's, own limit ends before its question's, so that its words are heard.
SHARE_OF_LIMIT = 0.85

#: What a step says that is not done, when nobody calls it again.
UNFINISHED = (
    "the step is not finished: it works in slices, and its action plugin was not found. "
    "Next: run from the repository's root, so that ansible.cfg names plugins/action."
)

#: What is said of an error that nobody foresaw.
DEFECT = (
    "this is a defect of Sluice; what was done until here is in the ledger. "
    "Next: look at playbooks/status.yml, and report it with the trace (ANSIBLE_DISPLAY_TRACEBACK=error). It says:"
)

Result = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """What a step was given: its options, and whether it may write."""

    params: Mapping[str, Any]
    check_mode: bool
    secrets: tuple[str, ...] = ()

    @property
    def clock(self) -> SystemClock:
        """Time, for steps that touch no store."""
        return SystemClock()


G = TypeVar("G", bound=Given)


def run(spec: Mapping[str, Any], step: Callable[[Given], Result], returns: Mapping[str, Any]) -> None:
    """Run one step that reaches no store as an Ansible module.

    :param returns: every key of the module's RETURN with its empty value; all are there on every exit, failures too
    """
    run_given(Given, spec, step, returns)


def run_given(given: type[G], spec: Mapping[str, Any], step: Callable[[G], Result], returns: Mapping[str, Any]) -> None:
    """Run one step as an Ansible module; it is handed what ``given`` makes of its options.

    :param returns: every key of the module's RETURN with its empty value; all are there on every exit, failures too
    """
    module = basic.AnsibleModule(argument_spec=dict(spec), supports_check_mode=True)
    secrets = secret_parts(module.params, spec)
    try:
        result = {**returns, **step(given(module.params, module.check_mode, secrets))}
    except SluiceError as error:
        module.fail_json(**{**returns, "changed": False}, msg=redacted(str(error), secrets))
        return
    except Exception as error:  # noqa: BLE001  a defect may say anything, secrets included; it is failed, not hidden
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        trace = redacted("".join(traceback.format_exception(error)), secrets)
        module.fail_json(**{**returns, "changed": False}, msg=redacted(f"{DEFECT} {said}", secrets), exception=trace)
        return
    cursor = result.pop("cursor", None)
    result = cleaned(result, secrets)
    if cursor is not None:
        if not module.params.get("sliced"):
            module.fail_json(**{**result, "msg": UNFINISHED})
        result["cursor"] = cursor
    if result.pop("failed_gate", False):
        module.fail_json(msg=result.pop("msg", "a gate is closed"), **result)
    module.exit_json(**result)


def secret_parts(params: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Every secret value, and the password inside each URL, plain and quoted: drivers repeat parts of what they got."""
    found: set[str] = set()
    for name, option in spec.items():
        value = params.get(name)
        if option.get("no_log") and isinstance(value, str) and value:
            found.add(value)
            password = urlsplit(value).password if "://" in value else None
            if password:
                found |= {password, unquote(password)}
        elif option.get("no_log") and isinstance(value, Mapping):
            found |= {str(v) for v in value.values() if v}
    return tuple(sorted(found, key=len, reverse=True))


def redacted(text: str, secrets: tuple[str, ...]) -> str:
    """Text without any secret, and without the user part of any URL."""
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "********")
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1********@", text)


def cleaned(value: Any, secrets: tuple[str, ...]) -> Any:
    """A result with every text redacted, made of plain data only."""
    if isinstance(value, str):
        return redacted(str(value), secrets)
    if isinstance(value, Mapping):
        return {str(k): cleaned(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(v, secrets) for v in value]
    return value


def gate_result(gate: Gate, *, changed: bool) -> Result:
    """A gate as a module returns it; a closed one fails the task with one message."""
    checks = [
        {"name": c.name, "verdict": c.verdict.value, "reading": c.reading, "next_step": c.next_step}
        for c in gate.checks
    ]
    result: Result = {"changed": changed, "verdict": gate.verdict.value, "checks": checks, "lines": gate_lines(gate)}
    if not gate.open:
        result |= {"failed_gate": True, "msg": gate.explain()}
    return result


def gate_lines(gate: Gate) -> list[str]:
    """A gate as aligned lines."""
    if not gate.checks:
        return [f"{gate.name}: nothing was checked"]
    width = max(len(c.name) for c in gate.checks)
    return [f"{c.verdict.value:<8} {c.name:<{width}}  {c.reading}" for c in gate.checks]


def names(processes: Sequence[Mapping[str, Any]]) -> str:
    """Processes in a message: the first few, by host and name."""
    return ", ".join(f"{p.get('host', '')}:{p.get('name', '')}" for p in processes[:6])
