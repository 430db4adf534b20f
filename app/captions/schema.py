"""The application's tables. ``python -m captions.schema`` creates what is missing of them.

``--url`` is not offered on purpose: a URL with a password does not belong in a process list. The address comes
from ``DATABASE_URL`` in the environment, else from the application's ``.env`` file.
"""

from __future__ import annotations

import os
import re
from importlib import resources

from sqlalchemy import Engine, text

from captions import task_types
from captions.database import make_engine
from captions.settings import load_or_exit


def statements() -> list[str]:
    """The statements of ``schema.sql``, in order; each may be repeated without harm."""
    script = resources.files("captions").joinpath("schema.sql").read_text(encoding="utf-8")
    return [part.strip() for part in script.split(";") if part.strip()]


def create_schema(engine: Engine) -> None:
    """Create what is missing: tables, columns, the one row of ``captions_control``, queues of single task types."""
    with engine.begin() as connection:
        for statement in statements():
            connection.execute(text(statement))
        known = connection.execute(
            text(
                "SELECT COLUMN_TYPE FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE()"
                " AND TABLE_NAME = 'caption_tasks' AND COLUMN_NAME = 'priority'"
            )
        ).scalar_one()
        present = re.findall(r"'([^']+)'", known)
        missing = [name for name in task_types.queues() if name not in present]
        if missing:
            # At the end of the list: what is stored stays as it is, and rows are claimed in the order of the list.
            words = ",".join(f"'{name}'" for name in [*present, *missing])
            connection.execute(
                text(f"ALTER TABLE caption_tasks MODIFY priority ENUM({words}) NOT NULL DEFAULT 'normal'")
            )


def main() -> None:
    url = os.environ.get("DATABASE_URL")
    if url is None:
        settings = load_or_exit()
        task_types.load(settings)
        url = settings.database_url
    engine = make_engine(url)
    create_schema(engine)
    engine.dispose()
    print("captions: tables are there")


if __name__ == "__main__":
    main()
