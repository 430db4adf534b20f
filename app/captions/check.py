"""``python -m captions.check``: in one line, whether processes can be started with the settings there are."""

from __future__ import annotations

from captions import task_types
from captions.settings import SettingsError, load_or_exit
from captions.workers import checked


def main() -> None:
    settings = load_or_exit()
    try:
        task_types.load(settings)
        workers = checked(settings)
    except SettingsError as error:
        raise SystemExit(f"captions: {error}") from error
    print(
        f"captions: the settings of {settings.source} can be used: profile {settings.profile},"
        f" task types {', '.join(task_types.names())}, {len(workers)} RQ workers with Gunicorn"
    )


if __name__ == "__main__":
    main()
