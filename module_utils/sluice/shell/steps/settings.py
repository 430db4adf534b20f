"""The settings file of the application on one of its hosts.

Those hosts have a Python and nothing else of ours, so nothing here leads to a driver of a store or to its packages.
"""

from __future__ import annotations

from pathlib import Path

from ...adapters.dotenv_file import DotenvFile
from ..runner import Given, Result


def config(given: Given) -> Result:
    """Keep the managed keys of the application's configuration file, each exactly once; all else byte for byte."""
    params = given.params
    file = DotenvFile(Path(params["path"]), [str(k) for k in params["secrets"]])
    values = {str(k): _written(v) for k, v in [*params["values"].items(), *params["secrets"].items()]}
    absent: list[str] = []
    if params["state"] == "absent":
        values, absent = {}, list(values)
    change = file.apply(values, run_id=params["run_id"], absent=absent, check_mode=given.check_mode)
    return {
        "changed": change.changed,
        "backup_file": change.backup,
        "diff": {
            "before": change.before,
            "after": change.after,
            "before_header": change.path,
            "after_header": change.path,
        },
        "lines": [f"{change.path}: {_outcome(change.changed, given.check_mode)}"],
    }


def _outcome(changed: bool, check_mode: bool) -> str:
    if not changed:
        return "as wanted"
    return "would be written" if check_mode else "written"


def _written(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
