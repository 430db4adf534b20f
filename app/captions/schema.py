"""The application's tables. ``python -m captions.schema`` creates those that are missing.

``--url`` is not offered on purpose: a URL with a password does not belong in a process list. The address comes
from ``DATABASE_URL`` in the environment, else from the application's ``.env`` file.
"""

from __future__ import annotations

import os
from importlib import resources

from sqlalchemy import Engine, text

from captions.database import make_engine
from captions.settings import load_or_exit


def statements() -> list[str]:
    """The statements of ``schema.sql``, in order; each may be repeated without harm."""
    script = resources.files("captions").joinpath("schema.sql").read_text(encoding="utf-8")
    return [part.strip() for part in script.split(";") if part.strip()]


def create_schema(engine: Engine) -> None:
    """Create the tables that are missing and the one row of ``captions_control``."""
    with engine.begin() as connection:
        for statement in statements():
            connection.execute(text(statement))


def main() -> None:
    url = os.environ.get("DATABASE_URL") or load_or_exit().database_url
    engine = make_engine(url)
    create_schema(engine)
    engine.dispose()
    print("captions: tables are there")


if __name__ == "__main__":
    main()
